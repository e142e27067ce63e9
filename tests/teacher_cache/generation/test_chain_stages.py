"""Chains of verification by a sampler that knows what to say, through a whole generation."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from schemas.errors import UserError
from schemas.generate_config import GenerateConfig
from support.models import tiny_tokenizer, write_random_teacher
from support.talking import generate_config
from teacher_cache.corpus.ready_samples import ready_sample
from teacher_cache.corpus.token_spans import ByteTokenizer
from teacher_cache.generated.generated_place import read_generated, replies_of
from teacher_cache.generated.reply_files import Prompt, Reply
from teacher_cache.generated.verification_chain import Chain, parse_chain
from teacher_cache.generation.chain_stages import listed
from teacher_cache.generation.generation_job import GenerationSummary, generate
from teacher_cache.generation.sampler import Asked, Sampler, Written
from teacher_cache.job import Worker
from teacher_cache.shards.storage import Storage

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
ASKED = "Three boxes of 17, how many?"
DRAFT = "Three boxes of 17 hold 41."
QUESTIONS = "Here they are:\n1. What is 3 times 17?\n2) Are there three boxes?\n"
ANSWERS = {"What is 3 times 17?": "3 × 17 = 51", "Are there three boxes?": "Yes."}
FINAL = "They hold 51."


def answer(prompt: str) -> str:
    """What is said to the end of a rendered prompt."""
    if "Write a numbered list" in prompt:
        return QUESTIONS
    if "somebody who did not see" in prompt:
        return FINAL
    return next((said for question, said in ANSWERS.items() if question in prompt), DRAFT)


class Scripted(Sampler):
    """Says what ``say`` does to each prompt, and remembers what it was asked."""

    def __init__(self, say: Callable[[str], str] = answer) -> None:
        self.say = say
        self.calls: list[list[str]] = []
        self.asked: list[Asked] = []

    def write(self, asked: Sequence[Asked], on_written: Callable[[int], None]) -> list[Written]:
        self.calls.append([TOKENIZER.decode(one.prompt_ids) for one in asked])
        self.asked += asked
        on_written(len(asked))
        ids = [TOKENIZER(self.say(prompt))["input_ids"] for prompt in self.calls[-1]]
        fits = [len(one) < of.sampling.max_new_tokens for one, of in zip(ids, asked, strict=True)]
        return [
            Written(np.array([*one, END] if whole else one, np.uint32), "stop" if whole else "length")
            for one, whole in zip(ids, fits, strict=True)
        ]

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("generator"), max_position_embeddings=4096)


def config(generator: Path, folder: Path, **reasoning: Any) -> GenerateConfig:
    records = [
        {"prompt": ASKED},
        {"messages": [{"role": "system", "content": "Count."}, {"role": "user", "content": "?"}]},
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = {"path": str(folder / "prompts.jsonl")}
    return generate_config(
        generator,
        folder / "prompts.jsonl",
        folder / "replies",
        prompts={"sources": [{**source, "layer": "reasoning"}, {**source, "layer": "base"}], "deduplicate": False},
        sampling={"samples": 1, "max_new_tokens": 200},
        reject={"repeated_tokens": None, "refusals": ["No way"]},
        reasoning={"format": "chain_of_verification", "part_tokens": 100, "questions": 3, **reasoning},
    )


def run(
    settings: GenerateConfig, sampler: Sampler, worker: Worker | None = None
) -> tuple[GenerationSummary, list[tuple[Prompt, Reply]]]:
    with mock.patch("teacher_cache.generation.generation_job.open_sampler", return_value=nullcontext(sampler)):
        summary = generate(settings, worker)
    storage = Storage(settings.output.path)
    return summary, list(replies_of(storage, read_generated(storage)))


def test_a_reply_holds_all_parts_and_is_a_sequence_of_a_corpus(generator: Path, tmp_path: Path) -> None:
    summary, found = run(config(generator, tmp_path), Scripted())
    assert (summary.replies, summary.accepted) == (4, 4)
    chain = Chain(DRAFT, tuple(ANSWERS), tuple(ANSWERS.values()), FINAL)
    for prompt, reply in found:
        assert reply.made == ("chain_of_verification" if prompt.layer == "reasoning" else "")
        assert parse_chain(reply.reply) == (chain if prompt.layer == "reasoning" else None)
        assert reply.reply_ids.tolist() == [*TOKENIZER(reply.reply)["input_ids"], END]
        sample = ready_sample(prompt, reply, ByteTokenizer(TOKENIZER), np.empty(0, np.uint32), "here")
        assert sample.text == prompt.prompt + reply.reply + "<|im_end|>"


def test_answers_are_asked_for_without_the_draft(generator: Path, tmp_path: Path) -> None:
    sampler = Scripted()
    run(config(generator, tmp_path), sampler)
    drafts, questions, answers, finals = sampler.calls
    assert [len(call) for call in sampler.calls] == [4, 2, 4, 2], "the chains of a unit go through a stage together"
    assert all(DRAFT in prompt for prompt in (*questions, *finals))
    assert not any(DRAFT in prompt or "41" in prompt for prompt in (*drafts, *answers))
    assert all(prompt.count("<|im_start|>user") == 1 for prompt in answers), "in the user's own message"
    assert [question in prompt for prompt, question in zip(answers, [*ANSWERS] * 2, strict=True)] == [True] * 4
    assert ASKED in answers[0]
    assert all(question in finals[0] and said in finals[0] for question, said in ANSWERS.items())
    assert "3 short questions" in questions[0]
    assert len({one.seed for one in sampler.asked}) == 12, "each has random numbers of its own"
    assert [one.sampling.max_new_tokens for one in sampler.asked] == [200] * 4 + [100] * 6 + [200] * 2


def test_thoughts_are_left_out(generator: Path, tmp_path: Path) -> None:
    _, found = run(config(generator, tmp_path), Scripted(lambda prompt: f"<think>\n1. Hm?</think>\n\n{answer(prompt)}"))
    assert parse_chain(found[0][1].reply) == Chain(DRAFT, tuple(ANSWERS), tuple(ANSWERS.values()), FINAL)
    assert "Hm" not in found[0][1].reply
    assert "Hm" in found[2][1].reply, "in other layers a reply is as it was written"


@pytest.mark.parametrize(
    ("at", "said", "reason", "stages"),
    [
        (DRAFT, "No way.", "refused", 1),
        (DRAFT, "x <final> y", "incomplete", 4),
        (DRAFT, "a" * 500, "truncated", 1),
        (QUESTIONS, "There is nothing to ask.", "incomplete", 2),
        (QUESTIONS, "a\n" * 300, "truncated", 2),
        ("Yes.", "", "empty", 3),
        ("Yes.", "Yes.\nA2: no", "incomplete", 4),
        ("Yes.", "Yes.<|endoftext|>", "special", 3),
        (FINAL, "No way.", "refused", 4),
        (FINAL, "</final>", "incomplete", 4),
    ],
)
def test_a_chain_has_the_reason_of_the_part_that_failed(
    generator: Path, tmp_path: Path, at: str, said: str, reason: str, stages: int
) -> None:
    sampler = Scripted(lambda prompt: said if answer(prompt) == at else answer(prompt))
    summary, found = run(config(generator, tmp_path), sampler)
    assert summary.complete
    assert [reply.reason for prompt, reply in found if prompt.layer == "reasoning"] == [reason] * 2
    assert len(sampler.calls) == stages, "nothing is asked after a part that failed"


def test_a_stage_that_does_not_fit_is_incomplete(generator: Path, tmp_path: Path) -> None:
    long = {"ask_answer": "{question}" * 400}
    _, found = run(config(generator, tmp_path, **long), Scripted())
    assert [reply.reason for _, reply in found] == ["incomplete", "incomplete", "", ""]


def test_what_cannot_work_is_an_error(generator: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reasoning: draft, questions, answers and reply: \d+ and prompts\.max_tokens"):
        run(config(generator, tmp_path, questions=16, part_tokens=1000), Scripted())
    with pytest.raises(UserError, match=r"ask_final.*must hold {answers}"):
        config(generator, tmp_path, ask_final="Go on.")
    with pytest.raises(UserError, match=r"reasoning\.layers: code: no source has this layer"):
        config(generator, tmp_path, layers=["code"])


def test_workers_make_the_same_files_as_one(generator: Path, tmp_path: Path) -> None:
    def made(name: str, *workers: Worker) -> dict[str, bytes]:
        settings = config(generator, tmp_path)
        output = settings.output.model_copy(update={"path": str(tmp_path / name), "replies_per_shard": 1})
        for worker in workers:
            run(settings.model_copy(update={"output": output}), Scripted(), worker)
        files = [path for path in (tmp_path / name).iterdir() if not path.name.startswith(".lease")]
        return {path.name: path.read_bytes() for path in files}

    parts = made("parts", Worker(1, 2), Worker(0, 2))
    assert parts == made("whole", Worker())
    assert len(parts) == 1 + 3 * 4, "four units"


def test_other_settings_of_reasoning_do_not_continue_a_place(generator: Path, tmp_path: Path) -> None:
    run(config(generator, tmp_path), Scripted())
    with pytest.raises(UserError, match=r"reasoning\.questions: 3 there, 2 now"):
        run(config(generator, tmp_path, questions=2), Scripted())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. One?\n2. Two?\n3. Three?", ["One?", "Two?"]),
        ("Q1: One?\n\nQ2: Two?", ["One?", "Two?"]),
        ("- One?\n* Two?", ["One?", "Two?"]),
        ("1) One?\n1) One?", ["One?"]),
        ("These:\nOne?\nTwo? \nThat is all.", ["One?", "Two?"]),
        ("1. 2. 3.\n2. Two?", ["Two?"]),
        ("None come to mind.", []),
    ],
)
def test_questions_are_taken_from_lists(text: str, expected: list[str]) -> None:
    assert listed(text, 2) == expected
