"""``samples.jsonl``: what the student continues a few prompts with, before training, at validations and at the end.

Greedy, on rank 0 alone, while other ranks wait at their next exchange; a few seconds for the defaults.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import SamplesConfig
from teacher_cache.records import TokenSample
from teacher_cache.shards.reader import CacheReader
from trainer.student.forward import flattens, masked_hidden, output_head
from trainer.student.student_tokenizer import load_tokenizer, tokenizer_files
from trainer.student.token_layout import token_layout

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
        """Continuations of all prompts; leaves the model's mode as it was."""
        ids = [ids for _, ids in self._prompts]
        ends = {self._tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)}
        training = model.training
        model.eval()
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            found = continuations(model, ids, self._tokens, ends, args.device)
        model.train(training)
        return [self._tokenizer.decode(each) for each in found]


def continuations(
    model: Any, prompts: Sequence[Sequence[int]], tokens: int, ends: Collection[int | None], device: torch.device
) -> list[list[int]]:
    """The most likely tokens after each prompt, at most ``tokens``, up to the first of ``ends``, without it.

    The forward pass is that of training, over everything so far: attention that is trained with may have no cache of
    keys and values.
    """
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
    rows = [list(prompt)[-max(1, longest - tokens) :] for prompt in prompts]
    starts, open_rows = [len(row) for row in rows], set(range(len(rows)))
    for _ in range(tokens):
        length = max(map(len, rows))
        if not open_rows or length >= longest:
            break
        batch = {
            "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.bool),
            "loss_mask": torch.zeros(len(rows), length, dtype=torch.bool),
        }
        for number, row in enumerate(rows):
            batch["input_ids"][number, : len(row)] = torch.tensor(row)
            batch["attention_mask"][number, : len(row)] = True
            batch["loss_mask"][number, len(row) - 1] = True
        laid_out: dict[str, Any] = {**batch, "layout": token_layout(batch, flattens(model))}
        hidden_RD = masked_hidden(model, {name: part.to(device) for name, part in laid_out.items()})
        chosen = output_head(model).logits(hidden_RD).argmax(-1).tolist()
        for number in sorted(open_rows):
            if chosen[number] in ends:
                open_rows.remove(number)
            else:
                rows[number].append(chosen[number])
    return [row[start:] for row, start in zip(rows, starts, strict=True)]


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
