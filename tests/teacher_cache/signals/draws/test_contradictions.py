"""Draws are checked against stored entries: correct ones pass whatever the rounding, those of another row do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CaptureConfig, CodecConfig, DrawsCapture, LogitsCapture
from schemas.manifest import Manifest
from support.synthetic import random_shards, write_cache
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import LogitsSample, Request
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.draws.capture import draw, to_draws_sample, uniforms
from teacher_cache.signals.draws.codec import DrawsCodec
from teacher_cache.signals.draws.contradictions import draws_contradictions
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.logits.capture import reduce_logits, to_sample
from teacher_cache.signals.logits.codec import LogitsCodec

VOCABULARY, ROWS = 61, 24


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = str(tmp_path_factory.mktemp("base"))
    write_cache(folder, random_shards([[5]], VOCABULARY), VOCABULARY)
    return read_manifest(Storage(folder))


def stored(
    base: Manifest, capture: CaptureConfig, codec: CodecConfig, seed: int, scale: float
) -> tuple[DrawsSample, LogitsSample, Manifest]:
    """Draws and logits of random rows, as they come back from disk."""
    assert capture.draws is not None
    rng = np.random.default_rng(seed)
    logits_PV = torch.from_numpy((scale * rng.normal(0, 2, (ROWS, VOCABULARY))).astype(np.float32))
    ids = rng.integers(0, VOCABULARY, ROWS + 1).astype(np.uint32)
    request = Request(ids, np.arange(ROWS, dtype=np.int32), seed=seed)
    rows = reduce_logits(
        logits_PV, torch.from_numpy(ids[1:].astype(np.int64)), capture.logits.k, capture.logits.temperatures
    )
    head = rows.ids_NK if capture.draws.region == "tail" else None
    drawn = draw(logits_PV, head, torch.from_numpy(uniforms(request, capture.draws)), capture.draws.temperatures)
    table = CodeTable(np.arange(VOCABULARY, dtype=np.int32))
    logits_codec, draws_codec = LogitsCodec(capture.logits, codec, table), DrawsCodec(capture.draws, codec, table)
    logits = to_sample(rows, request, capture.logits)
    return (
        draws_codec.decode(draws_codec.encode(to_draws_sample(request.logits_positions, drawn)), ROWS + 1),
        logits_codec.decode(logits_codec.encode(logits), ROWS + 1),
        base.model_copy(update={"capture": capture, "codec": codec}),
    )


CAPTURES = st.builds(
    lambda k, temperatures, n, region: CaptureConfig(
        logits=LogitsCapture(k=k, temperatures=temperatures),
        draws=DrawsCapture(n=n, region=region, temperatures=temperatures),
    ),
    k=st.sampled_from([1, 8, VOCABULARY]),
    temperatures=st.sampled_from([[1.0], [1.0, 3.0], [0.5, 1.0]]),
    n=st.sampled_from([1, 12, 50]),
    region=st.sampled_from(["all", "tail"]),
)
CODECS = st.builds(CodecConfig, logprobs=st.sampled_from(["steps", "bfloat16", "float16", "float32"]))


@settings(max_examples=60, deadline=None)
@given(capture=CAPTURES, codec=CODECS, seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 0.1, 1.0, 4.0, 100.0]))
def test_correct_draws_have_no_contradictions(
    base: Manifest, capture: CaptureConfig, codec: CodecConfig, seed: int, scale: float
) -> None:
    draws, logits, manifest = stored(base, capture, codec, seed, scale)
    assert list(draws_contradictions(draws, logits, capture.draws, manifest)) == []


@pytest.mark.parametrize("region", ["all", "tail"])
def test_draws_of_the_previous_row_have_contradictions(base: Manifest, region: str) -> None:
    capture = CaptureConfig.model_validate(
        {"logits": {"k": 8, "temperatures": [1.0]}, "draws": {"n": 12, "region": region, "temperatures": [1.0]}}
    )
    draws, logits, manifest = stored(base, capture, CodecConfig(), 1, 1.0)
    shifted = replace(draws, ids=np.roll(draws.ids, 1, axis=0))
    found = draws_contradictions(shifted, logits, capture.draws, manifest)
    assert any(len(rows) > ROWS / 4 for _, rows in found)
    shifted = replace(draws, entropy=np.roll(draws.entropy, 1, axis=0))
    ((what, rows),) = draws_contradictions(shifted, logits, capture.draws, manifest)
    assert set(rows.tolist()) <= set(draws.positions.tolist())
    assert what == "the entropy at temperature 1 contradicts the stored entries"
