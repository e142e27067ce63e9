"""A cache that somebody changed on purpose: every change is found, the file is named, and nothing is written elsewhere.

The signed golden cache has every signal. Changes that checksums would give away are forged consistently: checksums,
sizes, index and manifest follow, as an attacker would have them do where nobody asks for a signature.
"""

import io
import itertools
import json
import os
import resource
import shutil
import struct
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch

from schemas.arrow import SIGNAL_SCHEMA, shard_table_schema
from schemas.derivation import Selection
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import MemberIndex
from schemas.signature import signature_file
from support.commands import run
from support.forge import (
    SHARD,
    Tree,
    arrow_stream,
    change_index,
    change_manifest,
    change_payload,
    claiming_frame,
    declare,
)
from support.golden import GOLDEN, SIGNALS, array_digests
from support.synthetic import file_entry, random_shards, write_cache
from teacher_cache.codec.message import read_columns, write_batch
from teacher_cache.shards import shard_table as table_module
from teacher_cache.shards.marks import read_manifest, read_mark, tar_name, write_manifest
from teacher_cache.shards.storage import HEAD, MANIFEST, Storage
from teacher_cache.shards.tar import checksum
from tools.checking.verify import verify
from tools.making.derived import copy_samples
from tools.sharing.push import copy_cache
from tools.sharing.subset import choose, open_source, write_subset
from tools.trust.sign import generate_key, load_private_key, sign, trust_check

BYTE_CHANGES = 300
MAX_BYTES = 96 << 20  # Python's and numpy's allocations, whatever a cache declares
HUGE = 10_000_000_000


@dataclass(frozen=True)
class Signed:
    """A copy of the golden cache with a signature, and the key that is asked for."""

    folder: Path
    public: str

    @property
    def url(self) -> str:
        return str(self.folder)

    def problems(self) -> list[str]:
        """What ``verify --require-signature`` lists, or the one line that it fails with."""
        try:
            return verify(self.url, checks=[trust_check([self.public])]).problems
        except UserError as error:
            return [str(error).replace(f"{self.url}/", "")]


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "cache"))
    generate_key(tmp_path / "key", "owner")
    public = sign(Storage(str(folder)), load_private_key(tmp_path / "key", str), "owner").public_key
    return Signed(folder, public)


@pytest.fixture
def bounded() -> Iterator[None]:
    """A bound on the process' memory, and on what Python and numpy allocate."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert peak - start < MAX_BYTES


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_signed_cache_is_fine(signed: Signed) -> None:
    assert signed.problems() == []
    names = {path.relative_to(signed.folder).as_posix() for path in files_of(signed.folder)}
    assert {MANIFEST, HEAD, signature_file(signed.public), f"{SHARD}.json", f"{SHARD}.draws.tar"} <= names


@pytest.mark.parametrize("part", range(4))
def test_every_changed_byte_is_found_and_its_file_named(signed: Signed, part: int) -> None:
    """Anywhere in any file; together 300."""
    rng = np.random.default_rng(part)
    files = itertools.cycle(files_of(signed.folder))
    for path in itertools.islice(files, BYTE_CHANGES // 4):
        sound = path.read_bytes()
        changed = bytearray(sound)
        place = int(rng.integers(len(sound)))
        changed[place] ^= 1 + int(rng.integers(255))
        path.write_bytes(bytes(changed))
        name = path.relative_to(signed.folder).as_posix()
        assert any(name in problem for problem in signed.problems()), f"byte {place} of {name}"
        path.write_bytes(sound)
    assert signed.problems() == []


@pytest.mark.parametrize("name", [MANIFEST, f"{SHARD}.json", f"{SHARD}.logits.tar", HEAD, "signature"])
def test_the_verify_command_finds_changed_bytes(signed: Signed, name: str) -> None:
    name = signature_file(signed.public) if name == "signature" else name
    path = signed.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = run("cache-tools", "verify", signed.folder, "--require-signature", signed.public)
    assert done.returncode == (3 if name == MANIFEST else 1), done.stderr
    assert name in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_shards_that_were_exchanged(signed: Signed) -> None:
    for signal in SIGNALS:
        pair = [signed.folder / f"shard-00000{number}.{signal}.tar" for number in (0, 1)]
        contents = [path.read_bytes() for path in pair]
        for path, data in zip(pair, reversed(contents), strict=True):
            path.write_bytes(data)
        found = signed.problems()
        assert all(any(path.name in problem for problem in found) for path in pair)
        for path, data in zip(pair, contents, strict=True):
            path.write_bytes(data)
    for signal in (*SIGNALS, "mark"):
        names = [f"shard-00000{number}" + (".json" if signal == "mark" else f".{signal}.tar") for number in (0, 1)]
        os.rename(signed.folder / names[0], signed.folder / "aside")
        os.rename(signed.folder / names[1], signed.folder / names[0])
        os.rename(signed.folder / "aside", signed.folder / names[1])
    found = signed.problems()
    assert all(any(f"shard-00000{number}.json" in problem for problem in found) for number in (0, 1))


def test_a_forged_manifest_needs_a_forged_signature(signed: Signed, tmp_path: Path) -> None:
    """All checksums are right after a forger rewrote them; only the required signature tells."""
    change_manifest(signed.url, lambda tree: tree["provenance"].update(owner="somebody else"))
    assert verify(signed.url).problems == []
    (problem,) = signed.problems()
    assert problem.startswith(f"{signature_file(signed.public)}: owner signed manifest ")
    generate_key(tmp_path / "mallory", "owner")
    mallory = sign(Storage(signed.url), load_private_key(tmp_path / "mallory", str), "owner").public_key
    assert signed.problems() == [problem]
    shutil.copy(signed.folder / signature_file(mallory), signed.folder / signature_file(signed.public))
    assert ": signature by" in signed.problems()[0]


def test_a_rollback_to_an_older_state_is_found(tmp_path: Path) -> None:
    """With its own old signature it is refused where the newer one is known; under the new signature, everywhere."""
    generate_key(tmp_path / "key", "owner")
    key, cache, known = load_private_key(tmp_path / "key", str), Storage(str(tmp_path / "cache")), tmp_path / "known"
    write_cache(cache.url, random_shards([[9, 5]]))
    public = sign(cache, key, "owner").public_key
    old = {path.relative_to(cache.url): path.read_bytes() for path in files_of(Path(cache.url))}
    write_cache(cache.url, random_shards([[9, 5], [7]], seed=1))
    sign(cache, key, "owner")
    shutil.copytree(cache.url, known)
    new_signature = cache.read(signature_file(public))
    shutil.rmtree(cache.url)
    for name, data in old.items():
        (Path(cache.url) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(cache.url) / name).write_bytes(data)
    assert verify(cache.url, checks=[trust_check([public])]).problems == []
    with pytest.raises(UserError, match="older state of the cache was put back"):
        verify(cache.url, checks=[trust_check([public], target=Storage(str(known)))])
    done = run("cache-tools", "pull", cache.url, known, "--require-signature", public)
    assert done.returncode == 2
    assert "older state of the cache was put back" in done.stderr
    cache.write(signature_file(public), new_signature)
    (problem,) = verify(cache.url, checks=[trust_check([public])]).problems
    assert signature_file(public) in problem


Member = tuple[tarfile.TarInfo, bytes]


def forge_tar(url: str, signal: str, change: Callable[[list[Member]], object]) -> None:
    """Rewrite a tar of the first shard with other headers or members; index and manifest follow its payloads."""
    storage = Storage(url)
    index = read_mark(storage, SHARD)
    data = storage.read(tar_name(SHARD, signal))
    spans = zip(index.signals[signal].offsets, index.signals[signal].sizes, strict=True)
    payloads = [data[start : start + size] for start, size in spans]
    members = []
    for key, payload in zip(index.keys, payloads, strict=True):
        info = tarfile.TarInfo(f"{key}.{signal}.arrow")
        info.size = len(payload)
        members.append((info, payload))
    change(members)
    sink, places = io.BytesIO(), {}
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, payload in members:
            if info.isreg():
                tar.addfile(info, io.BytesIO(payload))
            else:  # a header that says so, and the payload nevertheless
                header = info.tobuf(tarfile.USTAR_FORMAT)
                sink.write(header + payload + bytes(-len(payload) % 512))
            places[payload] = sink.tell() - -(-len(payload) // 512) * 512
    forged = sink.getvalue()
    storage.write(tar_name(SHARD, signal), forged)
    member = MemberIndex(
        file=file_entry(forged),
        offsets=[places[payload] for payload in payloads],
        sizes=[len(payload) for payload in payloads],
        checksums=[checksum(payload) for payload in payloads],
    )
    change_index(url, lambda tree: tree["signals"].update({signal: member.model_dump()}))


def become(kind: bytes, name: str = "", link: str = "") -> Callable[[list[Member]], None]:
    def change(members: list[Member]) -> None:
        info = members[1][0]
        info.type, info.name, info.linkname = kind, name or info.name, link

    return change


def inserted(name: str, kind: bytes, link: str = "") -> Callable[[list[Member]], None]:
    def change(members: list[Member]) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        members.insert(1, (info, b""))

    return change


HOSTILE_TARS = {
    "renamed": become(tarfile.REGTYPE, "0123.logits.arrow"),
    "traversal": become(tarfile.REGTYPE, "../../escaped"),
    "absolute": become(tarfile.REGTYPE, "/tmp/escaped"),
    "symlink": become(tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": become(tarfile.LNKTYPE, link="../../escaped"),
    "device": become(tarfile.BLKTYPE),
    "symlink between": inserted("shard", tarfile.SYMTYPE, "/"),
    "file between": inserted("../escaped", tarfile.REGTYPE),
}


def copied(source: str, target: str) -> None:
    storage = Storage(source)
    index = read_mark(storage, SHARD)
    copy_samples(storage, Storage(target), index, range(len(index.keys)), ("tokens", "logits"), SHARD)


def pulled_in_part(source: str, target: str) -> None:
    """Half of the samples: no shard is taken whole."""
    write_subset(choose(*open_source(source), Selection(share=(0.0, 0.5))), target)


READERS: dict[str, Callable[[str, str], object]] = {  # what takes a cache (URL) into a folder
    "copy_samples": copied,
    "pull --sample": pulled_in_part,
}


@pytest.mark.parametrize("kind", HOSTILE_TARS)
def test_tars_that_other_readers_would_misread_are_found(signed: Signed, tmp_path: Path, kind: str) -> None:
    """``verify`` names the file; what reads by the index is not misled, and writes in its own folder only."""
    expected = array_digests(GOLDEN)
    forge_tar(signed.url, "logits", HOSTILE_TARS[kind])
    (problem,) = verify(signed.url).problems
    assert problem.startswith(f"{SHARD}.logits.tar: ")
    assert any(signature_file(signed.public) in problem for problem in signed.problems())
    assert array_digests(signed.folder) == expected
    before = files_of(tmp_path)
    for name, read in READERS.items():
        target = tmp_path / "deep" / name
        target.parent.mkdir(exist_ok=True)
        read(signed.url, str(target))
        written = [path for path in files_of(tmp_path) if path not in before]
        assert written
        assert all(path.is_relative_to(target) and not path.is_symlink() for path in written)
        for path in target.glob("*.tar"):
            with tarfile.open(path) as tar:
                assert all(member.isreg() and "/" not in member.name for member in tar)
        shutil.rmtree(target)
    with pytest.raises(CorruptCacheError, match=rf"{SHARD}\.logits\.tar: "):
        copy_cache(signed.url, str(tmp_path / "deep/pull"))
    assert not (tmp_path / "deep/pull" / MANIFEST).exists()
    with pytest.raises(CorruptCacheError, match="owner signed manifest"):
        copy_cache(signed.url, str(tmp_path / "deep/required"), check=trust_check([signed.public]))
    assert files_of(tmp_path / "deep/required") == []
    assert all(path.is_relative_to(tmp_path / "deep/pull") for path in files_of(tmp_path) if path not in before)


def test_unlisted_tars_are_found(signed: Signed) -> None:
    shutil.copy(signed.folder / f"{SHARD}.logits.tar", signed.folder / "shard-000009.logits.tar")
    (problem,) = signed.problems()
    assert problem.startswith("shard-000009.logits.tar: not in the manifest")


@pytest.mark.parametrize(
    "name",
    ["../x", "tables/../../x", "signatures/../x", "/etc/passwd", "a/b", "signatures/..", "..", "a\n", "a\0b", ""],
)
def test_names_that_are_paths(tmp_path: Path, name: str) -> None:
    storage = Storage(str(tmp_path / "cache"))
    for use in (storage.read, storage.size, storage.exists, storage.delete, lambda name: storage.write(name, b"")):
        with pytest.raises(CorruptCacheError, match="not a name of a cache's file"):
            use(name)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def manifest_change(change: Callable[[Tree], object]) -> Callable[[str], None]:
    return lambda url: change_manifest(url, change)


def index_change(change: Callable[[Tree], object]) -> Callable[[str], None]:
    return lambda url: change_index(url, change)


def put(*path: str | int, value: object) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        for key in path[:-1]:
            tree = tree[key]  # type: ignore[index]
        tree[path[-1]] = value  # type: ignore[index]

    return change


def longest_sample(url: str) -> None:
    """A sample of 2²⁴ tokens, which the manifest allows."""
    change_index(url, put("num_tokens", 0, value=2**24))
    tokens = sum(read_mark(Storage(url), SHARD).num_tokens)

    def follow(tree: Tree) -> None:
        tree["corpus"]["settings"]["max_tokens"] = 2**24
        tree["totals"]["tokens"] += tokens - tree["shards"][0]["tokens"]

    change_manifest(url, follow)
    declare(url, tokens=tokens)


def huge_tar(url: str) -> None:
    """A tar of 20 GB, and a sample that lies beyond its true end."""

    def change(tree: Tree) -> None:
        tree["signals"]["logits"]["file"]["bytes"] = 2 * HUGE
        tree["signals"]["logits"]["sizes"][0] = HUGE

    change_index(url, change)


def bomb(signal: str) -> Callable[[str], None]:
    frame = arrow_stream(SIGNAL_SCHEMA, [{"frame": claiming_frame(HUGE)}])
    return lambda url: change_payload(url, signal, 1, lambda payload: frame)


def huge_lengths(payload: bytes) -> bytes:
    """An Arrow stream with the length of a buffer, as its message declares it, made huge."""
    frame = pa.ipc.open_stream(payload).read_all()["frame"][0].as_py()
    return payload.replace(struct.pack("<q", len(frame)), struct.pack("<q", HUGE), 1)


def change_head(change: Callable[[bytes], bytes]) -> Callable[[str], None]:
    def forge(url: str) -> None:
        storage = Storage(url)
        data = change(storage.read(HEAD))
        storage.write(HEAD, data)
        change_manifest(url, put("head", "file", value=file_entry(data).model_dump()))

    return forge


def wide_head(data: bytes) -> bytes:
    """A tensor that is said to be of 10 GB."""
    shape = list(safetensors.torch.load(data)["weight"].shape)
    return data.replace(json.dumps(shape, separators=(",", ":")).encode(), f"[384,{HUGE // 1536}]".encode(), 1)


def other_head(data: bytes) -> bytes:
    return safetensors.torch.save({"weight": torch.zeros(384, 33)})


DECLARED: dict[str, tuple[Callable[[str], None], str]] = {
    "manifest: samples": (lambda url: declare(url, samples=10**7), f"{SHARD}.json"),
    "manifest: samples beyond all": (manifest_change(put("shards", 0, "samples", value=HUGE)), MANIFEST),
    "manifest: tokens": (lambda url: declare(url, tokens=HUGE), f"{SHARD}.json"),
    "manifest: totals": (manifest_change(put("totals", "samples", value=HUGE)), MANIFEST),
    "manifest: tar": (manifest_change(put("shards", 0, "files", "logits", "bytes", value=HUGE)), f"{SHARD}.logits.tar"),
    "manifest: index": (manifest_change(put("shards", 0, "index", "bytes", value=HUGE)), f"{SHARD}.json"),
    "manifest: vocabulary": (manifest_change(put("teacher", "vocab_size", value=2**24 - 1)), "tables/"),
    "manifest: channels": (manifest_change(put("teacher", "hidden_size", value=2**40)), HEAD),
    "manifest: head": (manifest_change(put("head", "file", "bytes", value=HUGE)), HEAD),
    "manifest: entries": (manifest_change(put("capture", "logits", "k", value=HUGE)), MANIFEST),
    "manifest: most entries": (manifest_change(put("capture", "logits", "k", value=65535)), MANIFEST),
    "manifest: as many entries as tokens": (
        manifest_change(put("capture", "logits", "k", value=384)),
        f"{SHARD}.logits.tar",
    ),
    "manifest: draws": (manifest_change(put("capture", "draws", "n", value=4096)), f"{SHARD}.draws.tar"),
    "manifest: name": (manifest_change(put("shards", 0, "name", value="../../shard-000000")), MANIFEST),
    "index: tokens": (index_change(put("num_tokens", 0, value=2**24 + 1)), f"{SHARD}.json"),
    "index: allowed tokens": (longest_sample, f"{SHARD}.json"),
    "index: offset": (index_change(put("signals", "logits", "offsets", 0, value=HUGE)), f"{SHARD}.logits.tar"),
    "index: size": (index_change(put("signals", "logits", "sizes", 0, value=HUGE)), f"{SHARD}.logits.tar"),
    "index: sizes of a huge tar": (huge_tar, f"{SHARD}.logits.tar"),
    "index: a key that is a path": (index_change(put("keys", 0, value="../../x")), f"{SHARD}.json"),
    **{f"zstd frame: {signal}": (bomb(signal), f"{SHARD}.{signal}.tar") for signal in SIGNALS if signal != "tokens"},
    "arrow message": (lambda url: change_payload(url, "logits", 1, huge_lengths), f"{SHARD}.logits.tar"),
    "safetensors header": (change_head(lambda data: struct.pack("<Q", HUGE) + data[8:]), HEAD),
    "safetensors shape": (change_head(wide_head), HEAD),
    "safetensors of another width": (change_head(other_head), HEAD),
}


@pytest.fixture(scope="module")
def warm() -> None:
    """What is compiled or loaded once does not count."""
    assert verify(str(GOLDEN)).problems == []


@pytest.mark.parametrize("kind", DECLARED)
def test_declared_sizes_do_not_allocate_memory(warm: None, signed: Signed, kind: str, bounded: None) -> None:
    forge, name = DECLARED[kind]
    before = {path: path.read_bytes() for path in files_of(signed.folder)}
    forge(signed.url)
    assert before != {path: path.read_bytes() for path in files_of(signed.folder)}
    try:
        found = verify(signed.url).problems
    except UserError as error:
        found = [str(error).replace(f"{signed.url}/", "")]
    assert any(name in problem for problem in found), found
    assert signed.problems()
    with suppress(UserError):  # what is not refused is as it was
        assert array_digests(signed.folder) == array_digests(GOLDEN)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A cache whose shards are listed in a table."""
    monkeypatch.setattr(table_module, "MAX_LISTED_UNITS", 1)
    storage = Storage(str(tmp_path / "large"))
    write_manifest(storage, write_cache(storage.url, random_shards([[5, 3], [7]])))
    return storage


def forge_table(storage: Storage, change: Callable[[bytes], bytes]) -> None:
    entry = read_manifest(storage).shard_table
    assert entry is not None
    data = change(storage.read(table_module.table_file(entry)))
    forged = file_entry(data)
    storage.write(table_module.table_file(forged), data)
    change_manifest(storage.url, put("shard_table", value=forged.model_dump()))


def cell(name: str, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        schema = shard_table_schema(("tokens", "logits"))
        rows = read_columns(schema, data).to_pylist()
        rows[0][name] = value
        return write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))

    return change


def huge_batch(data: bytes) -> bytes:
    """All lengths of two rows are said to be 10¹⁰."""
    return data.replace(struct.pack("<q", 2), struct.pack("<q", HUGE))


TABLES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "samples": (cell("samples", HUGE), "tables/"),
    "tokens": (cell("tokens", HUGE), "tables/"),
    "index": (cell("index_bytes", HUGE), f"{SHARD}.json"),
    "tar": (cell("logits_bytes", HUGE), f"{SHARD}.logits.tar"),
    "number": (cell("number", -1), "tables/"),
    "batch": (huge_batch, "tables/"),
    "cut": (lambda data: data[:-100], "tables/"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_what_a_shard_table_declares(warm: None, large: Storage, kind: str, bounded: None) -> None:
    assert verify(large.url).problems == []
    change, name = TABLES[kind]
    forge_table(large, change)
    try:
        found = verify(large.url).problems
    except UserError as error:
        found = [str(error)]
    assert any(name in problem for problem in found), found


def test_a_declared_table_of_ten_gigabytes(large: Storage, bounded: None) -> None:
    change_manifest(large.url, put("shard_table", "bytes", value=HUGE))
    with pytest.raises(CorruptCacheError, match="tables/"):
        verify(large.url)
