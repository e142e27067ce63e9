"""A tar's own headers against the index: every forgery is consistent in checksums and sizes."""

import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CorruptCacheError
from schemas.manifest import MemberIndex
from support.synthetic import file_entry
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import TarWriter, checksum
from tools.checking import tars
from tools.checking.tars import check_headers, check_tar

KEYS = ["a0", "b1", "c2", "d3"]
PAYLOADS = [b"", bytes(range(256)) * 5, b"x" * 512, b"y" * 7]
Member = tuple[tarfile.TarInfo, bytes]
Change = Callable[[list[Member]], object]
Check = Callable[[Path, bytes, MemberIndex], None]


def members() -> list[Member]:
    made = []
    for key, payload in zip(KEYS, PAYLOADS, strict=True):
        info = tarfile.TarInfo(f"{key}.logits.arrow")
        info.size = len(payload)
        made.append((info, payload))
    return made


def build(change: Change = lambda made: None, form: int = tarfile.USTAR_FORMAT) -> tuple[bytes, MemberIndex]:
    """A tar written by the standard library, and the index of the payloads that are KEYS'."""
    made = members()
    change(made)
    sink = io.BytesIO()
    places: dict[bytes, int] = {}
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for info, payload in made:
            tar.addfile(info, io.BytesIO(payload))
            places.setdefault(payload, sink.tell() - -(-len(payload) // 512) * 512)
    data = sink.getvalue()
    return data, index_of(data, [places[payload] for payload in PAYLOADS])


def index_of(data: bytes, offsets: list[int], sizes: list[int] | None = None) -> MemberIndex:
    return MemberIndex(
        file=file_entry(data),
        offsets=offsets,
        sizes=sizes or [len(payload) for payload in PAYLOADS],
        checksums=[checksum(payload) for payload in PAYLOADS],
    )


def check(folder: Path, data: bytes, index: MemberIndex) -> None:
    storage = Storage(str(folder))
    storage.write("shard-000000.logits.tar", data)
    check_tar(storage, "shard-000000.logits.tar", "logits", KEYS, index)


def check_by_headers(folder: Path, data: bytes, index: MemberIndex) -> None:
    path = folder / "shard-000000.logits.tar"
    path.write_bytes(data)
    check_headers(path, str(path), "logits", KEYS, index)


both_ways = pytest.mark.parametrize("check", [check, check_by_headers])


@both_ways
@pytest.mark.parametrize("read_bytes", [512, 1024, 1 << 24])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_tars_of_any_writer_are_fine(
    check: Check, tmp_path: Path, form: int, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "READ_BYTES", read_bytes)

    def as_a_user(made: list[Member]) -> None:
        for info, _ in made:
            info.mtime, info.uid, info.uname, info.mode = 1_700_000_000, 1000, "ann", 0o400

    check(tmp_path, *build(as_a_user, form))


def insert(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Change:
    def change(made: list[Member]) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        made.insert(2, (info, b""))

    return change


def rename(name: str) -> Change:
    return lambda made: setattr(made[1][0], "name", name)


def become(kind: bytes, link: str = "") -> Change:
    """The empty first member becomes something else than a file."""

    def change(made: list[Member]) -> None:
        made[0][0].type, made[0][0].linkname = kind, link

    return change


FORGED: dict[str, tuple[Change, str]] = {
    "renamed": (rename("b2.logits.arrow"), "sample b1 has another name"),
    "another signal": (rename("b1.tokens.arrow"), "sample b1 has another name"),
    "traversal": (rename("../../b1.logits.arrow"), "sample b1 has another name"),
    "absolute": (rename("/etc/cron.d/b1.logits.arrow"), "sample b1 has another name"),
    "prefix": (rename(f"{'p' * 90}/b1.logits.arrow"), "sample b1 has another name"),
    "swapped names": (
        lambda made: (setattr(made[0][0], "name", KEYS[1]), setattr(made[1][0], "name", KEYS[0])),
        "sample a0 has another name",
    ),
    "symlink": (become(tarfile.SYMTYPE, "/etc/passwd"), "sample a0 is not a plain file"),
    "hard link": (become(tarfile.LNKTYPE, "../x"), "sample a0 is not a plain file"),
    "device": (become(tarfile.CHRTYPE), "sample a0 is not a plain file"),
    "pipe": (become(tarfile.FIFOTYPE), "sample a0 is not a plain file"),
    "folder": (become(tarfile.DIRTYPE), "sample a0 "),
    "extra member": (insert("e4.logits.arrow"), "sample c2 does not begin where"),
    "extra link": (insert("x", tarfile.SYMTYPE, "/etc"), "sample c2 does not begin where"),
    "extra at the end": (lambda made: made.append((tarfile.TarInfo("../x"), b"")), "data after its last member"),
    "order": (lambda made: made.reverse(), "does not begin where"),
}


@both_ways
@pytest.mark.parametrize("name", FORGED)
def test_tars_that_other_readers_would_read_differently_are_refused(check: Check, tmp_path: Path, name: str) -> None:
    change, problem = FORGED[name]
    with pytest.raises(CorruptCacheError, match=rf"shard-000000\.logits\.tar: .*{problem}"):
        check(tmp_path, *build(change))


@both_ways
def test_long_names_and_pax_headers_are_refused(check: Check, tmp_path: Path) -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with pytest.raises(CorruptCacheError, match="begin where"):
            check(tmp_path, *build(rename("n" * 120), form))


@both_ways
def test_every_byte_of_a_header_that_readers_look_at_is_checked(check: Check, tmp_path: Path) -> None:
    """Sizes that lie, checksums that do not hold, and a tar that does not end."""
    data, index = build()
    rng = np.random.default_rng(0)
    looked_at = [*range(100), *range(124, 136), *range(148, 157), *range(157, 262), *range(345, 500)]
    for place in rng.choice(looked_at, 60, replace=False):
        changed = bytearray(data)
        changed[512 + place] ^= 1 + rng.integers(255)  # of b1, which begins there: the first member is empty
        with pytest.raises(CorruptCacheError, match="sample b1"):
            check(tmp_path, bytes(changed), index_of(bytes(changed), index.offsets))
    end = index.offsets[-1] + 512
    for n_bytes in (0, 512, 1023):
        short = data[: end + n_bytes]
        with pytest.raises(CorruptCacheError, match="two blocks that end a tar are missing"):
            check(tmp_path, short, index_of(short, index.offsets))
    check(tmp_path, data[: end + 1024], index_of(data[: end + 1024], index.offsets))


@both_ways
def test_offsets_that_overlap_are_refused(check: Check, tmp_path: Path) -> None:
    data, index = build()
    with pytest.raises(CorruptCacheError, match="sample c2 does not begin where"):
        check(tmp_path, data, index_of(data, [*index.offsets[:2], index.offsets[1], index.offsets[3]]))


def bundled() -> tuple[bytes, MemberIndex]:
    """Two bundles, of KEYS' first three samples and of the last."""
    with tempfile.TemporaryDirectory() as folder:
        with TarWriter(Path(folder) / "x", "logits", [3, 1]) as tar:
            for key, payload in zip(KEYS, PAYLOADS, strict=True):
                tar.add(key, payload or b"-")
        return (Path(folder) / "x").read_bytes(), tar.index()


@both_ways
def test_bundles_are_fine(check: Check, tmp_path: Path) -> None:
    check(tmp_path, *bundled())


def moved(index: MemberIndex, field: str, row: int, by: int) -> MemberIndex:
    values = list(getattr(index, field))
    values[row] += by
    return index.model_copy(update={field: values})


@both_ways
def test_bundles_whose_records_lie_elsewhere_than_the_index_says_are_refused(check: Check, tmp_path: Path) -> None:
    data, index = bundled()
    assert index.bundles is not None
    forged = [moved(index, "offsets", 1, 1), moved(index, "sizes", 2, -1)]
    swapped = index.model_copy(update={"offsets": [*index.offsets[1::-1], *index.offsets[2:]]})
    for wrong in (*forged, swapped):
        with pytest.raises(CorruptCacheError, match="bundle of sample a0 does not have its records where"):
            check(tmp_path, data, wrong)
    fewer = index.bundles.model_copy(update={"samples": [2, 2]})
    with pytest.raises(CorruptCacheError, match=r"another name|does not have its records"):
        check(tmp_path, data, index.model_copy(update={"bundles": fewer}))
    place = index.bundles.offsets[1]
    broken = data[:place] + b"x" + data[place + 1 :]
    with pytest.raises(CorruptCacheError, match="bundle of sample d3: not a valid Arrow stream"):
        check(tmp_path, broken, index.model_copy(update={"file": file_entry(broken)}))


def test_another_file_is_named_by_its_checksum_first(tmp_path: Path) -> None:
    data, index = build()
    with pytest.raises(CorruptCacheError, match="sha256 is"):
        check(tmp_path, data[:-1] + b"x", index)
    with pytest.raises(CorruptCacheError, match="the manifest says"):
        check(tmp_path, data[:-512], index)


def test_a_false_size_is_found_quickly(tmp_path: Path) -> None:
    data, index = build()
    entry = index.file.model_copy(update={"bytes": 2**52})
    with pytest.raises(CorruptCacheError, match=f"{len(data)} bytes, the manifest says {2**52}"):
        check(tmp_path, data, index.model_copy(update={"file": entry}))
