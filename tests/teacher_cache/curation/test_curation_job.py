"""Whole curations of a small corpus."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.curated_manifest import CuratedManifest
from schemas.errors import CorruptCacheError, UserError
from schemas.generate_config import PromptsConfig
from support.amount import amount
from support.curating import STEPS, curate_config, curate_tree, kept_and_removed, write_curation_input
from support.models import tiny_tokenizer
from support.talking import generate_config, write_prompts, write_talking_generator
from teacher_cache.corpus import Corpus, corpus_fingerprint
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.corpus.prompt_documents import read_prompts
from teacher_cache.corpus.sources import read_documents
from teacher_cache.curated.curated_place import read_curated
from teacher_cache.curation import curation_run
from teacher_cache.curation.curation_job import count_records, curate
from teacher_cache.curation.record import of_document
from teacher_cache.curation.record_rows import from_row
from teacher_cache.generation.generation_job import generate
from teacher_cache.shards.storage import Storage

SHARES = {"step": "mix", "shares": {"base": 60, "code": 40}, "on_deficit": "shrink"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curation")
    write_curation_input(folder)
    curate(curate_config(folder, str(folder / "whole")))
    return folder


def files(place: Path) -> dict[str, bytes]:
    """Content of all files but leases."""
    return {path.name: path.read_bytes() for path in place.iterdir() if not path.name.startswith(".lease")}


def manifest_of(place: Path) -> CuratedManifest:
    return read_curated(Storage(str(place)))


def originals(folder: Path) -> list[Document]:
    found = []
    for name, layer in (("texts.jsonl", "base"), ("chats.jsonl", "code")):
        for read in read_documents(SourceConfig(path=str(folder / name), layer=layer), "test"):
            assert isinstance(read, Document)
            found.append(read)
    return found


def test_every_record_stays_or_leaves_with_a_reason(folder: Path) -> None:
    kept, removed = kept_and_removed(str(folder / "whole"))
    documents = originals(folder)
    assert [row.number for row in kept] == sorted(row.number for row in kept)
    assert sorted(row.number for row in kept + removed) == list(range(len(documents)))
    assert not any(row.step or row.reason for row in kept)
    by_step = Counter(row.step for row in removed)
    assert {*by_step} == {"input", "steps.0", "steps.1", "steps.3"}
    for row in kept + removed:
        found, wanted = from_row(row, "test"), of_document(documents[row.number])
        assert (found.source_id, found.layer) == (wanted.source_id, wanted.layer)
        repaired = wanted.reply.replace("Ã©", "é") if row.step not in ("input", "steps.0", "steps.1") else wanted.reply
        assert found.reply == repaired
        assert found.prompt == wanted.prompt
    tokenizer = tiny_tokenizer()
    for row in kept:
        record = from_row(row, "test")
        ids = tokenizer(record.reply, add_special_tokens=False)["input_ids"]
        assert row.n_tokens == len(ids) + (record.messages is not None)
    reasons = Counter((row.step, row.reason) for row in removed)
    assert reasons["input", "empty"] == 2
    assert reasons["steps.0", "too_short"] >= 1
    assert reasons["steps.1", "duplicate"] >= 1
    assert reasons["steps.1", "near_duplicate"] >= 10


def test_the_manifest_counts_what_is_there(folder: Path) -> None:
    kept, removed = kept_and_removed(str(folder / "whole"))
    manifest = manifest_of(folder / "whole")
    assert {layer: amount.records for layer, amount in manifest.layers.items()} == Counter(row.layer for row in kept)
    tokens = {layer: sum(row.n_tokens for row in kept if row.layer == layer) for layer in ("base", "code")}
    assert {layer: amount.tokens for layer, amount in manifest.layers.items()} == tokens
    assert abs(tokens["base"] / sum(tokens.values()) - 0.6) < 0.02, "to a record's length"
    assert [counts.step for counts in manifest.counts] == ["read", *(step["step"] for step in STEPS)]
    entered = len(kept) + len(removed)
    for counts in manifest.counts:
        gone = [row for row in removed if row.step == counts.key]
        assert counts.entered.records == entered
        entered -= len(gone)
        assert counts.stayed.records == entered
        assert {reason: amount.records for reason, amount in counts.removed.items()} == Counter(r.reason for r in gone)
        assert counts.by_source == nested((str(row.source), row.reason) for row in gone)
        assert counts.by_layer == nested((row.layer, row.reason) for row in gone)
    assert manifest.counts[-1].notes["layers"]["base"]["tokens"] == tokens["base"]
    assert all("/" not in source.path for source in manifest.input.sources)


def nested(pairs: Any) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for group, name in pairs:
        found.setdefault(group, Counter())[name] += 1
    return {group: dict(counts) for group, counts in found.items()}


def test_any_number_of_workers_makes_the_same_files(folder: Path, tmp_path: Path) -> None:
    for workers in amount((2,), full=(2, 3, 5)):
        summary = curate(curate_config(folder, str(tmp_path / str(workers))), workers)
        assert files(tmp_path / str(workers)) == files(folder / "whole")
        assert summary.digest == manifest_of(folder / "whole").sha256
        assert [path.name for path in tmp_path.iterdir()] == [str(workers)], "nothing else is left"
        shutil.rmtree(tmp_path / str(workers))


def test_a_store_gets_the_same_files_as_a_folder(folder: Path, s3_url: str, tmp_path: Path) -> None:
    output = {"path": s3_url, "records_per_shard": 16}
    with pytest.raises(UserError, match=r"output\.scratch: not set: a local folder is needed"):
        curate(curate_config(folder, s3_url))
    curate(curate_config(folder, s3_url, output={**output, "scratch": str(tmp_path / "scratch")}))
    storage = Storage(s3_url)
    assert {name: storage.read(name) for name in storage.names()} == files(folder / "whole")
    assert not (tmp_path / "scratch").exists()


def test_shards_hold_consecutive_records_and_their_size_changes_nothing_else(folder: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "out")
    curate(curate_config(folder, place, output={"path": place, "records_per_shard": 1000}))
    kept, removed = kept_and_removed(place)
    before = kept_and_removed(str(folder / "whole"))
    assert [row.content for row in kept] == [row.content for row in before[0]]
    assert sorted((row.number, row.reason) for row in removed) == sorted((r.number, r.reason) for r in before[1])
    assert len(manifest_of(Path(place)).shards) == 1 < len(manifest_of(folder / "whole").shards)


def test_a_complete_one_is_left_as_it_is(folder: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "whole").iterdir()}
    curate(curate_config(folder, str(folder / "whole")))
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "whole").iterdir()}
    assert {name: after[name] for name in files(folder / "whole")} == {
        name: before[name] for name in files(folder / "whole")
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": [{"step": "length", "min_tokens": 9}, *STEPS[1:]]}, "steps.0.min_tokens: 20 there, 9 now"),
        ({"steps": STEPS[:3]}, "steps: ["),
        ({"output": {"records_per_shard": 17}}, "records_per_shard: 16 there, 17 now"),
    ],
)
def test_other_settings_do_not_continue_a_place(folder: Path, changes: dict[str, Any], named: str) -> None:
    changes = {key: {"path": str(folder / "whole"), **v} if isinstance(v, dict) else v for key, v in changes.items()}
    before = files(folder / "whole")
    with pytest.raises(UserError, match="curated with other settings") as caught:
        curate(curate_config(folder, str(folder / "whole"), **changes))
    assert named in str(caught.value)
    assert files(folder / "whole") == before


def test_files_in_the_way_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("mine")
    with pytest.raises(UserError, match=r"output\.path: .*precious: files are already there"):
        curate(curate_config(folder, str(tmp_path / "out")))
    (tmp_path / "out/precious").rename(tmp_path / "scratch")
    (tmp_path / "out.scratch").mkdir()
    (tmp_path / "scratch").rename(tmp_path / "out.scratch/precious")
    with pytest.raises(UserError, match=r"output\.scratch: .*precious: files are already there"):
        curate(curate_config(folder, str(tmp_path / "out")))
    assert (tmp_path / "out.scratch/precious").read_text() == "mine"


def test_what_is_interrupted_continues_only_as_it_was(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Also if the input has changed meanwhile."""
    shutil.copytree(folder, tmp_path / "copy")

    def full(*_: object) -> None:
        raise UserError("disk full")

    config = curate_config(tmp_path / "copy", str(tmp_path / "out"))
    with monkeypatch.context() as patched:
        patched.setattr(curation_run, "write_report", full)
        with pytest.raises(UserError, match="disk full"):
            curate(config)
    assert (tmp_path / "out.scratch/plan.json").exists()
    with pytest.raises(UserError, match=r"plan\.json: this corpus was curated with other settings: steps: "):
        curate(curate_config(tmp_path / "copy", str(tmp_path / "out"), steps=STEPS[:1]))  # too late: all is done
    assert (tmp_path / "out.scratch/plan.json").exists()
    text = (tmp_path / "copy/texts.jsonl").read_text()
    (tmp_path / "copy/texts.jsonl").write_text(text + json.dumps({"text": "more"}) + "\n")
    with pytest.raises(UserError, match="input_fingerprint: "):
        curate(config)
    (tmp_path / "copy/texts.jsonl").write_text(text)
    curate(config)
    assert files(tmp_path / "out") == files(folder / "whole")


@pytest.mark.parametrize(
    ("steps", "is_early_enough"),
    [
        ([*STEPS[:3], {**SHARES, "tokens": 3000}], True),
        ([*STEPS[:3]], True),
        ([*STEPS[:2], SHARES], True),
        ([*STEPS[:2], {"step": "length", "min_tokens": 60}, SHARES], True),
        ([STEPS[0], {"step": "deduplicate", "of": "reply"}, STEPS[2], SHARES], True),
        ([STEPS[0], STEPS[2], STEPS[1], SHARES], False),
    ],
)
def test_later_steps_may_change_before_they_are_done(
    folder: Path, tmp_path: Path, steps: list[dict[str, Any]], is_early_enough: bool
) -> None:
    """A mix that lacked tokens, here in another way or after other steps: as if it had been so from the beginning."""
    place = str(tmp_path / "out")
    lacking = [*STEPS[:3], {"step": "mix", "shares": {"base": 60, "code": 40}, "tokens": 10**6}]
    with pytest.raises(UserError, match=r"steps\.3\.tokens: 1000000: base has \d+ of 600000 tokens"):
        curate(curate_config(folder, place, steps=lacking))
    before = files(tmp_path / "out.scratch")
    if not is_early_enough:
        with pytest.raises(UserError, match=r"plan\.json: this corpus was curated with other settings"):
            curate(curate_config(folder, place, steps=steps))
        assert files(tmp_path / "out.scratch") == before
        return
    curate(curate_config(folder, place, steps=steps))
    curate(curate_config(folder, str(tmp_path / "at once"), steps=steps))
    assert files(tmp_path / "out") == files(tmp_path / "at once")


def test_a_dry_run_counts_and_writes_nothing(folder: Path) -> None:
    counts = count_records(curate_config(folder, str(folder / "dry")))
    assert counts == {"records": 193, "layers": {"base": 133, "code": 60}, "removed": {"empty": 2}}
    assert not list(folder.glob("dry*"))


def test_bad_records_stop_or_leave(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    good = "".join(json.dumps({"text": f"text {number} of a few words and more of them"}) + "\n" for number in range(4))
    (tmp_path / "texts.jsonl").write_text(good + "{\n" + json.dumps({"text": 5}) + "\n")
    tree = curate_tree(tmp_path, str(tmp_path / "out"), steps=[{"step": "deduplicate"}])
    tree["input"] = {"sources": tree["input"]["sources"][:1]}
    config = curate_config(tmp_path, "", **tree)
    with pytest.raises(UserError, match=r"texts\.jsonl:5: broken line"):
        curate(config)
    tree["input"]["on_bad_record"] = "drop"
    shutil.rmtree(tmp_path / "out.scratch")
    curate(curate_config(tmp_path, "", **tree))
    kept, removed = kept_and_removed(str(tmp_path / "out"))
    assert len(kept) == 4
    assert [(row.number, row.step, row.reason) for row in removed] == [
        (4, "input", "malformed"),
        (5, "input", "malformed"),
    ]
    assert "expected a string" in json.loads(removed[1].flags)["problem"]


def test_nothing_left_is_an_error(folder: Path, tmp_path: Path) -> None:
    steps = [{"step": "length", "min_tokens": 5000}]
    with pytest.raises(UserError, match="no record is left: read removed 2, length removed 193"):
        curate(curate_config(folder, str(tmp_path / "out"), steps=steps))
    with pytest.raises(UserError, match=r"steps\.1 \(deduplicate\): no record is left before it"):
        curate(curate_config(folder, str(tmp_path / "other"), steps=[*steps, {"step": "deduplicate"}]))


def test_the_report_shows_texts_as_text(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    hostile = "</pre><script>alert(1)</script> & a few words more {{ 7 * 7 }}"
    lines = [{"text": hostile}, {"text": hostile}, {"text": "something else in a few words"}]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = curate_tree(tmp_path, str(tmp_path / "out"), steps=[{"step": "deduplicate"}])
    tree["input"] = {"sources": [{**tree["input"]["sources"][0], "layer": "<i>base"}]}
    curate(curate_config(tmp_path, "", **tree))
    page = (tmp_path / "out/report.html").read_text()
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7 * 7 }}" in page
    report = json.loads((tmp_path / "out/report.json").read_text())
    (sample,) = report["steps"][1]["samples"]
    assert (sample["reason"], sample["reply"], sample["source_id"]) == ("duplicate", hostile, "texts.jsonl#2")


def sequences(path: Path, form: str, **settings: Any) -> list[tuple[list[int], list[bool], str, str]]:
    config = CorpusConfig(sources=[SourceConfig(path=str(path), format=form)], **settings)  # type: ignore[arg-type]
    return [
        (one.input_ids.tolist(), one.loss_mask.tolist(), one.text, one.layer)
        for one in Corpus(config, tiny_tokenizer())
    ]


def test_a_corpus_reads_what_was_curated(folder: Path) -> None:
    kept, _ = kept_and_removed(str(folder / "whole"))
    found = sequences(folder / "whole", "curated")
    assert [(len(each[2]) > 0, each[3]) for each in found] == [(True, row.layer) for row in kept]
    for each, row in zip(found, kept, strict=True):
        record = from_row(row, "test")
        assert record.reply in each[2]
        assert abs(sum(each[1]) - row.n_tokens) <= 2, "but for borders of messages"


def test_the_fingerprint_of_a_corpus_names_the_curated_manifest(folder: Path, tmp_path: Path) -> None:
    def fingerprint(place: Path) -> str:
        return corpus_fingerprint(CorpusConfig(sources=[SourceConfig(path=str(place), format="curated")]))

    shutil.copytree(folder / "whole", tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == fingerprint(folder / "whole")
    place = str(tmp_path / "other")
    curate(curate_config(folder, place, steps=STEPS[:2]))
    assert fingerprint(Path(place)) != fingerprint(folder / "whole")
    path = next((tmp_path / "moved").glob("*.records.zst"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptCacheError, match=r"records\.zst"):
        sequences(tmp_path / "moved", "curated")
    manifest = tmp_path / "moved/curated.json"
    manifest.write_text(manifest.read_text().replace('"records": ', '"records": 1', 1))
    with pytest.raises(CorruptCacheError, match=r"curated\.json"):
        fingerprint(tmp_path / "moved")
    manifest.unlink()
    with pytest.raises(UserError, match=r"corpus\.sources\.0\.path: .*curated\.json: not found"):
        fingerprint(tmp_path / "moved")


@pytest.fixture(scope="module")
def replies(folder: Path) -> Path:
    write_talking_generator(folder / "generator")
    write_prompts(folder / "prompts.jsonl")
    generate(generate_config(folder / "generator", folder / "prompts.jsonl", folder / "replies"))
    return folder / "replies"


def generated_tree(folder: Path, place: Path) -> dict[str, Any]:
    tree = curate_tree(folder, str(place), steps=[{"step": "length", "min_tokens": 2}, {"step": "deduplicate"}])
    tree["input"]["sources"].insert(1, {"path": str(folder / "replies"), "format": "generated"})
    tree["tokenizer"] = {"path": str(folder / "generator")}
    return tree


def test_token_ids_of_generated_replies_pass_through(folder: Path, replies: Path, tmp_path: Path) -> None:
    """Between documents; rejected ones leave with the reason that they had."""
    curate(curate_config(folder, "", **generated_tree(folder, tmp_path / "out")))
    kept, removed = kept_and_removed(str(tmp_path / "out"))
    found = sequences(tmp_path / "out", "curated", deduplicate=False)
    assert len(found) == len(kept)
    wanted = {tuple(ids): (mask, text) for ids, mask, text, _ in sequences(replies, "generated", deduplicate=False)}
    passed = [each for each, row in zip(found, kept, strict=True) if row.source == 1]
    assert len(passed) > 5
    for ids, mask, text, layer in passed:
        assert (mask, text) == wanted[tuple(ids)]
        assert layer == "base"
    rejected = Counter(row.reason for row in removed if row.source == 1 and row.step == "input")
    assert {*rejected} == {"repetitive", "truncated", "undecodable", "empty", "refused"}
    assert {row.source for row in kept} == {0, 1, 2}


def test_a_curated_corpus_is_curated_again(folder: Path, replies: Path, tmp_path: Path) -> None:
    tree = generated_tree(folder, tmp_path / "out")
    curate(curate_config(folder, "", **tree))
    tree["input"] = {"sources": [{"path": str(tmp_path / "out"), "format": "curated"}]}
    tree["output"] = {"path": str(tmp_path / "again"), "records_per_shard": 1000}
    curate(curate_config(folder, "", **tree))
    before, again = (kept_and_removed(str(tmp_path / name))[0] for name in ("out", "again"))
    assert [(row.content, row.reply_ids.tolist(), row.layer, row.n_tokens) for row in again] == [
        (row.content, row.reply_ids.tolist(), row.layer, row.n_tokens) for row in before
    ]


def test_replies_of_another_tokenizer_are_refused(folder: Path, replies: Path, tmp_path: Path) -> None:
    tree = generated_tree(folder, tmp_path / "out")
    other = tiny_tokenizer()
    other.add_tokens(["<other>"])
    other.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"input\.sources\.1\.path: .*generated with another tokenizer"):
        curate(curate_config(folder, "", **{**tree, "tokenizer": {"path": str(tmp_path / "tokenizer")}}))
    curate(curate_config(folder, "", **tree))
    source = SourceConfig(path=str(tmp_path / "out"), format="curated")
    with pytest.raises(UserError, match=r"corpus\.sources\.0\.path: .*generated with another tokenizer"):
        list(Corpus(CorpusConfig(sources=[source]), other))


def test_curated_documents_are_prompts_and_generated_replies_are_not(
    folder: Path, replies: Path, tmp_path: Path
) -> None:
    curate(curate_config(folder, "", **generated_tree(folder, tmp_path / "out")))
    kept, _ = kept_and_removed(str(tmp_path / "out"))
    config = PromptsConfig(sources=[SourceConfig(path=str(tmp_path / "out"), format="curated")], replies="replace")
    found = list(read_prompts(config))
    assert [isinstance(each, BadRecord) for each in found] == [row.source == 1 for row in kept]
    assert all(each.messages and each.messages[-1]["role"] == "user" for each in found if isinstance(each, Document))
