"""Several caches read and trained on as one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.cache_config import LogitsCapture
from schemas.errors import UserError
from support.callbacks import StopAt
from support.golden import GOLDEN, SIGNALS
from support.logged import losses
from support.synthetic import random_shards, write_cache
from teacher_cache.records import Pieces
from teacher_cache.shards.batch import join_batches
from teacher_cache.shards.reader import CacheReader
from trainer.data.batches import to_tensors
from trainer.data.mixture import CacheMixture, digest_of, read_as_one
from trainer.distiller import distill

ROWS = [[3], [0, 1], [11, 12, 9], [], [15], [2]]  # of 8 + 8 samples


def flat(batch) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in to_tensors(batch, packed=True).items()}


def test_rows_of_several_caches_are_those_of_each() -> None:
    """Every signal, row by row; caches of one content, so that the rows of a single reader are what is wanted."""
    single = CacheReader(str(GOLDEN), SIGNALS)
    assert len(single) == 8
    mixture = CacheMixture([CacheReader(str(GOLDEN), SIGNALS), CacheReader(str(GOLDEN), SIGNALS)])
    found, wanted = flat(mixture.read_rows(ROWS)), flat(single.read_rows([[s % 8 for s in row] for row in ROWS]))
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - {"attention_sample"}:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    for signal in ("hidden", "attention", "draws", "final"):  # their entries are in the order of the rows
        order = np.lexsort((found[f"{signal}_column"], found[f"{signal}_batch_row"]))
        np.testing.assert_array_equal(order, np.arange(len(order)))
    numbered = set(zip(found["attention_sample"], found["attention_batch_row"], strict=True))
    assert len(numbered) == len(set(found["attention_sample"])) == len(set(wanted["attention_sample"]))
    assert (np.diff(found["attention_sample"]) >= 0).all()


def test_which_rows_have_whole_distributions_is_joined_with_them() -> None:
    parts = [CacheReader(str(GOLDEN), ("tokens",)).read_rows(rows) for rows in ([[3], [0]], [[1, 2]])]
    assert join_batches(parts, [np.array([2, 0]), np.array([1])], 4).dense is None
    rng = np.random.default_rng(0)
    parts = [replace(part, dense=rng.integers(0, 3, part.input_ids.shape, np.uint8)) for part in parts]
    joined = join_batches(parts, [np.array([2, 0]), np.array([1])], 4)
    assert joined.dense is not None
    assert joined.dense.shape == joined.input_ids.shape
    first, second = (part.dense for part in parts)
    assert first is not None
    assert second is not None
    for row, wanted in ((2, first[0]), (0, first[1]), (1, second[0]), (3, first[0, :0])):
        np.testing.assert_array_equal(joined.dense[row, : len(wanted)], wanted)
        assert not joined.dense[row, len(wanted) :].any()
    one_only = join_batches([replace(parts[0], dense=None), parts[1]], [np.array([2, 0]), np.array([1])], 4).dense
    assert one_only is not None
    np.testing.assert_array_equal(one_only, np.where(np.arange(4)[:, None] == 1, joined.dense, 0))


def test_rows_of_one_cache_only_and_of_none() -> None:
    single = CacheReader(str(GOLDEN), ("tokens", "logits"))
    mixture = CacheMixture([single, CacheReader(str(GOLDEN), ("tokens", "logits"))])
    np.testing.assert_array_equal(mixture.read_rows([[9], [12]]).input_ids, single.read_rows([[1], [4]]).input_ids)
    assert mixture.read_rows([[], []], 1).input_ids.shape == (2, 1)
    assert read_as_one([single]) is single


def test_pieces_are_joined_and_without_them_each_stored_token_is_one() -> None:
    single = CacheReader(str(GOLDEN), ("tokens", "logits"))
    first, second = single.read_rows([[3], [0]]), single.read_rows([[1, 2], [4], [5]])
    rng, shape = np.random.default_rng(0), first.input_ids.shape
    pieces = Pieces(rng.integers(0, 3, shape, dtype=np.int32), -rng.random(shape, np.float32))
    places = [np.array([4, 1]), np.array([0, 5, 2])]
    assert join_batches([first, second], places, 6).pieces is None
    joined = join_batches([replace(first, pieces=pieces), second], places, 6)
    found, length = joined.pieces, joined.input_ids.shape[1]
    assert found is not None
    assert [array.dtype for array in found] == [np.int32, np.float32]
    assert found.tokens.shape == found.logprob.shape == (6, length)
    for r, own in ((4, 0), (1, 1)):
        np.testing.assert_array_equal(found.tokens[r], np.pad(pieces.tokens[own], (0, length - shape[1])))
        np.testing.assert_array_equal(found.logprob[r], np.pad(pieces.logprob[own], (0, length - shape[1])))
    known = np.isfinite(joined.next_logprob)
    assert known.any()
    for r in (0, 5, 2, 3):
        np.testing.assert_array_equal(found.tokens[r], known[r])
        np.testing.assert_array_equal(found.logprob[r], np.where(known[r], joined.next_logprob[r], 0))
    assert not found.tokens[3].any(), "padding"


def test_caches_that_cannot_be_mixed_are_refused(tmp_path: Path) -> None:
    def cache(name: str, **changes: object) -> CacheReader:
        capture = LogitsCapture(k=8, temperatures=changes.pop("temperatures", [1.0, 3.0]))
        vocabulary = changes.pop("vocabulary", 61)
        manifest = write_cache(str(tmp_path / name), random_shards([[5]], vocabulary, capture), vocabulary, capture)
        changed = manifest.model_copy(update=changes)
        (tmp_path / name / "manifest.json").write_text(changed.to_json())
        return CacheReader(str(tmp_path / name))

    first = cache("first")
    with pytest.raises(UserError, match=r"^data.cache: \S+other: tokenizer b+… differs .* mix caches of one tokenizer"):
        CacheMixture([first, cache("other", vocabulary=62)])
    with pytest.raises(UserError, match=r"^data.cache: \S+cooler: capture.logits is .*temperatures=\[1.0\]"):
        CacheMixture([first, cache("cooler", temperatures=[1.0])])
    teacher = first.manifest.teacher.model_copy(update={"fingerprint": "d" * 64, "name": "another teacher"})
    same = cache("same", teacher=teacher)
    assert CacheMixture([first, same]).manifest == first.manifest
    assert len({digest_of([first]), digest_of([first, same]), digest_of([same, first])}) == 3


@pytest.fixture
def caches(tmp_path: Path) -> list[str]:
    """Of 30 and 12 samples; those of the first are of two layers in turn."""
    urls = []
    for name, sizes, layers in (("a", [10, 20], ("base", "code")), ("b", [12], ("chat",))):
        lengths = np.random.default_rng(len(sizes)).integers(3, 20, sum(sizes)).tolist()
        parts = np.split(np.array(lengths), np.cumsum(sizes)[:-1])
        shards = random_shards([part.tolist() for part in parts], 61, seed=len(sizes))
        layered = [
            [(replace(tokens, layer=layers[i % len(layers)]), logits) for i, (tokens, logits) in enumerate(shard)]
            for shard in shards
        ]
        urls.append(str(tmp_path / name))
        write_cache(urls[-1], layered, 61)
    return urls


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_on_a_mixture_resumes_exactly_after_a_crash(
    make_config, caches: list[str], tmp_path: Path, packing: bool
) -> None:
    shares = [
        {"url": caches[0], "weight": 60, "layers": ["code"]},
        {"url": caches[0], "weight": 25, "layers": ["base"]},
    ]
    shares.append({"url": caches[1], "weight": 15})
    data = {"cache": shares, "validation_fraction": 0.2, "packing": packing, "pack_tokens": 40}
    settings = {"data": data, "loop": {"max_steps": 12, "save_every": 5}}
    whole = make_config(**settings, output=str(tmp_path / "whole"))
    summary = distill(whole)
    crashed = make_config(**settings, output=str(tmp_path / "crashed"))
    with pytest.raises(RuntimeError, match="crash"):
        distill(crashed, callbacks=[StopAt(8)])
    again = distill(crashed)
    assert losses(crashed.output) == losses(whole.output)
    for name in ("epochs", "tokens", "validation", "cache_digest"):
        assert again[name] == summary[name], name
    assert summary["validation"]["tokens"] > 0
    state = json.loads((Path(whole.output) / "checkpoint-12/data_state.json").read_text())
    assert state["rows_consumed"] == 48
    assert len(state["places"]) == 3
    card = (Path(whole.output) / "final/README.md").read_text()
    assert card.count("- cache: manifest digest") == 2
    shares[0]["weight"] = 61
    with pytest.raises(UserError, match=r"data.shares = .*60.* the configuration now says .*61"):
        distill(make_config(**settings, output=whole.output))


def test_an_epoch_of_a_mixture_without_weights_is_every_sample_once(make_config, caches: list[str]) -> None:
    config = make_config(data={"cache": [{"url": url} for url in caches]}, loop={"max_steps": None, "epochs": 2})
    summary = distill(config)
    assert summary["steps"] == 21
    assert summary["epochs"] == pytest.approx(2.0)
    assert summary["tokens"] == 2 * sum(CacheReader(url).manifest.totals.tokens for url in caches)


def test_layers_and_limit_choose_what_is_trained_on(make_config, caches: list[str], tmp_path: Path) -> None:
    def tokens(**share: object) -> int:
        loop = {"max_steps": None, "resume": False, "micro_batch_size": 1, "gradient_accumulation": 1}
        data = {"cache": [{"url": caches[0], **share}]}
        config = make_config(data=data, loop=loop, output=str(tmp_path / "out"))
        return distill(config)["tokens"]

    reader = CacheReader(caches[0])
    assert tokens() == reader.num_tokens.sum()
    assert tokens(layers=["code"]) == reader.num_tokens[1::2].sum()
    assert tokens(limit=13) == reader.num_tokens[:13].sum()
    assert tokens(layers=["code"], limit=6) == reader.num_tokens[[1, 3, 5, 7, 9, 11]].sum()
    with pytest.raises(
        UserError, match=r"^data.cache: \S+: it has no sample of the mix layers \['none'\]; choose others"
    ):
        tokens(layers=["none"])
