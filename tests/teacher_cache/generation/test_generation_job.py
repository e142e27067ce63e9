"""Whole generations by a model whose replies are known walks, with the reference engine."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import ConflictError, CorruptCacheError, UserError
from schemas.generate_config import GenerateConfig
from support.models import tiny_tokenizer, write_random_teacher
from support.talking import END, generate_config, spelled, write_prompts, write_talking_generator
from teacher_cache.claims import GENERATING
from teacher_cache.generated.generated_place import read_generated, replies_of
from teacher_cache.generated.reply_files import Prompt, Reply
from teacher_cache.generation.generation_job import count_prompts, generate
from teacher_cache.generation.sampler import Asked, seed_of
from teacher_cache.generation.samplers import open_sampler
from teacher_cache.job import Worker
from teacher_cache.shards.lease import part_lease
from teacher_cache.shards.storage import Storage

TOKENIZER = tiny_tokenizer()
BYTES = [spelled(TOKENIZER, token) for token in range(len(TOKENIZER))]
END_ID = TOKENIZER.convert_tokens_to_ids(END)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    write_talking_generator(folder / "generator")
    write_prompts(folder / "prompts.jsonl")
    generate(config(folder, "whole"))
    return folder


def config(folder: Path, name: str, **changes: Any) -> GenerateConfig:
    return generate_config(folder / "generator", folder / "prompts.jsonl", folder / name, **changes)


def files(place: Path) -> dict[str, bytes]:
    """Content of all files but leases."""
    return {path.name: path.read_bytes() for path in place.iterdir() if not path.name.startswith(".lease")}


def read(place: Path) -> list[tuple[Prompt, Reply]]:
    storage = Storage(str(place))
    return list(replies_of(storage, read_generated(storage)))


def test_every_prompt_has_its_samples_in_order(folder: Path) -> None:
    found = read(folder / "whole")
    assert [(prompt.source_id, reply.sample) for prompt, reply in found] == [
        (f"prompts.jsonl#{number}", sample) for number in range(1, 25) for sample in range(3)
    ]
    manifest = read_generated(Storage(str(folder / "whole")))
    assert manifest.complete
    assert [unit.replies for unit in manifest.units] == [9] * 8, "at most 10, whole prompts"
    for prompt, reply in found:
        assert reply.key == prompt.key
        assert reply.seed == seed_of(prompt.key, reply.sample, 0)
        assert reply.generator == manifest.generator.fingerprint
        assert reply.template == manifest.tokenizer.chat_template


def test_replies_have_the_reason_that_their_ids_give(folder: Path) -> None:
    """By other means than the code: Python's own decoder, and what the walks can do."""
    reasons = Counter()
    for _, reply in read(folder / "whole"):
        ids = reply.reply_ids.tolist()
        ended = ids[-1] == END_ID
        assert END_ID not in ids[:-1]
        data = b"".join(BYTES[token] for token in (ids[:-1] if ended else ids))
        assert reply.reply == data.decode(errors="replace")
        assert reply.finish == ("stop" if ended else "length")
        assert len(ids) == 40 or ended
        if not ended:
            wanted = "repetitive" if b"zzzz" in data else "truncated"
        elif b"\x80" in data.replace("🦜é".encode(), b"") and "\ufffd" in reply.reply:
            wanted = "undecodable"
        elif not data.strip():
            wanted = "empty"
        else:
            wanted = "refused" if data.startswith(b"w") else ""
        assert reply.reason == wanted, reply
        reasons[reply.reason] += 1
    assert {*reasons} == {"", "repetitive", "truncated", "undecodable", "empty", "refused"}
    manifest = read_generated(Storage(str(folder / "whole")))
    assert sum((Counter(shard.rejected) for shard in manifest.shards), Counter()) == reasons - Counter(
        {"": reasons[""]}
    )
    assert sum(shard.accepted for shard in manifest.shards) == reasons[""] > 20


def test_shares_of_first_tokens_are_those_of_the_model(folder: Path, tmp_path: Path) -> None:
    """Nine equally likely first tokens, 600 replies."""
    sampling = {"samples": 25, "max_new_tokens": 1}
    output = {"path": str(tmp_path / "out"), "replies_per_shard": 1000}
    generate(config(folder, "", sampling=sampling, output=output))
    first = Counter(int(reply.reply_ids[0]) for _, reply in read(tmp_path / "out"))
    assert len(first) == 9
    chi_square = sum((count - 600 / 9) ** 2 / (600 / 9) for count in first.values())
    assert chi_square < 26.1, "0.1 % of fair draws exceed it; the seeds are fixed"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_workers_make_the_same_files_as_one(folder: Path, tmp_path: Path, order: tuple[int, ...]) -> None:
    shutil.copytree(folder / "generator", tmp_path / "generator")
    shutil.copy(folder / "prompts.jsonl", tmp_path)
    for rank in order:
        summary = generate(config(tmp_path, "parts"), Worker(rank, 3))
        assert summary.complete == (rank == order[-1])
    assert files(tmp_path / "parts") == files(folder / "whole")
    again = generate(config(tmp_path, "parts"))
    assert (again.units_written, again.units_skipped) == (0, 8)
    assert files(tmp_path / "parts") == files(folder / "whole")


def test_a_store_gets_the_same_files_as_a_folder(folder: Path, s3_url: str) -> None:
    generate(config(folder, "", output={"path": s3_url}), Worker(1, 2))
    summary = generate(config(folder, "", output={"path": s3_url}))
    assert (summary.units_written, summary.units_skipped, summary.complete) == (4, 4, True)
    storage = Storage(s3_url)
    assert {name: storage.read(name) for name in storage.names()} == files(folder / "whole")
    found = replies_of(storage, read_generated(storage))
    assert [reply.reply for _, reply in found] == [reply.reply for _, reply in read(folder / "whole")]


def test_a_reply_depends_on_nothing_but_prompt_and_settings(folder: Path, tmp_path: Path) -> None:
    """Other units, other neighbours, another order, another number of samples: the same replies to the same prompts."""
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(reversed(lines[3:9])) + "\n", encoding="utf-8")
    output = {"path": str(tmp_path / "out"), "replies_per_shard": 100}
    few = config(folder, "", output=output, sampling={"samples": 2, "max_new_tokens": 40})
    sources = few.prompts.sources[0].model_copy(update={"path": str(tmp_path / "prompts.jsonl")})
    generate(few.model_copy(update={"prompts": few.prompts.model_copy(update={"sources": [sources]})}))
    before = {(reply.key, reply.sample): reply.reply_ids.tolist() for _, reply in read(folder / "whole")}
    after = {(reply.key, reply.sample): reply.reply_ids.tolist() for _, reply in read(tmp_path / "out")}
    assert len(after) == 12
    assert after.items() <= before.items()
    other = generate_config(folder / "generator", tmp_path / "prompts.jsonl", tmp_path / "seed", seed=1)
    generate(other)
    changed = {(reply.key, reply.sample): reply.reply_ids.tolist() for _, reply in read(tmp_path / "seed")}
    assert sum(after[place] == changed[place] for place in after) < 4


def test_the_reference_agrees_with_plain_greedy_generation(tmp_path: Path) -> None:
    """On a random teacher, which attends to all that was written before."""
    import torch
    from transformers import AutoModelForCausalLM

    teacher = write_random_teacher(tmp_path / "teacher")
    sampling = {"temperature": 0, "max_new_tokens": 24}
    settings = generate_config(teacher, tmp_path / "none", tmp_path / "out", sampling=sampling)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 380, length).astype(np.uint32) for length in (1, 5, 40)]
    heard: list[int] = []
    with open_sampler(settings) as sampler:
        written = sampler.write([Asked(ids, settings.sampling, (0, 2), 0) for ids in prompts], heard.append)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    for ids, found in zip(prompts, written, strict=True):
        wanted: list[int] = []
        with torch.inference_mode():
            while len(wanted) < 24 and not {0, 2} & {*wanted[-1:]}:
                read_so_far = torch.tensor([[*ids.tolist(), *wanted]])
                wanted.append(int(model(read_so_far).logits[0, -1].argmax()))
        assert found.ids.tolist() == wanted
        assert found.finish == ("stop" if wanted[-1] in (0, 2) else "length")
    assert sum(heard) == 3


def test_layers_have_sampling_and_stops_of_their_own(folder: Path, tmp_path: Path) -> None:
    path = str(folder / "prompts.jsonl")
    sources = [{"path": path, "limit": 2}, {"path": path, "layer": "code", "limit": 4}]
    settings = config(
        folder,
        "",
        prompts={"sources": sources, "max_tokens": 64, "deduplicate": False},
        layers={"code": {"samples": 1, "temperature": 0, "stop": ["a"]}},
        output={"path": str(tmp_path / "out")},
    )
    generate(settings)
    found = read(tmp_path / "out")
    assert [(prompt.layer, reply.sample) for prompt, reply in found] == [
        *[("base", sample) for _ in range(2) for sample in range(3)],
        *[("code", 0)] * 4,
    ]
    assert {(prompt.layer, reply.sampling) for prompt, reply in found} > {("code", found[-1][1].sampling)}
    assert len({reply.sampling for _, reply in found}) == 2
    stop = read_generated(Storage(str(tmp_path / "out"))).stop_tokens
    assert {*stop["code"]} - {*stop["base"]} == {TOKENIZER.convert_tokens_to_ids("a")}
    for prompt, reply in found:
        if prompt.layer == "code":
            assert len({*reply.reply_ids.tolist()}) <= 40
            assert TOKENIZER.convert_tokens_to_ids("a") not in reply.reply_ids[:-1]


def test_a_dry_run_counts_and_writes_nothing(folder: Path) -> None:
    counts = count_prompts(config(folder, "dry"))
    assert (counts["units"], counts["replies"], counts["prompts"]) == (8, 72, 24)
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": {"path": "nowhere/at/all"}}, "generator.path: nowhere/at/all (no such folder)"),
        (
            {"sampling": {"max_new_tokens": 500}},
            "sampling.max_new_tokens: 500 and prompts.max_tokens 64 exceed the 512",
        ),
        ({"sampling": {"samples": 11}}, "output.replies_per_shard: 10 is less than the 11 samples of one prompt"),
        ({"sampling": {"stop": ["a b c"]}}, "sampling.stop: 'a b c' is "),
        ({"reject": {"allowed_special": ["<think>"]}}, "reject.allowed_special: '<think>' is no special token"),
        ({"prompts": {"sources": [{"path": "gone.jsonl"}]}}, "prompts.sources.0.path: gone.jsonl: no such file"),
    ],
)
def test_what_cannot_work_is_an_error_before_anything_is_written(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        generate(config(folder, "refused", **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "refused").exists()


def test_bad_prompts_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"prompt": "fine"}) + "\n{\n")
    with pytest.raises(UserError, match=r"bad\.jsonl"):
        generate(generate_config(folder / "generator", bad, tmp_path / "out"))
    assert not (tmp_path / "out").exists() or files(tmp_path / "out") == {}
    bad.write_text(json.dumps({"prompt": "fine"}) + "\n")
    assert generate(generate_config(folder / "generator", bad, tmp_path / "out")).complete


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 5}, "seed: 0 there, 5 now"),
        ({"sampling": {"samples": 3, "max_new_tokens": 41}}, "max_new_tokens: 40 there, 41 now"),
        ({"reject": {"repeated_tokens": 48}}, "reject.repeated_tokens: 20 there, 48 now"),
    ],
)
def test_other_settings_do_not_continue_a_place(folder: Path, changes: dict[str, Any], named: str) -> None:
    before = files(folder / "whole")
    with pytest.raises(UserError, match="made with other settings") as caught:
        generate(config(folder, "whole", **changes))
    assert named in str(caught.value)
    assert files(folder / "whole") == before


def test_other_prompts_or_files_in_the_way_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts_fingerprint: "):
        generate(generate_config(folder / "generator", write_prompts(tmp_path / "prompts.jsonl", 3), folder / "whole"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json: exists without generated\.json"):
        generate(generate_config(folder / "generator", folder / "prompts.jsonl", tmp_path / "cache"))
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix == ".json" and path.name[0] != "."] == [
        "manifest.json"
    ]


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "whole", tmp_path / "copy"))


def test_a_lost_shard_is_generated_again_alone(folder: Path, tmp_path: Path) -> None:
    place = copy_of(folder, tmp_path)
    (place / "shard-000003.json").unlink()
    (place / "shard-000003.replies.zst").unlink()
    summary = generate(config(folder, str(place)))
    assert (summary.units_written, summary.units_skipped, summary.complete) == (1, 7, True)
    assert files(place) == files(folder / "whole")


def test_a_committed_shard_without_its_replies_is_an_error(folder: Path, tmp_path: Path) -> None:
    place = copy_of(folder, tmp_path)
    (place / "shard-000003.replies.zst").unlink()
    with pytest.raises(CorruptCacheError, match=r"shard-000003\.replies\.zst: missing, .* delete .*shard-000003\.json"):
        generate(config(folder, str(place)))


def test_a_changed_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    place = copy_of(folder, tmp_path)
    path = place / "generated.json"
    path.write_text(path.read_text().replace('"accepted": ', '"accepted": 0', 1))
    with pytest.raises(CorruptCacheError, match=r"generated\.json"):
        generate(config(folder, str(place)))


@pytest.mark.parametrize(("version", "advice"), [(1, "generate the replies again"), (99, "newer than 2; upgrade")])
def test_replies_of_another_version_are_refused(folder: Path, tmp_path: Path, version: int, advice: str) -> None:
    place = copy_of(folder, tmp_path)
    manifest = read_generated(Storage(str(place))).model_copy(update={"generated_version": version})
    (place / "generated.json").write_text(manifest.to_json())
    with pytest.raises(UserError, match=rf"generated\.json: version {version}.*{advice}"):
        read_generated(Storage(str(place)))


def test_units_that_another_process_holds_are_left_to_it(folder: Path, tmp_path: Path) -> None:
    place = copy_of(folder, tmp_path)
    for number in (2, 5):
        (place / f"shard-{number:06d}.json").unlink()
    with (
        part_lease(Storage(str(place)), "shard-000002", GENERATING),
        pytest.raises(ConflictError, match="1 units of this worker are held by another process"),
    ):
        generate(config(folder, str(place)))
    assert (place / "shard-000005.json").exists()
    assert not (place / "shard-000002.json").exists()
    generate(config(folder, str(place)))
    assert files(place) == files(folder / "whole")
