"""Other teams decode the same from the description alone, whatever is captured."""

import ast
import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from schemas.cache_config import CacheConfig, CodecConfig, LogitsCapture
from schemas.load import validate
from support import plain_decoder
from support.golden import BUNDLED, EVERY_VERSION, WITH_CHATS
from support.models import write_random_teacher, write_text_corpus
from support.plain_decoder import read_samples
from support.synthetic import random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.codec.logprobs import FloatDtype
from teacher_cache.records import TokenSample
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.vocabulary_file import read_vocabulary
from teacher_cache.signals.hidden.capture import to_floats

LENGTHS = [[20, 1, 31], [7, 40], [3]]
LOGITS = {  # and the share of the rows that count, the vocabulary, the codec
    "top_k": (LogitsCapture(k=8), 1.0, 300, CodecConfig()),
    "nucleus": (
        LogitsCapture(policy="nucleus", k=40, temperatures=[2.0, 1.0, 4.0], positions="all"),
        1.0,
        300,
        CodecConfig(logprob_steps_per_nat=300, scalar_steps_per_nat=16),
    ),
    "scattered": (LogitsCapture(k=30), 0.5, 70_000, CodecConfig()),
    **{
        dtype: (LogitsCapture(policy="nucleus", k=30), 0.6, 300, CodecConfig(logprobs=dtype))
        for dtype in get_args(FloatDtype)
    },
}
OTHERS: dict[str, dict[str, Any]] = {
    "int8": {
        "draws": {"n": 40, "temperatures": [1.0, 3.0]},
        "final": {"channels_per_scale": 24, "channels_per_outlier": 30},
        "hidden": {"layers": [1, 2], "positions": {"every": 3}},
        "attention": {"heads": 2, "keys": 5, "positions": {"every": 4}},
    },
    "small": {
        "draws": {"n": 9},
        "final": {"dtype": "float8_e4m3"},
        "hidden": {"layers": [1], "dtype": "int4", "channels_per_scale": 5},
        "attention": {"heads": 1},
    },
    "floats": {
        "draws": {"n": 9, "region": "all"},
        "final": {"dtype": "float16", "positions": "all"},
        "hidden": {"layers": [2], "dtype": "bfloat16", "positions": "keywords"},
        "attention": {"heads": [1], "keys": 50},
    },
}


def check_tokens_and_logits(sample: dict[str, Any], tokens: TokenSample, reader: CacheReader, position: int) -> None:
    assert sample["tokens"].keys() == vars(tokens).keys()
    for name, value in vars(tokens).items():
        np.testing.assert_array_equal(sample["tokens"][name], value, err_msg=name)
    logits = vars(reader.read_logits(position))
    assert sample["logits"].keys() == logits.keys() - {"num_tokens"}
    for name, found in sample["logits"].items():
        assert found.shape == logits[name].shape
        np.testing.assert_allclose(found, logits[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", LOGITS)
def test_tokens_and_logits(tmp_path: Path, name: str) -> None:
    capture, counting, vocabulary, codec = LOGITS[name]
    shards = random_shards(LENGTHS, vocabulary, capture, counting=counting)
    write_cache(str(tmp_path), shards, vocabulary, capture, codec)
    reader, samples = CacheReader(str(tmp_path)), read_samples(tmp_path)
    assert list(samples) == reader.keys
    for position, sample in enumerate(samples.values()):
        check_tokens_and_logits(sample, reader.read_tokens(position), reader, position)


def check_all_signals(folder: Path) -> None:
    signals = ("tokens", "logits", "draws", "final", "hidden", "attention")
    reader, samples = CacheReader(str(folder), signals), read_samples(folder)
    capture = reader.manifest.capture
    assert capture.final is not None
    assert capture.hidden is not None
    assert list(samples) == reader.keys
    rows = dict.fromkeys(signals, 0)
    for position, sample in enumerate(samples.values()):
        assert sample.keys() == set(signals)
        check_tokens_and_logits(sample, reader.read_tokens(position), reader, position)
        final, hidden = reader.read_final(position), reader.read_hidden(position)
        wanted: dict[str, dict[str, np.ndarray]] = {
            "draws": vars(reader.read_draws(position)),
            "final": {"positions": final.positions, "states": to_floats(final, capture.final).numpy()},
            "hidden": {"positions": hidden.positions, "states": to_floats(hidden, capture.hidden).numpy()},
            "attention": vars(reader.read_attention(position)),
        }
        for signal, arrays in wanted.items():
            assert sample[signal].keys() == arrays.keys()
            rows[signal] += len(arrays["positions"])
            for field, array in arrays.items():
                found = sample[signal][field]
                assert found.shape == array.shape
                np.testing.assert_allclose(found, array, rtol=1e-6, err_msg=f"{signal}: {field}")
    assert all(rows[signal] > 0 for signal in wanted)


@pytest.mark.parametrize("name", OTHERS)
def test_all_other_signals(tmp_path: Path, name: str) -> None:
    corpus = write_text_corpus(tmp_path / "corpus", documents=6)
    teacher, capture = write_random_teacher(tmp_path / "teacher"), {"logits": {"k": 30}, **OTHERS[name]}
    tree = cache_tree(teacher, corpus, tmp_path / "cache", tokens_per_shard=200, capture=capture)
    job.run(validate(CacheConfig, tree, "test"))
    check_all_signals(tmp_path / "cache")


@pytest.mark.parametrize("cache", EVERY_VERSION, ids=lambda cache: cache.name)
def test_the_golden_caches(cache: Path) -> None:
    check_all_signals(cache)


def test_the_vocabulary_and_the_chats_of_the_golden_cache() -> None:
    reader = CacheReader(str(WITH_CHATS))
    wanted = read_vocabulary(Storage(str(WITH_CHATS)), reader.manifest)
    found = plain_decoder.read_vocabulary(WITH_CHATS)
    assert [token for token, _, _ in found] == [wanted.table.token(i) for i in range(len(found))]
    assert [special for _, special, _ in found] == wanted.is_special_V.tolist()
    assert [stop for _, _, stop in found] == wanted.is_stop_V.tolist()
    chats = [json.loads(each["tokens"]["chat"] or "{}") for each in read_samples(WITH_CHATS).values()]
    contents = [
        each["tokens"]["text"].encode()[slice(*message["spans"]["content"])].decode()
        for each, chat in zip(read_samples(WITH_CHATS).values(), chats, strict=True)
        for message in chat.get("messages", [])
    ]
    assert contents == [text for i in range(4) for text in (f"{i} + {i}?", f"{2 * i}.")]


def test_it_imports_nothing_of_this_project() -> None:
    roots = set()
    for node in ast.walk(ast.parse(Path(plain_decoder.__file__).read_text())):
        if isinstance(node, ast.Import):
            roots |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0] if node.level == 0 else "a relative import")
    assert roots - sys.stdlib_module_names == {"numpy", "pyarrow", "webdataset", "zstandard"}


def test_every_payload_is_bound_to_the_manifest_as_the_format_says() -> None:
    """With hashlib, json and base64 alone: manifest → index → payload."""
    text = (BUNDLED / "manifest.json").read_bytes()
    manifest = json.loads(text)
    before, _, after = text.rpartition(manifest["sha256"].encode())
    assert hashlib.sha256(before + after).hexdigest() == manifest["sha256"]
    for shard in manifest["shards"]:
        data = (BUNDLED / f"{shard['name']}.json").read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["index"]["sha256"]
        index = json.loads(data)
        assert index["signals"].keys() == shard["files"].keys()
        for signal, member in index["signals"].items():
            tar = (BUNDLED / f"{shard['name']}.{signal}.tar").read_bytes()
            payloads = [tar[at : at + n] for at, n in zip(member["offsets"], member["sizes"], strict=True)]
            found = b"".join(hashlib.sha256(payload).digest()[:16] for payload in payloads)
            assert base64.b64encode(found).decode() == member["digests"]
            assert len(payloads) == len(index["keys"])
