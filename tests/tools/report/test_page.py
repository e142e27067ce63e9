"""Contents of the page, without a browser."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from markupsafe import escape

from schemas.cache_config import HiddenCapture
from schemas.errors import UserError
from support.byte_student import write_byte_student
from support.golden import GOLDEN, SIGNALS, WITH_CHATS
from support.signed import public_key, sign
from support.synthetic import random_shards, write_cache
from support.worded import worded_pair
from teacher_cache.retarget.row_targets import Kind
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.hidden.capture import to_floats
from teacher_cache.signals.hidden.record import HiddenSample
from tools.cache_tools_cli import main
from tools.looking.align import KIND_NAMES, align
from tools.report.page import MOST_BYTES, report, spread
from tools.report.sample_columns import MOST_TOKENS, _norms


def data_of(page: Path) -> dict[str, Any]:
    (text,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL
    )
    return json.loads(text)


def test_a_sample_is_what_the_cache_holds(tmp_path: Path) -> None:
    reader = CacheReader(str(GOLDEN), SIGNALS)
    key = reader.keys[2]
    written = report(str(GOLDEN), tmp_path / "r.html", samples=0, keys=[key])
    assert written.samples == [key]
    (sample,) = data_of(tmp_path / "r.html")["samples"]
    tokens, logits, draws = reader.read_tokens(2), reader.read_logits(2), reader.read_draws(2)
    assert "".join(sample["text"]) + "".join(sample["gaps"].values()) == tokens.text
    assert sample["tokens"] == len(tokens.input_ids)
    for p, t in enumerate(logits.positions.tolist()):
        assert sample["best"][str(t)]["ids"] == logits.ids[p, :6].tolist()
        np.testing.assert_allclose(
            np.array(sample["best"][str(t)]["p"]) / 1e4, np.exp(logits.logprobs[p, :6]), atol=6e-5
        )
        assert sample["entropy"][t] == round(100 * float(draws.entropy[p, 0]))
        assert sample["next"][t] == pytest.approx(1e4 * np.exp(logits.next_logprob[p]), abs=0.51)
        assert sample["following"][t] == tokens.input_ids[t + 1]
        assert sample["stored"][t] == pytest.approx(1e4 * np.exp(logits.logprobs[p]).sum(), abs=0.51)
    assert [t for t, value in enumerate(sample["entropy"]) if value is not None] == logits.positions.tolist()
    attention = reader.read_attention(2)
    assert sample["heads"] == attention.heads.tolist()
    for p, t in enumerate(attention.positions.tolist()):
        for h, pairs in enumerate(sample["attention"][str(t)]):
            n = len(pairs) // 2
            assert pairs[::2] == attention.keys[p, h, :n].tolist()
            np.testing.assert_allclose(np.array(pairs[1::2]) / 1e4, attention.weights[p, h, :n], atol=6e-5)
    hidden, capture = reader.read_hidden(2), reader.manifest.capture.hidden
    assert capture is not None
    norms = np.linalg.norm(to_floats(hidden, capture).numpy(), axis=2)
    assert list(sample["hidden"]) == [str(t) for t in hidden.positions]
    np.testing.assert_allclose(list(sample["hidden"].values()), norms, rtol=1e-3)
    assert sample["layers"] == [1, 2]
    assert set(sample["final"]) == {str(t) for t in reader.read_final(2).positions}


def test_a_long_sequence_is_shown_where_it_counts(tmp_path: Path) -> None:
    tokens, logits = worded_pair([f"w{i} " for i in range(900)], vocab_size=1000, seed=1)
    mask = np.zeros(900, bool)
    mask[700:899] = True
    keep = {name: value[700:] for name, value in vars(logits).items() if name != "num_tokens"}
    write_cache(str(tmp_path / "c"), [[(replace(tokens, loss_mask=mask), replace(logits, **keep))]], vocab_size=1000)
    report(str(tmp_path / "c"), tmp_path / "r.html")
    (sample,) = data_of(tmp_path / "r.html")["samples"]
    assert sample["first"] == 900 - MOST_TOKENS
    assert len(sample["text"]) == MOST_TOKENS
    assert sample["text"][0] == f"w{900 - MOST_TOKENS} "
    assert sample["gaps"] == {}
    assert sample["entropy"][700 - sample["first"]] is not None
    assert sample["entropy"][699 - sample["first"]] is None


def test_the_page_is_the_same_every_time_and_spread_over_layers(tmp_path: Path) -> None:
    pairs = [worded_pair(["a", "b", "c", f"{i}"], layer="xyz"[min(i, 2)], seed=i) for i in range(30)]
    write_cache(str(tmp_path / "c"), [pairs[:20], pairs[20:]])
    first, second = (report(str(tmp_path / "c"), tmp_path / name, samples=5) for name in ("1.html", "2.html"))
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    assert first.samples == second.samples
    assert [sample["layer"] for sample in data_of(tmp_path / "1.html")["samples"]] == ["x", "y", "z", "z", "z"]


def test_spread() -> None:
    assert spread({"b": [1, 2, 3], "a": [9]}, 3) == [9, *spread({"b": [1, 2, 3]}, 2)]
    assert spread({"a": [1, 2]}, 10) == [1, 2]
    assert spread({}, 3) == []
    assert spread({"a": [1]}, 0) == []


def test_the_file_stays_small(tmp_path: Path) -> None:
    """A million tokens, and many samples requested, each shown in full and incompressible."""
    (distinct,) = random_shards([[2048] * 2], vocab_size=2000)
    pairs = [
        (replace(tokens, key=f"{copy:04x}{tokens.key}"[:32], source_id=f"f{copy}#1"), logits)
        for copy in range(245)
        for tokens, logits in distinct
    ]
    manifest = write_cache(str(tmp_path / "c"), [pairs[:200], pairs[200:]], vocab_size=2000)
    assert manifest.totals.tokens > 10**6
    written = report(str(tmp_path / "c"), tmp_path / "r.html", samples=400)
    assert written.bytes == (tmp_path / "r.html").stat().st_size <= MOST_BYTES == 5_000_000
    assert written.left_out > 0
    assert len(written.samples) + written.left_out == 400
    assert f"{written.left_out} samples were left out" in (tmp_path / "r.html").read_text("utf-8")


def test_very_long_texts_do_not_make_a_large_file(tmp_path: Path) -> None:
    pair = worded_pair(["<" * 30_000, *["&" * 900] * 250], layer="l" * 100_000, source_id="s" * 100_000)
    write_cache(str(tmp_path / "c"), [[pair]])
    assert report(str(tmp_path / "c"), tmp_path / "r.html").bytes < 1_000_000


def test_facts(tmp_path: Path) -> None:
    report(str(GOLDEN), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    manifest = read_manifest(Storage(str(GOLDEN)))
    for fact in (
        manifest.digest(),
        manifest.teacher.fingerprint,
        "Apache-2.0",
        "a golden cache",
        "<bdi>no</bdi>",
        "top 28",
    ):
        assert fact in page
    assert "exact, as stored with the draws" in page


def test_signatures(tmp_path: Path) -> None:
    url = str(tmp_path / "c")
    write_cache(url, random_shards([[9]]))
    sign(url, 1, "Ada <x>")
    sign(url, 2, "Eve", signer="Ada")
    report(url, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "by “Ada &lt;x&gt;” (self-stated name), 2026-11-01T12:00:00+00:00; valid signature" in page
    assert f"invalid signature of key {public_key(2)}: the signature does not match its statement" in page


def test_from_a_store(s3_url: str, tmp_path: Path) -> None:
    write_cache(s3_url, random_shards([[20, 30]]))
    sign(s3_url)
    assert len(report(s3_url, tmp_path / "r.html").samples) == 2
    assert "valid signature of key" in (tmp_path / "r.html").read_text("utf-8")


def test_the_command(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "c"), random_shards([[20, 30]]))
    out = tmp_path / "r.html"
    result = CliRunner().invoke(main, ["report", str(tmp_path / "c"), str(out)])
    assert result.exit_code == 0, result.output
    assert f"{out}: {out.stat().st_size:,} bytes, 2 samples" in result.output
    as_json = CliRunner().invoke(main, ["report", str(tmp_path / "c"), str(out), "--samples", "1", "--json"])
    found = json.loads(as_json.stdout)
    assert found["bytes"] == out.stat().st_size
    assert len(found["samples"]) == 1
    assert list(tmp_path.glob(".*")) == []


def test_problems_leave_no_file(tmp_path: Path) -> None:
    url = str(tmp_path / "c")
    write_cache(url, random_shards([[20]]))
    with pytest.raises(UserError, match="no sample 'abc' among 1"):
        report(url, tmp_path / "r.html", keys=["abc"])
    with pytest.raises(UserError, match=r"nowhere/r\.html: cannot be written: No such file or directory"):
        report(url, tmp_path / "nowhere" / "r.html")
    with pytest.raises(UserError, match="not found, so this is not a cache"):
        report(str(tmp_path / "no"), tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def test_an_unfinished_cache(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "c"), random_shards([[20], [30]]), commit=1)
    report(str(tmp_path / "c"), tmp_path / "r.html")
    assert "the run is not finished" in (tmp_path / "r.html").read_text("utf-8")


def test_norms_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    capture = HiddenCapture(layers=[1], dtype="float16")
    values = np.array([[[1.0, 2, 2, 0]], [[np.inf, 0, 0, 0]]], np.float16).view(np.int16)
    empty = np.empty((2, 1, 0), np.int16)
    sample = HiddenSample(np.array([3, 5], np.int32), values, empty, empty, empty)
    assert _norms(sample, capture, 0, 10) == {3: [3.0], 5: [None]}
    assert _norms(sample, capture, 4, 5) == {}


def test_a_student_that_cannot_be_taught_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    out, student = tmp_path / "r.html", write_byte_student(tmp_path / "student")
    with pytest.raises(
        UserError, match=r"no vocabulary\.arrow \(format 1\.0\), so only students with the teacher's own"
    ):
        report(str(GOLDEN), out, student=student)
    with pytest.raises(UserError, match=r"--student: .*nowhere \(no such folder\): cannot load a tokenizer"):
        report(str(WITH_CHATS), out, student=str(tmp_path / "nowhere"))
    assert not out.exists()


def test_shares_of_a_student_are_in_the_page(tmp_path: Path) -> None:
    out, student = tmp_path / "r.html", write_byte_student(tmp_path / "student")
    result = CliRunner().invoke(main, ["report", str(WITH_CHATS), str(out), "--samples", "2", "--student", student])
    assert result.exit_code == 0, result.output
    found = align(str(WITH_CHATS), student, None).summary()
    page = " ".join(out.read_text("utf-8").split())
    for arm, share in found["taught"].items():
        assert re.search(rf'<th scope="row">{arm} <span class="kind">[^<]*</span></th><td>{share:.1%}</td>', page)
    for kind, name in KIND_NAMES.items():
        cells = f"</span> {escape(name)}</th><td>{found['kinds'][kind.name.lower()]:,}</td>"
        assert cells in page
    assert len(data_of(out)["student"]["samples"]) == 2
    assert data_of(out)["student"]["kinds"][0] == {"name": KIND_NAMES[Kind.EQUAL], "colour": "equal"}
