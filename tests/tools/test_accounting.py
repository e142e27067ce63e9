"""All reports of a cache's size agree, and state what they count."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.filesize import decimal

from support.golden import GOLDEN
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from tools.cache_tools_cli import main
from tools.finding.card import describe as card
from tools.finding.catalog import scan
from tools.looking.inspect import describe
from tools.looking.stats import stats
from tools.report.measured import figures, key_figures
from tools.sharing.push import copy_cache


@pytest.fixture
def sizes() -> dict[str, int]:
    """Bytes by kind of file, of a cache with every signal, a code table and an output head."""
    found: dict[str, int] = {}
    for name, size in Storage(str(GOLDEN)).sizes().items():
        if tar := re.fullmatch(r"shard-\d+\.(\w+)\.tar", name):
            kind = tar[1]
        elif name.startswith("tables/"):
            kind = "tables"
        else:
            kind = {"head.safetensors": "head", "manifest.json": ""}.get(name, "index")
        found[kind] = found.get(kind, 0) + size
    del found[""]
    assert {"tokens", "logits", "final", "head", "tables", "index"} <= set(found)
    return found


def test_all_commands_report_the_same_totals(sizes: dict[str, int], tmp_path: Path) -> None:
    manifest, total = read_manifest(Storage(str(GOLDEN))), sum(sizes.values())
    tokens = manifest.totals.tokens
    assert manifest.sizes() == sizes
    assert describe(str(GOLDEN))["bytes"] == sizes | {"total": total}

    text = card(str(GOLDEN), samples=0)
    assert f"bytes: {total}\n" in text
    rows = dict(re.findall(r"^\| (\w+) \| [^|]*\| ([\d,]+) \| [\d.]+ \|$", text, flags=re.MULTILINE))
    assert {name: int(size.replace(",", "")) for name, size in rows.items()} == sizes

    measured = stats(str(GOLDEN))
    shown = {figure["what"]: figure["value"] for figure in key_figures(measured)}
    assert (shown["stored"], shown["bytes a token"]) == (decimal(total), f"{total / tokens:,.0f}")
    (plot,) = [figure for figure in figures(measured) if figure.title == "Size by kind of file"]
    assert f"{total / tokens:,.1f} bytes a token in all" in plot.caption
    assert all(kind in plot.svg for kind in sizes)

    shutil.copytree(GOLDEN, tmp_path / "caches/golden")
    (entry,) = scan(str(tmp_path / "caches"), 2).caches
    assert entry.bytes == total

    by_kind = copy_cache(str(GOLDEN), str(tmp_path / "copy")).as_dict()["by_kind"]
    assert {kind: found["sent"] for kind, found in by_kind.items() if kind not in ("manifest", "signatures")} == sizes
    shown = json.loads(CliRunner().invoke(main, ["inspect", str(GOLDEN), "--json"]).stdout)
    assert shown["bytes_per_token"]["total"] == pytest.approx(total / tokens)
