"""`verify` looks into hidden states and attention rows too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.cache_config import CacheConfig
from schemas.load import validate
from schemas.manifest import Manifest
from support.forge import change_payload
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache.job import run
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.hidden.codec import HiddenCodec
from tools.checking.verify import verify


@pytest.fixture(scope="module", params=["int8", "int4", "float8_e4m3", "bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(tmp_path: Path, dtype: str) -> str:
    corpus = write_text_corpus(tmp_path / "corpus", documents=3)
    capture = {"hidden": {"layers": [1], "dtype": dtype}, "attention": {"heads": 1}}
    tree = cache_tree(write_random_teacher(tmp_path / "teacher"), corpus, tmp_path / "cache", capture=capture)
    run(validate(CacheConfig, tree, "test"))
    return str(tmp_path / "cache")


def spoiled(manifest: Manifest, num_tokens: int, array: str, bits: int) -> Callable[[bytes], bytes]:
    """Puts ``bits`` in the first entry of one array of a hidden payload."""
    assert manifest.capture.hidden is not None
    codec = HiddenCodec(
        manifest.capture.hidden, manifest.codec, len(manifest.capture.hidden.layers), manifest.teacher.hidden_size
    )

    def change(payload: bytes) -> bytes:
        sample = codec.decode(payload, num_tokens)
        entries = getattr(sample, array).reshape(-1)
        entries[0] = np.array(bits, f"u{entries.itemsize}").view(entries.dtype)
        return codec.encode(sample)

    return change


INFINITE = {
    "int8": ("scales", 0x7F80),
    "int4": ("outliers", 0xFF80),
    "float8_e4m3": ("values", 0x7F),
    "bfloat16": ("values", 0xFF80),
    "float16": ("values", 0x7C01),
}
FINITE = {
    "int8": ("outliers", 0x7F7F),
    "int4": ("values", 0x88),
    "float8_e4m3": ("values", 0x7E),
    "bfloat16": ("values", 0x7F7F),
    "float16": ("values", 0x7BFF),
}


def test_states_that_are_not_finite_are_a_problem(url: str, dtype: str) -> None:
    reader = CacheReader(url)
    assert verify(url).problems == []
    array, bits = INFINITE[dtype]
    change_payload(url, "hidden", 1, spoiled(reader.manifest, int(reader.num_tokens[1]), array, bits))
    (problem,) = verify(url).problems
    assert problem.startswith(f"shard-000000.hidden.tar: sample {reader.keys[1]}: the {array} of its hidden states")


def test_large_but_finite_states_are_fine(url: str, dtype: str) -> None:
    reader = CacheReader(url)
    change_payload(url, "hidden", 1, spoiled(reader.manifest, int(reader.num_tokens[1]), *FINITE[dtype]))
    assert verify(url).problems == []


def test_a_broken_attention_payload_is_a_problem(url: str) -> None:
    change_payload(url, "attention", 0, lambda payload: payload[:-9])
    (problem,) = verify(url).problems
    assert problem.startswith("shard-000000.attention.tar: sample ")
