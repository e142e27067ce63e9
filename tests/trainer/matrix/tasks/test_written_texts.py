"""Tiny models write in both backends; what was written before a cell was killed is not written again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM

from schemas.errors import UserError
from schemas.matrix_base import Backends, HfSettings, MatrixModel, VllmSettings
from schemas.matrix_tasks import LongContextTask
from support.models import tiny_tokenizer, write_random_teacher
from trainer.matrix.tasks import hf_writer
from trainer.matrix.tasks.asked_text import Sampling, seed_of
from trainer.matrix.tasks.hf_writer import HfWriter
from trainer.matrix.tasks.kept_parts import KeptParts
from trainer.matrix.tasks.prompt_ids import PromptIds, text_after
from trainer.matrix.tasks.vllm_writer import VllmWriter
from trainer.matrix.tasks.written_texts import written_texts

TOKENIZER = tiny_tokenizer()
PROMPTS = ["def f1(x): return", "user assistant", "  # system", "def f25(x):"]
GREEDY, DRAWN = Sampling(12), Sampling(6, samples=5, temperature=1.0, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MatrixModel:
    return MatrixModel(name="m", folder=str(write_random_teacher(tmp_path_factory.mktemp("model") / "model")))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def ids_by_hand(model: MatrixModel, prompts: list[list[int]]) -> list[list[int]]:
    """The most likely token, again and again, from all tokens before it."""
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + GREEDY.max_new_tokens:
            with torch.no_grad():
                ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 0:
                ids.pop()
                break
        found.append(ids[len(prompt) :])
    return found


@pytest.fixture(scope="module")
def by_hand(prompts: list[list[int]], ids_by_hand: list[list[int]]) -> list[str]:
    return [text_after(TOKENIZER, prompt, ids) for prompt, ids in zip(prompts, ids_by_hand, strict=True)]


@pytest.fixture(scope="module")
def writer(model: MatrixModel) -> HfWriter:
    return HfWriter(model, HfSettings(batch_size=2), TOKENIZER)


def test_greedy_texts_are_the_most_likely_tokens(
    writer: HfWriter, prompts: list[list[int]], by_hand: list[str]
) -> None:
    assert writer.write(prompts, GREEDY, [0]) == [[text] for text in by_hand]
    assert len({*by_hand}) == len(by_hand)


def test_vllm_writes_the_same(model: MatrixModel, prompts: list[list[int]], by_hand: list[str]) -> None:
    writer = VllmWriter(model, VllmSettings(eager=True, cpu_kv_cache_gib=1), TOKENIZER, 64)
    assert writer.write(prompts, GREEDY, [0]) == [[text] for text in by_hand]
    drawn = writer.write(prompts, DRAWN, [0])
    assert writer.write(prompts[::-1], DRAWN, [0]) == drawn[::-1]
    assert len({text for texts in drawn for text in texts}) > len(prompts)
    writer.close()


def test_drawn_texts_depend_on_prompt_and_seed_alone(writer: HfWriter, prompts: list[list[int]]) -> None:
    drawn = writer.write(prompts, DRAWN, [0])
    assert [len(texts) for texts in drawn] == [5] * len(prompts)
    assert writer.write(prompts[::-1], DRAWN, [0]) == drawn[::-1]
    assert writer.write(prompts[2:], DRAWN, [0]) == drawn[2:]
    assert all(len({*texts}) > 1 for texts in drawn)
    other = Sampling(6, samples=5, temperature=1.0, top_p=0.9, seed=4)
    assert writer.write(prompts, other, [0]) != drawn


def test_texts_end_before_a_stop(writer: HfWriter, prompts: list[list[int]], by_hand: list[str]) -> None:
    text = by_hand[0]
    stop = text[len(text) // 2 :][:2]
    assert stop
    expected = text[: text.index(stop)]
    assert writer.write(prompts[:1], Sampling(12, stop=("\x01", stop)), [0]) == [[expected]]


def test_texts_end_before_an_end_token(
    writer: HfWriter, prompts: list[list[int]], ids_by_hand: list[list[int]]
) -> None:
    ids = ids_by_hand[0]
    before = ids[: ids.index(ids[3])]
    assert writer.write(prompts[:1], GREEDY, [0, ids[3]]) == [[text_after(TOKENIZER, prompts[0], before)]]
    assert before


def test_seeds_are_of_prompt_and_number() -> None:
    assert len({seed_of(s, p, n) for s in (0, 1) for p in ([1], [1, 1], [11]) for n in (0, 1)}) == 12
    assert 0 <= seed_of(0, [1]) < 2**63


def task(**changes: object) -> LongContextTask:
    return LongContextTask.model_validate({"kind": "long-context", "name": "t", "data": "data.jsonl", **changes})


def write(model: MatrixModel, folder: Path, prompts: Sequence[str] = PROMPTS) -> list[list[str]]:
    return written_texts(task(), model, Backends(), prompts, prompts, GREEDY, folder)


def test_a_killed_cell_continues(
    model: MatrixModel, by_hand: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    plain = HfWriter.write

    def counting(self: HfWriter, prompts: list[list[int]], *rest: object) -> list[list[str]]:
        asked.extend(prompts)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return plain(self, prompts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(HfWriter, "write", counting)
    with pytest.raises(KeyboardInterrupt):
        write(model, tmp_path)
    assert write(model, tmp_path) == [[text] for text in by_hand]
    assert len(asked) == len(PROMPTS) + 1, "the two that were complete are not written again"
    monkeypatch.setattr(hf_writer, "HfWriter", None)  # nothing is loaded if nothing is missing
    assert write(model, tmp_path, PROMPTS[::-1]) == [[text] for text in by_hand[::-1]]


def test_parts_are_of_their_settings(model: MatrixModel, tmp_path: Path) -> None:
    write(model, tmp_path)
    shorter = written_texts(task(), model, Backends(), PROMPTS, PROMPTS, Sampling(3), tmp_path)
    assert all(len(one) < len(other) for (one,), (other,) in zip(shorter, write(model, tmp_path), strict=True))
    assert KeptParts(tmp_path, TypeAdapter(list[list[str]])).find("else") is None


def test_prompts_of_chats_are_in_the_template(model: MatrixModel) -> None:
    ids = PromptIds(model, True).of("hello")
    assert TOKENIZER.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert PromptIds(model, True).end_ids() == [0, 2]
    assert PromptIds(model, False).end_ids() == [0]
    assert TOKENIZER.decode(PromptIds(model, False).of("hello")) == "hello"


def test_long_prompts_lose_their_middle(model: MatrixModel) -> None:
    text = "".join(map(str, range(100)))
    ids = TOKENIZER(text)["input_ids"]
    kept = TOKENIZER.decode(PromptIds(model, False).of(text, 11))
    assert kept == TOKENIZER.decode(ids[:5]) + TOKENIZER.decode(ids[-6:])
    assert PromptIds(model, False).of(text, len(ids)) == ids


def test_models_without_a_chat_template_are_refused(tmp_path: Path) -> None:
    plain = tiny_tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^chat: true: .* has no chat template"):
        PromptIds(MatrixModel(name="m", folder=str(tmp_path)), True)


def test_texts_longer_than_the_model_are_refused(model: MatrixModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^long: 600 tokens of the prompt and max_new_tokens 12 are more than the 512"):
        written_texts(task(), model, Backends(), ["a", "\x02" * 600], ["short", "long"], GREEDY, tmp_path)


def test_leading_spaces_of_a_text_are_kept() -> None:
    class Dropping:
        """As tokenizers of SentencePiece: without a text's first space."""

        def decode(self, ids: Sequence[int], **_: object) -> str:
            return "".join(map(chr, ids)).removeprefix(" ")

    assert text_after(Dropping(), [ord("a")], [ord(" "), ord("b")]) == " b"
    assert text_after(Dropping(), [], [ord("b")]) == "b"
