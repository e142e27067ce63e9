"""Caches on the Hugging Face Hub, with the installed commands and ``huggingface_hub`` against a local server."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.errors import ConflictError
from support import commands
from support.hub_server import TOKEN, Hub, hub_server
from support.logged import losses
from support.models import VOCAB_SIZE
from support.synthetic import random_shards, write_cache
from support.training import training_in, write_student
from teacher_cache import hub as uploading
from teacher_cache.hub import HubUpload, repository_of
from teacher_cache.shards.reader import CacheReader

URL = "hf://datasets/team/demo"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "cache"
    write_cache(str(folder), random_shards([[9, 5, 7, 6], [8, 3]], VOCAB_SIZE), VOCAB_SIZE)
    return folder


def run(*arguments: object) -> Any:
    """The command's JSON; without ``huggingface_hub`` in this process, which has read its settings before."""
    return json.loads(ended(0, *arguments, "--json").stdout)


def fails(status: int, *arguments: object) -> str:
    return ended(status, *arguments).stderr.splitlines()[-1]


def ended(status: int, *arguments: object, command: str = "cache-tools") -> subprocess.CompletedProcess[str]:
    environment = {**commands.environment(), "HF_HUB_OFFLINE": "0"}
    line = commands.command_line(command, *arguments)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == status, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_a_cache_goes_to_the_hub_and_comes_back(server: Hub, cache: Path, tmp_path: Path) -> None:
    sent = run("push", cache, URL)
    repository = server.repositories["datasets/team/demo"]
    assert repository.private
    assert len(repository.commits) == 2, "that of the Hub, and one with everything"
    files = {path.relative_to(cache).as_posix(): path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    there = repository.files("main")
    assert there is not None
    card = there["README.md"].decode()
    assert {name: there[name] for name in files} == files
    assert set(there) - set(files) == {"README.md", ".gitattributes"}
    assert yaml.safe_load(card.split("---\n")[1])["size_categories"] == ["n<1K"]
    assert card.startswith("---\nviewer: false\n")
    assert "cache-tools pull hf://datasets/team/demo" in card
    assert sent["sent"]["files"] == len(files) + 1
    assert run("verify", URL)["problems"] == []
    run("pull", URL, tmp_path / "pulled")
    reader = CacheReader(str(tmp_path / "pulled"), ("tokens", "logits"))
    assert reader.manifest.digest() == CacheReader(str(cache), ("tokens",)).manifest.digest() == sent["manifest_sha256"]
    again = run("push", cache, URL)
    assert again["sent"]["files"] == 0
    assert len(repository.commits) == 2


def test_a_revision_stays_what_it_was(server: Hub, cache: Path, tmp_path: Path) -> None:
    run("push", cache, URL)
    repository = server.repositories["datasets/team/demo"]
    first = repository.commits[-1][0]
    other = tmp_path / "other"
    write_cache(str(other), random_shards([[4, 4]], VOCAB_SIZE, seed=7), VOCAB_SIZE)
    assert "another cache is there; choose another repository or /FOLDER, or add --replace" in fails(
        2, "push", other, URL
    )
    run("push", other, URL, "--replace")
    files = repository.files("main")
    assert files is not None
    assert not any(name.startswith("shard-000001") for name in files), "those of the first cache are gone"
    assert run("verify", URL)["problems"] == run("verify", f"{URL}@{first}")["problems"] == []
    digests = [run("inspect", url)["manifest_digest"] for url in (URL, f"{URL}@{first}", other, cache)]
    assert digests[:2] == digests[2:]


def test_a_branch_may_have_a_slash_in_its_name(server: Hub, cache: Path) -> None:
    run("push", cache, URL)
    repository = server.repositories["datasets/team/demo"]
    repository.branches = {"of/team-a"}
    assert run("push", cache, f"{URL}@of%2Fteam-a")["sent"]["files"] == 1, "the card, which names the branch"
    assert run("verify", f"{URL}@of%2Fteam-a")["problems"] == []
    assert "or the Hub has no such repository or revision" in fails(2, "verify", f"{URL}@of/team-a")


def test_many_files_take_several_commits_and_are_complete_with_the_last(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "FILES_PER_COMMIT", 3)
    in_this_process(server, monkeypatch)
    from tools.sharing.hub_push import push_to_hub

    push_to_hub(str(cache), URL)
    _, *made = server.repositories["datasets/team/demo"].commits
    assert len(made) > 2
    assert ["manifest.json" in files for _, _, files in made] == [False] * (len(made) - 1) + [True]
    assert run("verify", URL)["problems"] == []


def test_of_two_uploads_at_once_the_later_one_is_refused(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", cache, URL)
    upload = in_this_process(server, monkeypatch)
    upload.present()
    server.repositories["datasets/team/demo"].commit("of another", {"manifest.json": b"{}"})
    with pytest.raises(ConflictError, match="another process has changed it meanwhile: run again"):
        upload.commit([], {"README.md": b"mine"}, [], "mine", {})


def in_this_process(server: Hub, monkeypatch: pytest.MonkeyPatch) -> HubUpload:
    """An upload by ``huggingface_hub`` in this process, whose settings were read before the server was there."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=server.url, token=TOKEN))
    return HubUpload(repository_of(URL, "dataset"))


def test_an_upload_that_failed_is_not_sent_again(server: Hub, cache: Path) -> None:
    server.fail_commits = 100
    assert fails(6, "push", cache, URL).startswith(f"error: {URL}: the Hub does not take it (500)")
    uploads, server.fail_commits = server.uploads, 0
    assert uploads > 0
    run("push", cache, URL)
    assert server.uploads == uploads


def test_what_cannot_be_pushed_is_one_line(
    server: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(cache, damaged)
    tar = next(damaged.glob("*.logits.tar"))
    tar.write_bytes(bytes(len(tar.read_bytes())))
    assert "differs from the manifest; restore it from a copy" in fails(3, "push", damaged, URL)
    assert server.repositories == {}
    line = "not a dataset repository of the Hub; write hf://datasets/OWNER/NAME"
    assert line in fails(2, "push", cache, "hf://team/demo")
    assert "the Hub takes commits; write to a folder, then `cache-tools push` it" in fails(
        2, "subset", cache, f"{URL}/part", "--sample", "50%"
    )
    run("push", cache, URL)
    assert "the repository has no revision none; create it, or leave it out" in fails(2, "push", cache, f"{URL}@none")
    nothing = "not found, so this is not a cache; .*; or the Hub has no such repository or revision for your HF_TOKEN"
    assert re.search(nothing, fails(2, "verify", f"{URL}@none"))
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "the Hub refuses it (401): check HF_TOKEN" in fails(5, "push", cache, URL)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert f"{URL}: cannot be uploaded: " in fails(6, "push", cache, URL)


def test_a_student_goes_to_the_hub_in_one_commit(server: Hub, tmp_path: Path) -> None:
    folder = write_student(tmp_path / "final")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A student\n")
    (folder / ".hidden").write_text("not for others")
    ended(0, "push", folder, "hf://team/student", "--public", command="train-student")
    repository = server.repositories["models/team/student"]
    assert not repository.private
    assert len(repository.commits) == 2
    files = repository.files("main")
    assert files is not None
    wanted = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".hidden"}
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == wanted
    (folder / "link").symlink_to("/etc/hostname")
    done = ended(2, "push", folder, "hf://team/student", command="train-student")
    assert "link: is no regular file" in done.stderr
    assert (
        "has no config.json or adapter_config.json"
        in ended(2, "push", tmp_path, "hf://team/student", command="train-student").stderr
    )


def test_an_adapter_goes_to_the_hub_with_a_base_that_others_have(server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path), "r": 8}))
    (folder / "distill_adapter.json").write_text(json.dumps({"base": str(tmp_path), "format": 1}))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# Adapter\n---\n")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    url = "hf://team/adapter"
    done = ended(2, "push", folder, url, command="train-student")
    assert f"the base model is the folder '{tmp_path}', which others do not have; push it, too" in done.stderr
    done = ended(2, "push", folder, url, "--base", "../base", command="train-student")
    assert "hf://../base: not a model repository of the Hub" in done.stderr
    assert server.repositories == {}
    ended(0, "push", folder, url, "--base", "team/base", command="train-student")
    files = server.repositories["models/team/adapter"].files("main")
    assert files is not None
    assert not any(str(tmp_path).encode() in data for data in files.values())
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "team/base", "r": 8}
    assert json.loads(files["distill_adapter.json"]) == {"base": "team/base", "format": 1}
    assert files["README.md"] == b"---\nbase_model: team/base\nlibrary_name: peft\n---\n# Adapter\n---\n"
    assert str(tmp_path) in (folder / "adapter_config.json").read_text(), "the folder stays what it was"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "team/base"}))
    ended(0, "push", folder, url, command="train-student")
    whole = write_student(tmp_path / "whole")
    done = ended(2, "push", whole, url, "--base", "team/base", command="train-student")
    assert "is a whole model, no adapter; leave it out" in done.stderr


def test_a_student_learns_from_a_cache_on_the_hub(server: Hub, tmp_path: Path) -> None:
    """Read in place, without a copy: the losses are those of the folder."""
    make = training_in(tmp_path)
    run("push", tmp_path / "cache", URL)
    for name, url in (("folder", str(tmp_path / "cache")), ("hub", URL)):
        config = make(tmp_path / name, data={"cache": url}, loop={"log_every": 1, "max_steps": 3})
        path = tmp_path / f"{name}.json"
        path.write_text(config.model_dump_json())
        ended(0, "run", path, command="train-student")
    assert losses(tmp_path / "hub") == losses(tmp_path / "folder")
    assert len(losses(tmp_path / "hub")) == 3


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/demo",
        "hf://datasets/a/b/../c",
        "hf://datasets/a/b@",
        "hf://datasets/a/b@x/../y",
        "hf://a/b",
        "hf://buckets/a/b",
    ],
)
def test_urls_that_are_no_repository_are_refused(url: str) -> None:
    from schemas.errors import UserError

    with pytest.raises(UserError, match="not a dataset repository of the Hub"):
        repository_of(url, "dataset")


def test_parts_of_a_url() -> None:
    found = repository_of("hf://datasets/team/demo@v1.2/caches/a", "dataset")
    assert (found.name, found.revision, found.folder) == ("team/demo", "v1.2", "caches/a/")
    assert repository_of("hf://team/student", "model").folder == ""
    found = repository_of("hf://datasets/team/demo@feature%2Fa/b", "dataset")
    assert (found.revision, found.folder) == ("feature/a", "b/")
    assert repository_of("hf://datasets/team/demo@refs/pr/3", "dataset").revision == "refs/pr/3"


@pytest.mark.parametrize(
    ("samples", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**12 - 1, "100B<n<1T"), (10**15, "n>1T")],
)
def test_size_categories_of_the_hub(samples: int, category: str) -> None:
    from tools.sharing.hub_push import size_category

    assert size_category(samples) == category
