"""A store or a file that has no end, lies about sizes, leads elsewhere or drips: one line, little memory, in time."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.bounded_yaml import MAX_NODES, parse_yaml
from schemas.errors import UserError
from support.amount import FULL
from support.hostile_store import KINDS, hostile_store
from support.synthetic import random_shards, write_cache
from tools.bridges.compression import read_compression

MEASURE = """
import os, resource, sys
from teacher_cache.shards import answers
from tools.cache_tools_cli import main
import s3fs, aiohttp, pydantic, tools.sharing.push, tools.checking.verify, tools.finding.catalog
from teacher_cache.shards.storage import Storage
answers.MAX_FILES = int(os.environ.get("MAX_FILES", answers.MAX_FILES))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main(sys.argv[1:])
finally:
    print("GREW", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, file=sys.stderr, flush=True)
"""
MOST_MIB = 200
SECONDS = 120 if FULL else 60
LISTED = {} if FULL else {"MAX_FILES": "30000"}  # the real limit takes a minute
USUAL = ("endless body", "huge length", "endless listing", "redirect")
USUAL_JSON = ("deep", "many keys", "long list")


def measured(*arguments: object, **env: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """The command in a process of its own, in time; and by how many MiB its memory grew."""
    line = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env}
    done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS, env=env)
    *lines, grew = [each for each in done.stderr.splitlines() if each.startswith(("error: ", "GREW"))]
    assert "Traceback" not in done.stderr, done.stderr
    assert len(lines) <= 1, done.stderr
    return done, int(grew.split()[1])


def refused(done: subprocess.CompletedProcess[str], grew: int) -> None:
    assert done.returncode in (2, 3, 5, 6), done.stderr
    assert "error: " in done.stderr
    assert grew < MOST_MIB


@pytest.mark.parametrize("protocol", ["s3", "http"])
@pytest.mark.parametrize("kind", KINDS if FULL else USUAL)
def test_responses_of_a_hostile_store_are_refused(kind: str, protocol: str, tmp_path: Path) -> None:
    """The store of a cache that is pulled, or verified, tries to exhaust memory or time, or to reach another host."""
    if protocol == "http" and kind in ("endless listing", "endless page"):
        pytest.skip("plain HTTP has no listing")
    with hostile_store(kind) as (address, victim):
        keys = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", **LISTED}
        url = f"{address}/cache" if protocol == "http" else "s3://b/cache"
        command = ("catalog", "--dry-run", "s3://b/cache") if "listing" in kind or "page" in kind else ("inspect", url)
        done, grew = measured(*command, AWS_DEFAULT_REGION="us-east-1", **keys)
        refused(done, grew)
        assert "the listing has more than" in done.stderr or kind != "endless listing"
        assert victim.requests == []
    assert list(tmp_path.iterdir()) == []


def deep(levels: int) -> bytes:
    return b'{"teacher":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}"


JSON = {
    "deep": deep(100_000),
    "deep list": b"[" * 1_000_000,
    "long number": b'{"format_version": ' + b"9" * 2_000_000 + b"}",
    "many keys": b"{" + b",".join(b'"k%d":1' % i for i in range(900_000)) + b"}",
    "long list": b'{"units": [' + b"1," * 7_000_000 + b"1]}",
    "too large": b'{"notes": "' + b"x" * (1 << 25) + b'"}',
}


@pytest.mark.parametrize("kind", JSON if FULL else USUAL_JSON)
def test_a_manifest_that_is_a_bomb(tmp_path: Path, kind: str) -> None:
    """The JSON of a manifest is deep, long, or has a number of two million digits."""
    (tmp_path / "manifest.json").write_bytes(JSON[kind])
    refused(*measured("inspect", tmp_path))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
YAML = {
    "bomb": BOMB,
    "circle": "a: &a [*a]",
    "deep": "[" * 5000,
    "long number": "a: " + "9" * 100_000,
    "too large": "a: " + "x" * (1 << 19),
    "python": "a: !!python/object/apply:os.system ['touch hacked']",
    "zero byte": 'a: "\\0"',
    "half a pair": 'a: "\\ud800"',
    "impossible date": "a: 2026-13-45",
}


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("where", ["data set", "configuration", "override"])
def test_yaml_that_is_a_bomb(tmp_path: Path, kind: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML of 400 bytes that stands for gigabytes, or for a command, in a data set to import or a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(YAML[kind])
    if where == "override":
        if kind == "deep":
            return
        with pytest.raises(UserError, match="not valid YAML"):
            parse_yaml(YAML[kind], "--set a: the value is")
        return
    line = {
        "data set": ["import", tmp_path, tmp_path / "new", "--from", "distillkit", "--compression-config", "c.yaml"],
        "configuration": ["x"],
    }[where]
    if where == "configuration":
        from schemas.cache_config import CacheConfig
        from schemas.load import load_config

        with pytest.raises(UserError, match=r"c\.yaml"):
            load_config(CacheConfig, "c.yaml")
    else:
        with pytest.raises(UserError, match=r"c\.yaml"):
            read_compression(Path(str(line[6])))
    assert not (tmp_path / "hacked").exists()


def test_aliases_of_ones_own_configuration_are_fine() -> None:
    """They are a part of YAML, as long as they stand for less than a configuration could need."""
    assert parse_yaml("a: &a [1, 2]\nb: *a\n", "x", aliases=True) == {"a": [1, 2], "b": [1, 2]}
    with pytest.raises(UserError, match="alias"):
        parse_yaml("a: &a [1, 2]\nb: *a\n", "x")
    with pytest.raises(UserError, match=str(MAX_NODES)):
        parse_yaml(BOMB, "x", aliases=True)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cache_on_a_plain_server(tmp_path: Path, ranges: bool) -> None:
    """`verify`, `stats`, `pull` and reading work over HTTP, with and without ranges, as they do in the folder."""
    from support.plain_server import served
    from teacher_cache.shards.reader import CacheReader
    from tools.checking.verify import verify
    from tools.looking.stats import stats
    from tools.sharing.push import copy_cache

    write_cache(str(tmp_path / "served/cache"), random_shards([[9, 5], [7]]))
    with served(tmp_path / "served", ranges) as address:
        url = f"{address}/cache"
        report = verify(url)
        assert (report.problems, report.samples) == ([], 3)
        assert stats(url).summary() == stats(str(tmp_path / "served/cache")).summary()
        reader, local = CacheReader(url), CacheReader(str(tmp_path / "served/cache"))
        assert [reader.read_tokens(i).text for i in range(3)] == [local.read_tokens(i).text for i in range(3)]
        copy_cache(url, str(tmp_path / "pulled"))
        assert verify(str(tmp_path / "pulled")).problems == []
        assert CacheReader(str(tmp_path / "pulled")).manifest.sha256 == reader.manifest.sha256
        with pytest.raises(UserError, match="not found, so this is not a cache"):
            CacheReader(f"{address}/nothing")
        with pytest.raises(UserError, match="plain HTTP is read-only"):
            copy_cache(str(tmp_path / "pulled"), f"{address}/new")
    with pytest.raises(UserError, match="cannot be reached") as unreachable:
        CacheReader(url)
    assert unreachable.value.exit_code == 6


@pytest.mark.parametrize("url", ["ftp://h/c", "zip://c::file.zip", "reference://x", "sftp://h/c", "jar:///x", "s3://"])
def test_protocols_that_are_not_supported(url: str) -> None:
    """fsspec would open a zip, an FTP server, a chain of both; a cache lies in a folder, or a store of the list."""
    from teacher_cache.shards.storage import Storage

    with pytest.raises(UserError, match="cannot be opened"):
        Storage(url)


def test_names_with_colons_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`::` is a part of a name, not a chain; `~` is the home folder."""
    from teacher_cache.shards.reader import CacheReader

    monkeypatch.setenv("HOME", str(tmp_path))
    write_cache(str(tmp_path / "a::b"), random_shards([[5]]))
    assert len(CacheReader(str(tmp_path / "a::b"))) == len(CacheReader("~/a::b")) == 1


@pytest.fixture(autouse=True)
def keep_limits() -> object:
    """Nothing here may leave limits behind."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
