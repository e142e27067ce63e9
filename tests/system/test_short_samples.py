"""Caches of short samples, several a tar member: the same values as with a member each, and every tool takes them."""

import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

from schemas.cache_config import CacheConfig
from schemas.derivation import Selection
from schemas.errors import CorruptCacheError
from schemas.load import validate
from schemas.manifest import Manifest
from support.forge import change_manifest
from support.golden import SIGNALS, array_digests
from support.models import write_random_teacher
from support.workspace import cache_tree
from teacher_cache import estimate, job
from teacher_cache.shards.marks import read_manifest, read_mark
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.making.merge import merge
from tools.making.repack import Changes, repack
from tools.sharing.subset import choose, open_source, write_subset

CAPTURE = {
    "logits": {"k": 12},
    "draws": {"n": 6},
    "final": {},
    "hidden": {"layers": [1], "positions": {"every": 3}},
    "attention": {"heads": 1, "keys": 4, "positions": {"every": 3}},
}


class Made(NamedTuple):
    bundled: str
    apart: str  # the same samples, a member each
    others: str  # other samples, a member each
    config: CacheConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("short")
    teacher = write_random_teacher(folder / "teacher", hidden_size=16, head_dim=8)

    def cache(name: str, first: int, bundle: bool) -> CacheConfig:
        rng = random.Random(first)
        lines = [f"def f{number}(x)" + " + x" * rng.randint(0, 6) for number in range(first, first + 150)]
        corpus = folder / f"{first}.jsonl"
        corpus.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        tree = cache_tree(teacher, corpus, folder / name, capture=CAPTURE)
        tree["corpus"]["sources"] = [{"path": str(corpus), "format": "jsonl", "layer": "short"}]
        tree["output"] |= {"bundle_short_samples": bundle, "tokens_per_shard": 900}
        config = validate(CacheConfig, tree, "test")
        job.run(config)
        return config

    cache("apart", 0, False)
    cache("others", 1000, False)
    config = cache("bundled", 0, True)
    return Made(*(str(folder / name) for name in ("bundled", "apart", "others")), config)


def manifest_of(url: str) -> Manifest:
    return read_manifest(Storage(url))


def rows_of(url: str) -> dict[str, list[np.ndarray]]:
    """What a training run reads of each sample."""
    reader = CacheReader(url)
    batch = reader.read_rows([[position] for position in range(len(reader))])
    arrays = [batch.input_ids, batch.loss_mask, batch.ids, batch.logprobs, batch.next_logprob, batch.log_partition]
    return {key: [array[i, : reader.num_tokens[i]].copy() for array in arrays] for i, key in enumerate(reader.keys)}


def assert_same_rows(found: dict[str, list[np.ndarray]], wanted: dict[str, list[np.ndarray]]) -> None:
    for key, arrays in found.items():
        for one, other in zip(arrays, wanted[key], strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_values_are_those_of_a_cache_with_a_member_each(made: Made) -> None:
    assert array_digests(Path(made.bundled)) == array_digests(Path(made.apart))
    assert_same_rows(rows_of(made.bundled), rows_of(made.apart))
    assert [manifest_of(url).format_minor for url in made[:2]] == [2, 2]  # both have a vocabulary


def test_a_cache_of_bundles_is_smaller(made: Made) -> None:
    bundled, apart = (manifest_of(url).totals.bytes for url in made[:2])
    tokens = manifest_of(made.bundled).totals.tokens
    for signal, size in bundled.items():
        assert (apart[signal] - size) / tokens > 60, signal  # bytes a token: headers, Arrow messages, padding


def test_all_signals_of_a_shard_are_bundled_alike(made: Made) -> None:
    indexes = [read_mark(Storage(made.bundled), shard.name) for shard in manifest_of(made.bundled).shards]
    kinds = [[None if m.bundles is None else m.bundles.samples for m in index.signals.values()] for index in indexes]
    assert all(kind == kinds[shard][0] for shard, several in enumerate(kinds) for kind in several)
    assert {kind[0] is None for kind in kinds} == {True, False}, "the last shard has too few samples"


def test_an_estimate_is_that_of_full_bundles(made: Made, tmp_path: Path) -> None:
    repack(made.bundled, str(tmp_path / "large"), Changes(tokens_per_shard=10**6))
    totals = manifest_of(str(tmp_path / "large")).totals
    found = estimate.probe(made.config, estimate.survey(made.config, 150)).bytes_per_token
    for signal, size in totals.bytes.items():
        assert found[signal] == pytest.approx(size / totals.tokens, rel=0.2), signal  # bundles of 256, not of 150


def test_verify_finds_a_changed_byte_in_a_record(made: Made, tmp_path: Path) -> None:
    assert verify(made.bundled).problems == []
    write_subset(choose(*open_source(made.bundled), Selection()), str(tmp_path / "copy"))
    index = read_mark(Storage(made.bundled), "shard-000000")
    path = tmp_path / "copy/shard-000000.logits.tar"
    data = bytearray(path.read_bytes())
    data[index.signals["logits"].offsets[40] + 9] ^= 1
    path.write_bytes(data)
    problems = verify(str(tmp_path / "copy")).problems
    assert any(f"sample {index.keys[40]}: xxh3" in problem for problem in problems)
    with pytest.raises(CorruptCacheError, match=f"sample {index.keys[40]}"):
        CacheReader(str(tmp_path / "copy")).read_rows([[39], [40]])


@pytest.mark.parametrize("share", [(0.0, 0.9), (0.0, 0.1)])
def test_a_part_of_it_holds_the_same_records(made: Made, tmp_path: Path, share: tuple[float, float]) -> None:
    part = choose(*open_source(made.bundled), Selection(share=share))
    target = str(tmp_path / "part")
    report = write_subset(part, target)
    totals = manifest_of(target).totals
    assert sum(one.bytes for one in part.parts) == sum(totals.bytes.values()), "what was announced"
    assert verify(target).problems == []
    assert 0 < totals.samples < 150
    assert_same_rows(rows_of(target), rows_of(made.bundled))
    reader, whole = CacheReader(target, SIGNALS), CacheReader(made.bundled, SIGNALS)
    at = {key: position for position, key in enumerate(whole.keys)}
    for position, key in enumerate(reader.keys):
        payloads = [(r.payload(p, s), s) for s in SIGNALS for r, p in ((reader, position), (whole, at[key]))]
        assert payloads[::2] == payloads[1::2]
    assert write_subset(part, target).manifest_sha256 == report.manifest_sha256, "nothing is left to do"


def test_it_merges_with_a_cache_of_members_each(made: Made, tmp_path: Path) -> None:
    target = str(tmp_path / "both")
    assert merge([made.others, made.bundled], target).samples == 300
    assert manifest_of(target).format_minor == 2
    assert verify(target).problems == []
    assert_same_rows(rows_of(target), rows_of(made.bundled) | rows_of(made.others))


def test_it_is_repacked_also_across_shards_of_both_kinds(made: Made, tmp_path: Path) -> None:
    target = str(tmp_path / "large")
    assert repack(made.bundled, target, Changes(tokens_per_shard=10**6)).shards == 1
    assert verify(target).problems == []
    assert_same_rows(rows_of(target), rows_of(made.bundled))
    assert all(m.bundles is not None for m in read_mark(Storage(target), "shard-000000").signals.values())
    coarser = str(tmp_path / "coarser")
    repack(made.bundled, coarser, Changes(steps_per_nat=4))
    assert verify(coarser).problems == []
    assert rows_of(coarser).keys() == rows_of(made.bundled).keys()


def test_it_comes_back_from_parquet(made: Made, tmp_path: Path) -> None:
    url = str(tmp_path / "logits")
    write_subset(choose(*open_source(made.bundled), Selection(signals=["logits"])), url)
    back = str(tmp_path / "back")
    for command in (
        ["export", url, f"{tmp_path}/parquet", "--to", "parquet"],
        ["import", f"{tmp_path}/parquet", back, "--from", "parquet"],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
    assert manifest_of(back).format_minor == 1
    assert verify(back).problems == []
    assert_same_rows(rows_of(back), rows_of(made.bundled))


def test_a_newer_minor_version_is_refused_by_name(made: Made, tmp_path: Path) -> None:
    write_subset(choose(*open_source(made.bundled), Selection()), str(tmp_path / "copy"))
    change_manifest(str(tmp_path / "copy"), lambda tree: tree.update(format_minor=3))
    with pytest.raises(Exception, match=r"format 1\.3 is newer than 1\.2, the newest supported"):
        CacheReader(str(tmp_path / "copy"))
