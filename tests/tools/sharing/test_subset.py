"""Parts of caches are valid caches, with the right samples and identical payloads, and resume after a kill."""

import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from schemas.cache_config import LogitsCapture
from schemas.derivation import Selection
from schemas.errors import CorruptCacheError, UserError
from support.proxy import proxied
from support.synthetic import logits_sample, token_sample, write_cache, write_tar
from teacher_cache.shards import shard_table
from teacher_cache.shards.marks import mark_name, read_manifest, read_mark, tar_name, write_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.sharing import subset as subset_module
from tools.sharing.selecting import share_numbers
from tools.sharing.subset import by_layer, by_share, choose, open_source, split, write_subset
from trainer.data.selection import is_held_out

LAYERS = (("code", "base", "code", "math"), ("base", "base"), ("math", "code", "base"), ("code", "code"))


def make_shards() -> list[list[tuple]]:
    rng, capture, shards = np.random.default_rng(0), LogitsCapture(k=8), []
    for layers in LAYERS:
        shard = []
        for layer in layers:
            sample = token_sample(rng.integers(0, 300, rng.integers(4, 12)).tolist(), layer)
            logits = rng.normal(0, 2, (len(sample.input_ids), 300))
            shard.append((sample, logits_sample(logits, sample.input_ids, capture)))
        shards.append(shard)
    return shards


@pytest.fixture
def source(tmp_path: Path) -> Storage:
    write_cache(str(tmp_path / "source"), make_shards())
    return Storage(str(tmp_path / "source"))


@pytest.fixture(params=["folder", "s3"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_url") if request.param == "s3" else str(tmp_path / "target")


def take(source: str, target: str, dry_run: bool = False, **selection):
    return write_subset(choose(*open_source(source), Selection(**selection)), target, dry_run=dry_run)


def keys_of(shards=LAYERS, layers=("code", "base", "math"), share=(0.0, 1.0)) -> list[str]:
    """Keys of the selected samples, in order."""
    samples = [t for made, wanted in zip(make_shards(), LAYERS, strict=True) if wanted in shards for t, _ in made]
    keys = [sample.key for sample in samples if sample.layer in layers]
    return [key for key, number in zip(keys, share_numbers(keys), strict=True) if share[0] <= number < share[1]]


def check_part(source: str, target: str, keys: list[str]) -> None:
    assert verify(target).problems == []
    whole, part = CacheReader(source), CacheReader(target)
    assert part.keys == keys
    for position, key in enumerate(keys):
        for signal in ("tokens", "logits"):
            assert part.payload(position, signal) == whole.payload(whole.keys.index(key), signal)


PARTS = {
    "layer": ({"layers": ["code"]}, {"layers": ("code",)}),
    "layers": ({"layers": ["math", "code"]}, {"layers": ("code", "math")}),
    "shards": ({"shards": [(3, 9), (0, 0)]}, {"shards": (LAYERS[0], LAYERS[3])}),
    "share": ({"share": (0.2, 0.7)}, {"share": (0.2, 0.7)}),
    "all of it": (
        {"layers": ["code"], "shards": [(0, 2)], "share": (0, 0.8)},
        {"layers": ("code",), "shards": LAYERS[:3], "share": (0, 0.8)},
    ),
    "everything": ({}, {}),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_a_valid_cache(source: Storage, target: str, name: str) -> None:
    selection, meant = PARTS[name]
    keys = keys_of(**meant)
    assert keys
    report = take(source.url, target, **selection)
    check_part(source.url, target, keys)
    derived = read_manifest(Storage(target)).derived
    assert derived.action == "subset"
    assert derived.sources[0].manifest_sha256 == read_manifest(source).sha256
    assert report.manifest_sha256 == read_manifest(Storage(target)).sha256
    assert not [name for name in Storage(target).names() if name.startswith(".")]


def test_shards_taken_whole_stay_as_they_are_and_those_without_a_sample_are_left_out(source: Storage, target: str):
    take(source.url, target, layers=["code"])
    made = Storage(target)
    names = [name for name in made.names() if name.endswith(".json") and name != MANIFEST]
    assert names == [mark_name(f"shard-00000{number}") for number in (0, 2, 3)]
    assert made.read(mark_name("shard-000003")) == source.read(mark_name("shard-000003"))


def test_signals_are_left_out_with_their_settings(tmp_path: Path, target: str) -> None:
    """A cache with stub hidden states and output head; only selected files are read."""
    source = Storage(str(tmp_path / "source"))
    base = write_cache(source.url, make_shards())
    from schemas.cache_config import FinalCapture, HiddenCapture
    from schemas.manifest import HeadInfo
    from teacher_cache.shards.marks import totals_of, write_mark

    entries = []
    for entry in base.shards:
        index = read_mark(source, entry.name)
        members = {}
        for signal in ("hidden", "final"):
            members[signal] = write_tar(source, entry.name, signal, [(key, signal.encode()) for key in index.keys])
        entries.append(write_mark(source, index.model_copy(update={"signals": {**index.signals, **members}})))
    head = HeadInfo(file=source.write("head.safetensors", b"head"), scale=1.0, softcap=None)
    capture = base.capture.model_copy(update={"hidden": HiddenCapture(layers=[1]), "final": FinalCapture()})
    lists = {"shards": entries, "totals": totals_of(entries), "capture": capture, "head": head, "sha256": ""}
    write_manifest(source, base.model_copy(update=lists))

    take(source.url, target, signals=["logits", "final"])
    found = read_manifest(Storage(target))
    assert (found.capture.hidden, found.capture.final) == (None, FinalCapture())
    assert found.head == head
    assert set(found.totals.bytes) == {"tokens", "logits", "final"}
    assert "head.safetensors" in Storage(target).names()
    assert not [name for name in Storage(target).names() if "hidden" in name]

    logits_only = f"{target}-2"
    take(source.url, logits_only, signals=["logits"])
    check_part(source.url, logits_only, keys_of())
    found = read_manifest(Storage(logits_only))
    assert (found.capture.final, found.head) == (None, None)
    assert "head.safetensors" not in Storage(logits_only).names()
    assert Storage(logits_only).read(mark_name("shard-000001")) == source.read(mark_name("shard-000001"))


def test_only_chosen_members_are_fetched(source: Storage, s3_url: str, tmp_path: Path, s3_server: str) -> None:
    write_cache(s3_url, make_shards())
    with proxied(s3_server) as proxy:
        take(s3_url, str(tmp_path / "target"), layers=["math"])
        fetched = {path.rsplit("/", 1)[1] for method, path in proxy.requests if method == "GET"}
    tars = {name for name in fetched if name.endswith(".tar")}
    assert tars == {tar_name(f"shard-00000{number}", signal) for number in (0, 2) for signal in ("tokens", "logits")}
    check_part(source.url, str(tmp_path / "target"), keys_of(layers=("math",)))


@pytest.mark.parametrize("kind", ["whole shards", "samples"])
def test_shards_written_before_a_kill_are_kept(source: Storage, target: str, kind: str, monkeypatch) -> None:
    selection = {"shards": [(0, 2)]} if kind == "whole shards" else {"layers": ["code", "math"]}
    made = Storage(target)
    take(source.url, target, **selection)
    before = {name: made.read(name) for name in made.names()}
    identity = choose(*open_source(source.url), Selection(**selection)).identity
    made.delete(MANIFEST)
    made.delete(tar_name("shard-000002", "logits"))
    if not made.is_local:
        made.put(f".push-{identity}.json", b"{}")
    written: list[str] = []
    copy = subset_module.copy_samples
    monkeypatch.setattr(subset_module, "copy_samples", lambda *args: written.append(args[5]) or copy(*args))
    report = take(source.url, target, **selection).as_dict()
    assert {name: made.read(name) for name in made.names()} == before
    assert written == ([] if kind == "whole shards" else ["shard-000002"])
    assert report["by_kind"]["logits"]["skipped"] > report["by_kind"]["logits"]["sent"] > 0
    assert take(source.url, target, **selection).as_dict()["sent"] == {"files": 0, "bytes": 0}


def test_a_mark_of_other_samples_is_not_trusted(source: Storage, tmp_path: Path) -> None:
    """Leftovers of a killed transfer of another part."""
    target = str(tmp_path / "target")
    take(source.url, target, layers=["math"])
    Storage(target).delete(MANIFEST)
    take(source.url, target, layers=["code"])
    check_part(source.url, target, keys_of(layers=("code",)))


def test_a_missing_shard_of_a_finished_part_is_made_again(source: Storage, target: str) -> None:
    take(source.url, target, layers=["math"])
    before = read_manifest(Storage(target))
    Storage(target).delete(mark_name("shard-000000"))
    take(source.url, target, layers=["math"])
    assert read_manifest(Storage(target)) == before
    check_part(source.url, target, keys_of(layers=("math",)))


def test_another_part_is_not_touched(source: Storage, target: str) -> None:
    take(source.url, target, layers=["math"])
    before = Storage(target).sizes()
    with pytest.raises(UserError, match="another cache is there") as error:
        take(source.url, target, layers=["code"])
    assert read_manifest(Storage(target)).sha256 in str(error.value)
    assert read_manifest(source).sha256 in str(error.value)
    assert Storage(target).sizes() == before


def test_committed_shards_of_an_unfinished_cache(tmp_path: Path, target: str) -> None:
    write_cache(str(tmp_path / "source"), make_shards(), commit=2)
    take(str(tmp_path / "source"), target)
    check_part(str(tmp_path / "source"), target, keys_of(shards=LAYERS[:2]))
    assert read_manifest(Storage(target)).complete


NOTHING = {
    r"no shard is selected; there are 4, numbered 0 to 3": {"shards": [(4, 9)]},
    r"no sample of layer rust; its layers are base, code, math": {"layers": ["code", "rust"]},
    r"none of 11 samples in 4 shards is selected": {"share": (0.5, 0.5)},
    r"has no signal hidden; it has tokens, logits": {"signals": ["logits", "hidden"]},
}


@pytest.mark.parametrize("message", NOTHING)
def test_an_empty_selection_is_refused_with_what_exists(source: Storage, tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        take(source.url, str(tmp_path / "target"), **NOTHING[message])
    assert not (tmp_path / "target").exists()


def test_equal_parts_have_one_name(source: Storage) -> None:
    def identity(**selection) -> str:
        return choose(*open_source(source.url), Selection(**selection)).identity

    assert identity(shards=[(0, 1), (2, 2)]) == identity(shards=[(2, 2), (0, 0), (1, 1)]) != identity(shards=[(0, 1)])
    assert identity(layers=["math", "code"]) == identity(layers=["code", "math", "code"])
    assert identity(signals=["logits"]) == identity() == identity(share=(0, 1))


def test_a_damaged_payload_is_not_copied(source: Storage, target: str) -> None:
    index = read_mark(source, "shard-000000")
    with open(source.local_path(tar_name("shard-000000", "logits")), "r+b") as file:
        file.seek(index.signals["logits"].offsets[0] + 3)
        file.write(b"\xff\xfe")
    with pytest.raises(CorruptCacheError, match=index.keys[0]):
        take(source.url, target, layers=["code"])
    assert MANIFEST not in Storage(target).names()


def test_a_part_of_a_cache_with_a_shard_table(source: Storage, target: str, monkeypatch) -> None:
    monkeypatch.setattr(shard_table, "MAX_LISTED_UNITS", 2)
    assert write_manifest(source, read_manifest(source)).shard_table is not None
    take(source.url, target, layers=["code"])
    assert read_manifest(Storage(target)).shard_table is not None
    check_part(source.url, target, keys_of(layers=("code",)))
    assert take(source.url, target, layers=["code"]).as_dict()["sent"] == {"files": 0, "bytes": 0}


def test_shares_are_not_what_the_trainer_holds_out() -> None:
    keys = [f"{number:032x}" for number in range(20_000)]
    numbers, held_out = share_numbers(keys), is_held_out(keys, 0.1)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert abs((numbers < 0.1).mean() - 0.1) < 0.01
    assert abs(held_out[numbers < 0.1].mean() - 0.1) < 0.02


def test_a_share_is_that_of_the_format() -> None:
    """``docs/format.md``: the upper 53 bits of xxh3-64 with seed 1."""
    assert share_numbers(["a"])[0] == (0xD2F6D0996F37A720 >> 11) / 2**53


def test_consecutive_shares_take_every_sample_once(source: Storage, tmp_path: Path) -> None:
    storage, manifest = open_source(source.url)
    parts = by_share({"train": Decimal("0.7"), "validation": Decimal("0.3")})
    assert parts["train"].share[1] == parts["validation"].share[0] == 0.7
    assert parts["validation"].share[1] == 1
    split(storage, manifest, parts, str(tmp_path / "out"))
    found = [CacheReader(str(tmp_path / "out" / name)).keys for name in parts]
    assert sorted(found[0] + found[1]) == sorted(keys_of())
    check_part(source.url, str(tmp_path / "out/train"), keys_of(share=(0, 0.7)))
    with pytest.raises(UserError, match="wanted at most 100 %"):
        by_share({"a": Decimal("0.6"), "b": Decimal("0.5")})


def test_a_cache_by_layer(source: Storage, tmp_path: Path) -> None:
    storage, manifest = open_source(source.url)
    split(storage, manifest, by_layer(storage, manifest), f"{tmp_path}/out/")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["base", "code", "math"]
    for layer in ("base", "code", "math"):
        check_part(source.url, str(tmp_path / "out" / layer), keys_of(layers=(layer,)))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", ".hidden", "x" * 101, "a\n", "-x"])
def test_invalid_names_of_parts_are_refused(source: Storage, tmp_path: Path, name: str) -> None:
    storage, manifest = open_source(source.url)
    with pytest.raises(UserError, match="not usable as the name"):
        split(storage, manifest, {"good": Selection(), name: Selection()}, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_be_written(source: Storage, target: str) -> None:
    planned = take(source.url, target, dry_run=True, layers=["code"]).as_dict()["by_kind"]
    assert Storage(target).names() == []
    done = take(source.url, target, layers=["code"]).as_dict()["by_kind"]
    assert planned["logits"] == done["logits"]
    assert done["logits"]["sent"] == read_manifest(Storage(target)).totals.bytes["logits"]


def test_commands(source: Storage, tmp_path: Path) -> None:
    def invoke(*arguments: str) -> dict:
        result = CliRunner().invoke(main, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    pulled = invoke("pull", source.url, f"{tmp_path}/pulled", "--layer", "code", "--layer", "math", "--shards", "0-1,2")
    assert pulled["sent"]["files"] > 0
    check_part(source.url, f"{tmp_path}/pulled", keys_of(shards=LAYERS[:3], layers=("code", "math")))
    invoke("subset", source.url, f"{tmp_path}/half", "--sample", "50%", "--signals", "tokens")
    check_part(source.url, f"{tmp_path}/half", keys_of(share=(0, 0.5)))
    assert set(invoke("split", source.url, f"{tmp_path}/parts", "--by", "layer")) == {"base", "code", "math"}
    shares = "train=60%,validation=40%"
    assert set(invoke("split", source.url, f"{tmp_path}/shares", "--parts", shares)) == {"train", "validation"}
    result = CliRunner().invoke(main, ["split", source.url, f"{tmp_path}/none"])
    assert (result.exit_code, "either --by layer or --parts" in result.stderr) == (2, True)


def test_a_part_that_is_everything_is_the_cache_itself(source: Storage, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["pull", source.url, f"{tmp_path}/all", "--signals", "logits", "--sample", "100%"]
    )
    assert result.exit_code == 0, result.output
    assert read_manifest(Storage(f"{tmp_path}/all")) == read_manifest(source)


def test_pull_of_a_part_of_an_unfinished_cache_is_refused(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "source"), make_shards(), commit=2)
    result = CliRunner().invoke(main, ["pull", f"{tmp_path}/source", f"{tmp_path}/target", "--layer", "code"])
    assert result.exit_code == 2
    assert "not complete" in result.stderr
