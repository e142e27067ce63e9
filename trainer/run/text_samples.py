"""``samples.jsonl``: what the student continues a few prompts with, before training, at validations and at the end.

Greedy, on rank 0 alone, while other ranks wait at their next exchange; a few seconds for the defaults.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import SamplesConfig
from teacher_cache.records import TokenSample
from teacher_cache.shards.reader import CacheReader
from trainer.student.student_tokenizer import load_tokenizer, tokenizer_files

MOST_PROMPT_TOKENS = 64  # of a prompt from a cache
SHORTEST = 8  # tokens of one from a text that is learned from its first token on


def read_prompts(settings: SamplesConfig, url: str, manifest: Manifest) -> list[str]:
    """The prompts: given, or beginnings of the first texts of the cache at ``url``. Raises CorruptCacheError."""
    if not isinstance(settings.prompts, int):
        return list(settings.prompts)
    reader = CacheReader(url, ("tokens",), manifest)
    found = [beginning(reader.read_tokens(number)) for number in range(min(settings.prompts, len(reader)))]
    reader.close()
    return found


def beginning(sample: TokenSample) -> str:
    """The text before the first token to learn, or of the first ``SHORTEST`` tokens; at most ``MOST_PROMPT_TOKENS``."""
    learned = sample.loss_mask.nonzero()[0]
    first = int(learned[0]) + 1 if len(learned) else len(sample.input_ids)
    n = min(max(first, SHORTEST), MOST_PROMPT_TOKENS, len(sample.input_ids))
    return sample.text.encode()[: int(sample.byte_end[n - 1])].decode("utf-8", "ignore")


class SampleWriter(TrainerCallback):
    """Appends continuations to ``samples.jsonl``: ``{"step": …, "prompt": …, "text": …}``, one line for each prompt."""

    def __init__(self, path: Path, tokenizer: Any, prompts: Sequence[str], tokens: int) -> None:
        """tokens: of a continuation, at most. prompts: none may be empty once encoded."""
        self._path, self._tokenizer, self._tokens = path, tokenizer, tokens
        encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        self._prompts = [(text, ids) for text, ids in zip(prompts, encoded, strict=True) if ids]
        self._last_step = -1

    @classmethod
    def of(
        cls, path: Path, settings: SamplesConfig, prompts: Sequence[str], student: Path, trust_remote_code: bool
    ) -> "SampleWriter":
        """The writer for the student in a folder. Raises UserError if it has no tokenizer."""
        if not tokenizer_files(student):
            raise UserError(f"loop.samples: {student}: has no tokenizer; add its files, or leave loop.samples out")
        return cls(path, load_tokenizer(student, "student", trust_remote_code), prompts, settings.tokens)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the student's as it is before training."""
        if state.global_step == 0:
            self._write(0, kwargs["model"], args)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write those of a step that is validated."""
        self._write(state.global_step, kwargs["model"], args)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write those of the last step."""
        self._write(state.global_step, kwargs["model"], args)

    def _write(self, step: int, model: Any, args: TrainingArguments) -> None:
        if step == self._last_step:
            return
        self._last_step = step
        prompts, texts = [prompt for prompt, _ in self._prompts], self._continued(model, args)
        lines = [{"step": step, "prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def _continued(self, model: Any, args: TrainingArguments) -> list[str]:
        """Continuations of all prompts; leaves mode and random state as they were."""
        training, found = model.training, []
        model.eval()
        longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            for _, ids in self._prompts:
                prompt = torch.tensor([ids[: max(1, longest - self._tokens)]], device=args.device)
                text = model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=min(self._tokens, max(1, longest - prompt.shape[1])),
                    do_sample=False,
                    num_beams=1,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    use_cache=True,
                )[0, prompt.shape[1] :]
                found.append(self._tokenizer.decode(text, skip_special_tokens=False))
        model.train(training)
        return found
