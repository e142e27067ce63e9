"""A card agrees with the manifest, and free text from it has no effect as markup."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from markdown_it import MarkdownIt
from markdown_it.token import Token

from schemas.derivation import Derivation, Selection, SourceCache
from schemas.errors import CorruptCacheError
from support.forge import change_manifest
from support.hostile import write_hostile_cache
from support.signed import public_key, sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest, remove_garbage, write_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.cache_tools_cli import main
from tools.checking.verify import verify
from tools.finding import card as module
from tools.finding.card import CARD, cache_card, describe, shown_url, write_card
from tools.looking.stats import stats

MARKDOWN = MarkdownIt("commonmark").enable("table")


@pytest.fixture
def url(tmp_path: Path) -> str:
    write_cache(str(tmp_path / "cache"), random_shards([[20, 7], [31]], counting=0.8))
    return str(tmp_path / "cache")


def header(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def inline(tokens: Sequence[Token]) -> list[Token]:
    return [child for token in tokens for child in token.children or []]


def headings(text: str) -> list[str]:
    tokens = MARKDOWN.parse(text.split("---\n", 2)[2])
    return [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]


def test_the_header_holds_the_metadata_of_a_card(url: str) -> None:
    change_manifest(url, lambda tree: tree["provenance"].update(licence="Apache-2.0"))
    manifest = read_manifest(Storage(url))
    found = header(describe(url))
    size = sum(n for name, n in Storage(url).sizes().items() if name != "manifest.json")
    assert found == {
        "license": "Apache-2.0",
        "tags": ["distillation", "teacher-cache", "logits"],
        "teacher": "synthetic",
        "tokenizer_fingerprint": "b" * 64,
        "cache_format_version": 1,
        "manifest_sha256": manifest.sha256,
        "samples": 3,
        "tokens": 58,
        "bytes": size,
    }


def test_the_text_describes_the_cache(url: str) -> None:
    sign(url, 1, "Ann")
    sign(url, 2, "Bob", signature="0" * 128)
    text, manifest = describe(url), read_manifest(Storage(url))
    assert headings(text) == [
        "Teacher cache of `synthetic`",
        "Teacher",
        "Data",
        "Signals",
        "Use",
        "Provenance",
        "Limits",
    ]
    n_bytes, per_token = manifest.totals.bytes["logits"], manifest.totals.bytes_per_token()["logits"]
    for part in (
        "- architecture: `SyntheticForCausalLM`, 2 layers of 8 channels, computed in `float32`",
        "3 samples, 58 tokens",
        "- `synthetic.jsonl`, jsonl, layer `base`",
        "| read | 3 |",
        f"| logits | top 8; temperatures 1, 3; rows: loss_mask | {n_bytes:,} | {per_token:.2f} |",
        "in steps of 1/16 nat",
        f"cache-tools pull URL_OF_THIS_CACHE FOLDER --digest {manifest.sha256}\n",
        "- licence: not stated",
        f"with the key `{public_key(1)}`; self-stated name `Ann`",
    ):
        assert part in text
    assert "Bob" not in text
    assert str(Path(url).parent) not in text


def test_the_history_lists_derivations(url: str) -> None:
    older = SourceCache(manifest_sha256="1" * 64, samples=9, tokens=90)
    merged = Derivation(action="merge", sources=[older, older], duplicates_dropped=4)
    source = SourceCache(manifest_sha256="2" * 64, samples=5, tokens=50, derived=merged)
    derived = Derivation(action="subset", sources=[source], selection=Selection(layers=["code"]), notes="for a test")
    storage = Storage(url)
    write_manifest(storage, read_manifest(storage).model_copy(update={"derived": derived}))
    text = describe(url)
    assert f'- subset: `for a test`; selection `{{"layers":["code"]}}`, from\n  - `{"2" * 64}`: 5 samples' in text
    assert f"    - merge, 4 duplicates dropped, from\n      - `{'1' * 64}`: 9 samples, 90 tokens\n" in text


def test_a_long_history_is_cut(url: str) -> None:
    derived = Derivation(action="repack", sources=[])
    for _ in range(50):
        source = SourceCache(manifest_sha256="1" * 64, samples=1, tokens=1, derived=derived)
        derived = Derivation(action="repack", sources=[source] * 1 if derived.sources else [source] * 60)
    manifest = read_manifest(Storage(url)).model_copy(update={"derived": derived})
    assert cache_card(manifest, url).count("- repack") <= module.MAX_GENERATIONS


@pytest.mark.parametrize("knows_headers", [True, False])
def test_hostile_text_stays_text(tmp_path: Path, knows_headers: bool) -> None:
    for name in ("plain", "hostile"):
        write_hostile_cache(tmp_path / name)
    history = Derivation(
        action="subset",
        sources=[SourceCache(manifest_sha256="d" * 64, samples=2, tokens=13)],
        selection=Selection(layers=["a"]),
        notes="a",
    )

    def tame(tree: dict) -> None:
        tree["teacher"].update(name="a", revision="a", architecture="a", dtype="a")
        tree["provenance"].update(licence="a", owner="a", notes="a")
        tree["corpus"]["settings"]["sources"][0].update(path="a", layer="a")
        tree["derived"] = history.model_dump(mode="json")

    change_manifest(str(tmp_path / "plain"), tame)
    sign(str(tmp_path / "plain"), 1, "a")
    sign(str(tmp_path / "hostile"), 1, "`<b># [x](http://evil.example)\u202e")
    plain, hostile = (describe(str(tmp_path / name), samples=2) for name in ("plain", "hostile"))
    assert len(hostile) < 20_000
    assert all(line.isprintable() for line in hostile.splitlines())
    assert header(hostile).keys() == header(plain).keys()
    if knows_headers:
        plain, hostile = (text.split("---\n", 2)[2] for text in (plain, hostile))
    expected, found = MARKDOWN.parse(plain), MARKDOWN.parse(hostile)
    assert [(token.type, token.level) for token in found] == [(token.type, token.level) for token in expected]
    assert {child.type for child in inline(found)} == {child.type for child in inline(expected)}
    assert not {"html_inline", "link_open", "image"} & {child.type for child in inline(found)}
    assert "evil" not in " ".join(child.content for child in inline(found) if child.type == "text" and knows_headers)


def test_an_incomplete_cache_has_no_digest(tmp_path: Path) -> None:
    write_cache(str(tmp_path), random_shards([[9], [4]]), commit=1)
    text = describe(str(tmp_path))
    assert "**not complete**: 1 of 2 shards" in text
    assert "--digest" not in text
    assert "manifest_sha256" not in header(text)


def test_figures_are_those_of_stats(url: str) -> None:
    figures = stats(url, 2).overall.summary()
    text = describe(url, samples=2)
    assert "| `samples read` | 2 |" in text
    assert f"| `entropy in nats, at least` | {figures['entropy']['mean']:.6g} |" in text
    assert f"| `perplexity of the text to the teacher` | {figures['perplexity']:.6g} |" in text


def test_figures_of_quality_are_shown(url: str) -> None:
    text = cache_card(read_manifest(Storage(url)), url, quality={"a | b": 0.25, "c": 3.0})
    assert "| `a  b` | 0.25 |\n| `c` | 3 |" in text
    assert "Quality" in headings(text)


def test_a_damaged_sample_is_reported(url: str) -> None:
    path = Path(url) / "shard-000000.logits.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    describe(url, samples=0)
    with pytest.raises(CorruptCacheError):
        describe(url, samples=3)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("https://user:secret@host:8/a?signature=secret#x", "https://host:8/a"),
        ("/home/ann/a", "URL_OF_THIS_CACHE"),
        ("a/b", "URL_OF_THIS_CACHE"),
        ("file:///home/ann/a", "URL_OF_THIS_CACHE"),
    ],
)
def test_a_url_is_shown_without_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_the_command_writes_into_the_cache(url: str) -> None:
    run = CliRunner().invoke
    printed = run(main, ["card", url])
    assert printed.exit_code == 0, printed.output
    assert printed.stdout == describe(url, 32)
    assert not (Path(url) / CARD).exists()
    written = run(main, ["card", url, "--write", "--samples", "0", "--json"])
    assert json.loads(written.stdout) == {"card": describe(url), "written": f"{url}/{CARD}"}
    assert (Path(url) / CARD).read_text() == describe(url)
    assert remove_garbage(Storage(url), read_manifest(Storage(url))) == []
    assert verify(url).problems == []
    assert len(CacheReader(url)) == 3
    assert run(main, ["card", f"{url}/nothing"]).exit_code == 2


def test_an_object_store(s3_url: str) -> None:
    write_cache(s3_url, random_shards([[9, 4]]))
    sign(s3_url, 1, "Ann")
    text = describe(s3_url, samples=2)
    assert f"cache-tools pull {s3_url} FOLDER --digest" in text
    assert "`Ann`" in text
    assert write_card(s3_url, text) == f"{s3_url}/{CARD}"
    assert Storage(s3_url).read(CARD).decode() == text
    assert remove_garbage(Storage(s3_url), read_manifest(Storage(s3_url))) == []
