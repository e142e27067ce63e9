"""An export is written completely or not at all; export and import by their command lines, with an object store."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from schemas.cache_config import DrawsCapture, LogitsCapture
from schemas.errors import UserError
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from tools.bridges import export as module
from tools.bridges.export import LAYOUTS, export
from tools.cache_tools_cli import main
from tools.checking.verify import verify


def test_a_target_that_is_there_is_refused(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "cache"), random_shards([[5]]))
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in ("out", "link"):
        with pytest.raises(UserError, match="exists already"):
            export(str(tmp_path / "cache"), str(tmp_path / out), "parquet", None, 100, print)
    with pytest.raises(UserError, match="local folder"):
        export(str(tmp_path / "cache"), "s3://bucket/x", "parquet", None, 100, print)
    write_cache(str(tmp_path / "empty"), random_shards([[5]]), commit=0)
    with pytest.raises(UserError, match="no committed samples"):
        export(str(tmp_path / "empty"), str(tmp_path / "new"), "parquet", None, 100, print)


@pytest.mark.parametrize("layout", [layout.name for layout in LAYOUTS])
def test_a_failure_leaves_nothing(
    tmp_path: Path, verifier_cache: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        assert len(list((tmp_path / "deep").iterdir())) == 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_card", fail)
    with pytest.raises(UserError, match="No space left"):
        export(verifier_cache, str(tmp_path / "deep/out"), layout, None, None, lambda *_: None)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("layout", ["megatron", "speculators"])
def test_settings_that_a_layout_does_not_have_are_refused(tmp_path: Path, verifier_cache: str, layout: str) -> None:
    with pytest.raises(UserError, match=f"--tokens-per-file 100: the layout {layout} has no such files; leave it out"):
        export(verifier_cache, str(tmp_path / "out"), layout, None, 100, lambda *_: None)
    with pytest.raises(UserError, match=f"--temperature 2: the layout {layout} has no temperature; leave it out"):
        export(verifier_cache, str(tmp_path / "out"), layout, 2.0, None, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_text_of_the_manifest_is_escaped_in_the_card(tmp_path: Path) -> None:
    from schemas.cache_config import Provenance
    from teacher_cache.shards.marks import write_manifest
    from teacher_cache.shards.storage import Storage

    url = str(tmp_path / "cache")
    manifest = write_cache(url, random_shards([[5]]))
    provenance = Provenance(licence="<script>x</script>", notes="a\n\n# Heading")
    write_manifest(Storage(url), manifest.model_copy(update={"provenance": provenance}))
    export(url, str(tmp_path / "out"), "parquet", None, 100, lambda *_: None)
    card = (tmp_path / "out/README.md").read_text()
    assert "<script>" not in card
    assert "\n# Heading" not in card


def test_the_commands_export_and_import_a_cache(s3_url: str, tmp_path: Path) -> None:
    capture = LogitsCapture(k=8)
    write_cache(f"{s3_url}/a", random_shards([[9, 5], [7]], capture=capture), capture=capture)
    run = CliRunner().invoke(
        main, ["export", f"{s3_url}/a", str(tmp_path / "out"), "--to", "parquet", "--tokens-per-file", "9", "--json"]
    )
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert (said["samples"], said["tokens"], said["rows"], said["files"]) == (3, 21, 18, 2)
    assert said["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert sum(pq.read_metadata(file).num_rows for file in (tmp_path / "out/data").iterdir()) == 3
    run = CliRunner().invoke(main, ["import", str(tmp_path / "out"), f"{s3_url}/b", "--from", "parquet", "--json"])
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert (said["samples"], said["tokens"], said["rows"], said["shards"]) == (3, 21, 18, 1)
    assert verify(f"{s3_url}/b").problems == []
    assert CacheReader(f"{s3_url}/b").keys == CacheReader(f"{s3_url}/a").keys
    run = CliRunner().invoke(main, ["import", str(tmp_path / "out"), f"{s3_url}/b", "--from", "parquet"])
    assert run.exit_code == 2
    assert f"error: {s3_url}/b/manifest.json: a cache already exists" in run.stderr


@pytest.mark.parametrize("draws", [None, DrawsCapture(n=2)])
def test_draws_that_are_left_out_are_said(
    draws: DrawsCapture | None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(url: str) -> CacheReader:
        reader = CacheReader(url)
        capture = reader.manifest.capture.model_copy(update={"draws": draws})
        reader.manifest = reader.manifest.model_copy(update={"capture": capture})
        return reader

    url = str(tmp_path / "cache")
    write_cache(url, random_shards([[5]]))
    monkeypatch.setattr(module, "CacheReader", opened)
    export(url, str(tmp_path / "out"), "parquet", None, 100, lambda *_: None)
    said = f"{url}: the 8 entries of each row are exported, its draws are not; for more entries, cache with "
    said += "capture.logits.k=64 and capture.draws=null"
    assert [record.message for record in caplog.records] == ([] if draws is None else [said])
