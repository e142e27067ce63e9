"""Dumps of log-probabilities, as servers return them, become caches with the values of our own capture."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from schemas.train_config import TrainConfig
from support.logged import losses
from support.models import tiny_tokenizer, write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.shards.reader import CacheReader
from tools.bridges.captured_source import CapturedOptions
from tools.bridges.imports import import_files
from tools.checking.verify import verify
from trainer.distiller import distill

K = 8
STEP = 1 / 32  # nats, between stored log-probabilities
Tree = dict[str, Any]
TOKENIZER = tiny_tokenizer()
HELLO, X, DEF = (TOKENIZER.encode(text)[0] for text in ("h", "x", "def"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("logprobs") / "teacher")


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> CacheReader:
    """Our own capture: the K likeliest tokens of every row."""
    folder = tmp_path_factory.mktemp("captured")
    corpus = write_text_corpus(folder / "corpus", documents=16, words=30)
    capture = {"logits": {"k": K, "temperatures": [1.0], "positions": "loss_mask"}, "draws": None}
    tree = cache_tree(model_folder, corpus, folder / "cache", max_tokens=40, tokens_per_shard=200, capture=capture)
    job.run(validate(CacheConfig, tree, where="test"))
    return CacheReader(str(folder / "cache"), ("tokens", "logits"))


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, captured: CacheReader) -> Path:
    """What vLLM returns for the same sequences: of each token but the first the K likeliest, and the token itself."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    path = tmp_path_factory.mktemp("dump") / "dump.jsonl"
    with path.open("w") as file, torch.no_grad():
        for position in range(len(captured)):
            ids = captured.read_tokens(position).input_ids.astype(np.int64)
            logprobs_LV = model(torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
            rows: list[Tree | None] = [None]
            for logprobs_V, token in zip(logprobs_LV[:-1], ids[1:].tolist(), strict=True):
                order = logprobs_V.argsort(descending=True).tolist()
                named = [token, *(each for each in order[:K] if each != token)]
                rows.append(
                    {str(each): {"logprob": float(logprobs_V[each]), "rank": order.index(each) + 1} for each in named}
                )
            file.write(json.dumps({"prompt_token_ids": ids.tolist(), "prompt_logprobs": rows}) + "\n")
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, dump: Path) -> CacheReader:
    url = str(tmp_path_factory.mktemp("imported") / "cache")
    import_files(str(dump), url, "logprobs", CapturedOptions(str(model_folder), teacher_dtype="float32"), 200, silent)
    return CacheReader(url, ("tokens", "logits"))


def silent(*_: int) -> None:
    pass


def read(path: Path, model_folder: Path, *lines: Tree) -> CacheReader:
    """The cache made from these lines."""
    (path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    url = str(path / "cache")
    import_files(str(path / "lines.jsonl"), url, "logprobs", CapturedOptions(str(model_folder)), 1000, silent)
    return CacheReader(url, ("tokens", "logits"))


def test_a_dump_has_the_values_of_our_own_capture(captured: CacheReader, imported: CacheReader) -> None:
    assert verify(imported.url).problems == []
    assert sorted(imported.keys) == sorted(captured.keys)
    assert imported.manifest.teacher == captured.manifest.teacher
    assert imported.manifest.capture.logits == captured.manifest.capture.logits
    others, n_rows = 0, 0
    for place, key in enumerate(imported.keys):
        one, other = imported.read_logits(place), captured.read_logits(captured.keys.index(key))
        mine, theirs = imported.read_tokens(place), captured.read_tokens(captured.keys.index(key))
        assert mine.text == theirs.text
        for field in ("input_ids", "loss_mask", "byte_start", "byte_end"):
            np.testing.assert_array_equal(getattr(mine, field), getattr(theirs, field))
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(np.sort(one.ids, axis=1), np.sort(other.ids, axis=1))
        for field in ("logprobs", "next_logprob"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=STEP + 1e-6)
        others += int((one.logprobs != other.logprobs).sum())
        n_rows += len(one.positions)
    assert others <= 0.01 * n_rows * K, "values that lie between two steps may be rounded to either"


def test_a_student_learns_from_a_dump_as_from_our_own_capture(
    captured: CacheReader, imported: CacheReader, model_folder: Path, tmp_path: Path
) -> None:
    found = {}
    for name, url in (("captured", captured.url), ("imported", imported.url)):
        tree: Tree = {
            "data": {"cache": url},
            "student": {"teacher": str(model_folder), "from_layers": [0]},
            "losses": {"tla": {}, "cross_entropy": {"weight": {"start": 0.3, "end": 0.3}}},
            "optimizer": {"lr": 1e-3},
            "loop": {"max_steps": 8, "micro_batch_size": 4, "save_every": 8, "log_every": 1},
            "output": str(tmp_path / name),
        }
        distill(TrainConfig.model_validate(tree))
        found[name] = losses(tmp_path / name)
    assert len(found["captured"]) == 8
    for (step, one), (_, other) in zip(found["captured"], found["imported"], strict=True):
        assert other == pytest.approx(one, abs=2e-3), step


def entry(token: str, logprob: float, **more: Any) -> Tree:
    return {"token": token, "logprob": logprob, "bytes": [*token.encode()], **more}


CONTENT = [
    entry("x", -0.5, top_logprobs=[entry("x", -0.5), entry("def", -1.5)]),
    entry("def", -3.0, top_logprobs=[entry("x", -0.7), entry("h", -1.0)]),
]
TEXTS = {
    "tokens": ["x", "def"],
    "token_logprobs": [-0.5, -3.0],
    "top_logprobs": [{"x": -0.5, "def": -1.5}, {"x": -0.7, "h": -1.0}],
}
IDS = [{str(X): -0.5, str(DEF): -1.5}, {str(DEF): -3.0, str(X): -0.7, str(HELLO): -1.0}]
FORMS: dict[str, Tree] = {
    "chat": {"prompt": "h", "choices": [{"logprobs": {"content": CONTENT}}]},
    "a batch": {
        "request": {"body": {"prompt": "h"}},
        "response": {"body": {"choices": [{"logprobs": {"content": CONTENT}}]}},
    },
    "completions": {"prompt": "h", "choices": [{"logprobs": TEXTS}]},
    "an echo": {
        "choices": [
            {
                "logprobs": {
                    "tokens": ["h", *TEXTS["tokens"]],
                    "token_logprobs": [None, *TEXTS["token_logprobs"]],
                    "top_logprobs": [None, *TEXTS["top_logprobs"]],
                }
            }
        ]
    },
    "ids as texts": {
        "prompt_token_ids": [HELLO],
        "choices": [
            {
                "logprobs": {
                    "tokens": [f"token_id:{X}", f"token_id:{DEF}"],
                    "token_logprobs": [-0.5, -3.0],
                    "top_logprobs": [
                        {f"token_id:{X}": -0.5, f"token_id:{DEF}": -1.5},
                        {"bytes:\\x78": -0.7, f"token_id:{HELLO}": -1.0},
                    ],
                }
            }
        ],
    },
    "a prompt": {"prompt_token_ids": [HELLO, X, DEF], "prompt_logprobs": [None, *IDS]},
    "a prompt and its outputs": {
        "prompt_token_ids": [HELLO, X],
        "prompt_logprobs": [None, IDS[0]],
        "outputs": [{"token_ids": [DEF], "logprobs": [IDS[1]]}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str, model_folder: Path, tmp_path: Path) -> None:
    reader = read(tmp_path, model_folder, FORMS[form])
    tokens, logits = reader.read_tokens(0), reader.read_logits(0)
    assert tokens.text == "hxdef"
    assert tokens.input_ids.tolist() == [HELLO, X, DEF]
    assert tokens.loss_mask.tolist() == [True, True, False]
    assert logits.positions.tolist() == [0, 1]
    assert logits.ids.tolist() == [[X, DEF], [X, HELLO]]
    np.testing.assert_allclose(logits.logprobs, [[-0.5, -1.5], [-0.7, -1.0]], atol=STEP / 2)
    np.testing.assert_allclose(logits.next_logprob, [-0.5, -3.0], atol=STEP)
    assert not logits.log_partition.any()
    assert verify(reader.url).problems == []


def test_messages_are_rendered_with_the_chat_template(model_folder: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hx"}]
    reader = read(tmp_path, model_folder, {"messages": messages, "choices": [{"logprobs": {"content": CONTENT}}]})
    tokens = reader.read_tokens(0)
    assert tokens.text == "<|im_start|>user\nhx<|im_end|>\n<|im_start|>assistant\nxdef"
    assert np.flatnonzero(tokens.loss_mask).tolist() == [len(tokens.input_ids) - 3, len(tokens.input_ids) - 2]


def test_rows_of_tokens_with_a_negative_label_are_left_out(model_folder: Path, tmp_path: Path) -> None:
    reader = read(tmp_path, model_folder, FORMS["a prompt"] | {"labels": [-100, -100, DEF]})
    assert reader.read_tokens(0).loss_mask.tolist() == [False, True, False]
    assert reader.read_logits(0).positions.tolist() == [1]


def test_a_row_is_cut_before_a_name_that_is_no_token(model_folder: Path, tmp_path: Path) -> None:
    top = [{"x": -0.5, "no token": -1.5, "def": -2.0}, {"no token": -0.1, "x": -2.6, "h": -3.1}]
    line = {"prompt": "h", "choices": [{"logprobs": TEXTS | {"top_logprobs": top}}]}
    reader = read(tmp_path, model_folder, line)
    assert reader.read_tokens(0).loss_mask.tolist() == [True, False, False]
    logits = reader.read_logits(0)
    assert (logits.counts.tolist(), logits.ids[0, 0]) == ([1], X)
    derived = reader.manifest.derived
    assert derived is not None
    assert "2 rows were cut before a token that the tokenizer does not have exactly once" in derived.notes


def test_no_probability_at_all_is_not_stored(model_folder: Path, tmp_path: Path) -> None:
    top = [{"x": -0.5, "h": -9999.0}, {"x": -0.7, "h": -0.9}]
    reader = read(tmp_path, model_folder, {"prompt": "h", "choices": [{"logprobs": TEXTS | {"top_logprobs": top}}]})
    assert reader.read_logits(0).counts.tolist() == [1, 2]


def without(tree: Tree, *names: str) -> Tree:
    return {name: value for name, value in tree.items() if name not in names}


NAN = [None, {str(X): math.nan, str(DEF): -1.0}, IDS[1]]
BAD: dict[str, tuple[Any, str]] = {
    "no prompt": (without(FORMS["chat"], "prompt"), "generated tokens alone; add the request's prompt or messages"),
    "no ids": (without(FORMS["a prompt"], "prompt_token_ids"), "prompt_logprobs without prompt_token_ids"),
    "too few rows": (FORMS["a prompt"] | {"prompt_logprobs": [None]}, "1 prompt_logprobs of 3 prompt_token_ids"),
    "no such id": (FORMS["a prompt"] | {"prompt_token_ids": [HELLO, X, 9999]}, "input_ids from .* to 9999, wanted 0"),
    "no log-probabilities": ({"prompt": "h", "choices": [{}]}, "no position with log-probabilities"),
    "not a number": (FORMS["a prompt"] | {"prompt_logprobs": NAN}, "not a finite number|cannot|descending"),
    "more than certain": (
        FORMS["a prompt"] | {"prompt_logprobs": [None, {str(X): 1.5, str(DEF): -1.0}, IDS[1]]},
        "probabilit",
    ),
    "an unknown name": (
        {"prompt": "h", "choices": [{"logprobs": TEXTS | {"tokens": ["x", "no token"]}}]},
        "'no token' is not the name of exactly one token of the tokenizer; ask for token ids",
    ),
    "labels": (FORMS["a prompt"] | {"labels": [1]}, "1 labels of 3 tokens"),
    "a list": ([1, 2], "not a response with log-probabilities"),
    "a text": (FORMS["a prompt"] | {"prompt_logprobs": "abc"}, "not a response with log-probabilities"),
    "a huge number": (FORMS["a prompt"] | {"prompt_token_ids": [HELLO, X, 2**70]}, "not a response|wanted 0 to"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_that_names_it(case: str, model_folder: Path, tmp_path: Path) -> None:
    line, problem = BAD[case]
    with pytest.raises(UserError, match=problem) as caught:
        read(tmp_path, model_folder, FORMS["a prompt"] if case != "no log-probabilities" else line, line)
    assert "\n" not in str(caught.value)
    assert "lines.jsonl" in str(caught.value)
    assert case == "no log-probabilities" or "line 2" in str(caught.value)
    assert not (tmp_path / "cache").exists() or not any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"prompt": "h"', "line 1: not a JSON object"),
        (b"[" * 100_000, "line 1: not a JSON object"),
        (b"\xff\xfe", "line 1: not a JSON object"),
        (b"", "no position with log-probabilities"),
    ],
)
def test_what_is_no_json_is_one_line(content: bytes, problem: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        import_files(
            str(tmp_path), str(tmp_path / "cache"), "logprobs", CapturedOptions(str(model_folder)), 1000, silent
        )


def test_a_line_beyond_the_limit_is_not_read(model_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tools.bridges.logprob_lines.MAX_LINE_BYTES", 100)
    with pytest.raises(UserError, match=r"lines\.jsonl: line 1: more than 100 bytes; split the record"):
        read(tmp_path, model_folder, FORMS["chat"])


def test_the_teacher_must_be_given(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="--teacher: dumps of log-probabilities do not say"):
        import_files(str(tmp_path), str(tmp_path / "cache"), "logprobs", CapturedOptions(), 1000, silent)
