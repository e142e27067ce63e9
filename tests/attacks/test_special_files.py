"""Named pipes, devices, links and planted files where a command expects files: refused at once, or left alone."""

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from schemas.errors import CorruptCacheError
from schemas.signature import signature_file
from support.hostile import write_hostile_cache
from support.signed import public_key, sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.cache_tools_cli import main
from tools.sharing.push import copy_cache

SECONDS = 1.0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(str(tmp_path / "cache"), random_shards([[9, 5], [7]]))
    sign(str(tmp_path / "cache"))
    return tmp_path / "cache"


def invoke(*arguments: object) -> Result:
    """The command, which must have ended within a second."""
    started = time.monotonic()
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert time.monotonic() - started < SECONDS
    return result


def refused(result: Result, *wanted: str, status: int = 3) -> None:
    assert result.exit_code == status, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(text in line for text in wanted), line


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link_out(path: Path) -> None:
    secret = Path.cwd() / "secret"  # beside the cache
    secret.write_text("a private key")
    path.symlink_to(secret)


def a_circle(path: Path) -> None:
    path.symlink_to(path)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": a_pipe, "device": a_device, "socket": a_socket, "folder": a_folder, "link": a_link_out, "circle": a_circle,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [MANIFEST, "shard-000000.json", "shard-000000.logits.tar", "table", "signature"])
def test_a_special_file_in_a_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    """A cache whose file is a pipe, a device, … tries to hang whoever reads it, or to show another file's content."""
    monkeypatch.chdir(cache.parent)
    table = next(path.name for path in (cache / "tables").iterdir())
    name = {"table": f"tables/{table}", "signature": signature_file(public_key(1))}.get(name, name)
    (cache / name).unlink()
    KINDS[kind](cache / name)
    with pytest.raises(CorruptCacheError, match=name.rpartition("/")[2]):
        Storage(str(cache)).read(name)
    result = invoke("verify", cache, "--require-signature", public_key(1))
    assert result.exit_code == (3 if name == MANIFEST else 1), result.output
    assert name in result.output
    assert "a private key" not in result.output
    result = invoke("push", cache, cache.parent / "pushed")
    if kind == "folder" and name.startswith("signatures/"):  # it is no file, so it stays behind
        assert not (cache.parent / "pushed" / name).exists()
        return
    assert result.exit_code != 0
    assert not (cache.parent / "pushed" / MANIFEST).exists()


def test_planted_files_are_not_pushed(cache: Path, tmp_path: Path) -> None:
    """Files in `signatures/` that are no signatures, a private key say, try to be sent along."""
    (cache / "signatures/key").write_text("a private key")
    (cache / "signatures/-x").write_text("a private key")
    (cache / "signatures/key.json").write_text("a private key")
    (cache / "notes.txt").write_text("mine")
    assert copy_cache(str(cache), str(tmp_path / "pushed")).sent_files["signatures"] == 1
    sent = {path.relative_to(tmp_path / "pushed").as_posix() for path in (tmp_path / "pushed").rglob("*")}
    assert signature_file(public_key(1)) in sent
    assert not sent & {"signatures/key", "signatures/-x", "signatures/key.json", "notes.txt"}
    (cache / signature_file(public_key(2))).write_text("a private key")
    refused(invoke("push", cache, tmp_path / "again"), public_key(2), status=2)


def test_nothing_is_written_through_a_link(cache: Path, tmp_path: Path) -> None:
    """`signatures` is a link that leads out of the cache: whoever signs would write there."""
    invoke("keygen", tmp_path / "key", "--name", "owner")
    shutil.move(cache / "signatures", tmp_path / "elsewhere")
    (cache / "signatures").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").iterdir())
    refused(invoke("sign", cache, "--key", tmp_path / "key"), "signatures", "a link", status=2)
    assert sorted((tmp_path / "elsewhere").iterdir()) == before


def test_links_of_a_hubs_snapshot_are_followed(cache: Path, tmp_path: Path) -> None:
    """A hub's local copy has links to `blobs` for files; that is a cache like any other."""
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/0123"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in cache.rglob("*") if path.is_file()):
        link = snapshot / path.relative_to(cache)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    (tmp_path / "linked").symlink_to(snapshot)
    for url in (snapshot, tmp_path / "linked"):
        assert invoke("verify", url, "--require-signature", public_key(1)).exit_code == 0
        assert len(CacheReader(str(url))) == 3


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("what", ["key", "trusted keys", "public key", "settings"])
def test_a_special_file_on_a_command_line(cache: Path, tmp_path: Path, what: str, kind: str) -> None:
    """A path given to a command is a pipe that nobody writes to, a device without end, or a folder."""
    path = tmp_path / ("special.pub" if what == "public key" else "special")
    KINDS[kind](path)
    lines = {
        "key": ["sign", cache, "--key", path],
        "trusted keys": ["trust", "1" * 64, "--name", "x", "--trusted-keys", path],
        "public key": ["verify", cache, "--require-signature", path],
        "settings": ["import", cache, tmp_path / "new", "--from", "distillkit", "--compression-config", path],
    }
    result = invoke(*lines[what])
    assert result.exit_code == 2, result.output
    assert "error: " in result.stderr.lower()
    assert not (tmp_path / "new").exists()


def test_a_report_to_a_device(cache: Path, tmp_path: Path) -> None:
    """A report is written to `/dev/full` and to `/dev/null`, which must stay devices; and to a link."""
    from teacher_cache.user_file import write_whole

    refused(invoke("report", cache, "/dev/full"), "/dev/full", "No space left", status=4)
    assert Path("/dev/full").is_char_device()
    write_whole(Path("/dev/null"), b"page")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "target.html").write_text("old")
    (tmp_path / "target.html").chmod(0o640)
    (tmp_path / "link.html").symlink_to("target.html")
    write_whole(tmp_path / "link.html", b"new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "target.html").read_text() == "new"
    assert (tmp_path / "target.html").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_written_files_have_modes_by_the_umask(tmp_path: Path, mask: int) -> None:
    """A colleague could not read what a temporary file's own mode, 0600, was left on."""
    from teacher_cache.user_file import write_whole

    before = os.umask(mask)
    try:
        write_whole(tmp_path / "page.html", b"page")
    finally:
        os.umask(before)
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize(
    "line", ["inspect", "stats", "compare", "report", "card", "catalog", "search", "verify", "trust"]
)
def test_hostile_text_is_neither_markup_nor_control(tmp_path: Path, line: str) -> None:
    """Names, licence and notes hold markup that does not match (`[/]`), escape sequences and bidi controls."""
    text = "[/] [red]x[/bold] \x1b[2J\u202egnp\u2066 \x9b31m"
    write_hostile_cache(tmp_path / "caches/a", licence=text, owner=text, notes=text)
    cache = tmp_path / "caches/a"
    (tmp_path / "keys").write_text(f"{'1' * 64} [/] name\n")
    lines = {
        "compare": ["compare", cache, cache],
        "report": ["report", cache, tmp_path / "page.html"],
        "catalog": ["catalog", tmp_path / "caches"],
        "search": ["search", tmp_path / "caches", "--scan"],
        "trust": ["trust", "--trusted-keys", tmp_path / "keys"],
    }
    result = CliRunner().invoke(main, [str(part) for part in lines.get(line, [line, cache])])
    assert result.exit_code == 0, result.output
    assert all(part.isprintable() for part in result.output.split("\n"))
    if line == "inspect":
        assert r"[/] [red]x[/bold] \x1b[2J\u202egnp\u2066 \x9b31m" in result.output
