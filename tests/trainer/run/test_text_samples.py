import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from schemas.errors import UserError
from schemas.train_config import LoopConfig, SamplesConfig
from support.callbacks import StopAt
from support.worded import worded_pair
from teacher_cache.shards.reader import CacheReader
from teacher_cache.stop_request import StopRequest
from trainer.distiller import distill
from trainer.run.text_samples import beginning, read_prompts

WORDS = ["<pad>", "<end>", "<unknown>", *(f"w{i}" for i in range(3, 61))]


@pytest.fixture
def student(student_folder: Path, tmp_path: Path) -> Path:
    """The small student with a tokenizer of words."""
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    model.save_pretrained(tmp_path / "student")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=WORDS[1]).save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def lines_of(output: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(output) / "samples.jsonl").read_text().splitlines()]


def greedy(folder: Path, prompt: str, tokens: int) -> str:
    """The continuation, with a forward pass over everything for each token."""
    model, ids = AutoModelForCausalLM.from_pretrained(folder), [WORDS.index(word) for word in prompt.split()]
    found: list[int] = []
    with torch.no_grad():
        while len(found) < tokens and (chosen := int(model(torch.tensor([ids + found])).logits[0, -1].argmax())) != 1:
            found.append(chosen)
    return " ".join(WORDS[i] for i in found)


@pytest.fixture
def no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic cache names no real tokenizer."""
    monkeypatch.setattr("trainer.distiller.check_tokenizer", lambda *arguments, **options: None)


@pytest.mark.usefixtures("no_check")
def test_a_run_continues_prompts_before_at_validations_and_after(make_config: Any, student: Path) -> None:
    prompts = ["w7 w8 w9", "w11"]
    changes = {
        "student": {"checkpoint": str(student)},
        "data": {"validation_fraction": 0.2},
        "loop": {"samples": {"prompts": prompts, "tokens": 6}, "validate_every": 4, "save_every": 2},
    }
    stop = StopRequest()
    config = make_config(**changes)
    distill(config, stop, [StopAt(3, stop)])
    assert [line["step"] for line in lines_of(config.output)] == [0, 0, 3, 3]
    distill(config)
    found = lines_of(config.output)
    assert [(line["step"], line["prompt"]) for line in found] == [
        (step, prompt) for step in (0, 3, 4, 6) for prompt in prompts
    ]
    for step, folder in ((0, student), (6, Path(config.output) / "final")):
        for line in found:
            if line["step"] == step:
                assert line["text"] == greedy(folder, line["prompt"], 6)

    without = make_config(**changes | {"loop": {"validate_every": 4}}, output=str(student.parent / "without"))
    distill(without)
    weights = [AutoModelForCausalLM.from_pretrained(Path(each.output) / "final") for each in (config, without)]
    assert torch.equal(weights[0].lm_head.weight, weights[1].lm_head.weight), "training is not changed by samples"


def test_a_student_without_a_tokenizer_is_refused(make_config: Any) -> None:
    config = make_config(loop={"samples": {"prompts": ["a"]}})
    with pytest.raises(UserError, match=r"loop\.samples: .*student\d*: has no tokenizer; add its files"):
        distill(config)


def test_prompts_of_a_cache_are_beginnings_of_its_texts(real_cache: Path) -> None:
    reader = CacheReader(str(real_cache), ("tokens",))
    found = read_prompts(SamplesConfig(prompts=3), str(real_cache), reader.manifest)
    texts = [reader.read_tokens(number).text for number in range(3)]
    assert len(found) == 3
    assert all(text.startswith(prompt) and prompt for text, prompt in zip(texts, found, strict=True))
    assert len(read_prompts(SamplesConfig(prompts=32), str(real_cache), reader.manifest)) == 32


@pytest.mark.parametrize(("learned", "words"), [(0, 8), (11, 12), (90, 64), (None, 64)])
def test_beginning(learned: int | None, words: int) -> None:
    sample, _ = worded_pair([f"é{i} " for i in range(100)], vocab_size=1000)
    mask = np.zeros(100, bool)
    if learned is not None:
        mask[learned:99] = True
    sample.loss_mask[:] = mask
    assert beginning(sample) == "".join(f"é{i} " for i in range(words))


def test_settings() -> None:
    with pytest.raises(ValueError, match="samples needs parallel: ddp"):
        LoopConfig(samples=SamplesConfig(), parallel="fsdp")
    with pytest.raises(ValueError, match="each logger once"):
        LoopConfig(report_to=["wandb", "wandb"])
    for bad in (0, 33, [], [""], ["x" * 4001]):
        with pytest.raises(ValueError, match="prompts"):
            SamplesConfig(prompts=bad)
