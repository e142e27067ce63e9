"""Training from an object store that fails is training from a folder, or it stops and names the bad file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CorruptCacheError
from schemas.train_config import TrainConfig
from support.commands import run
from support.logged import losses
from support.proxy import FAULTS, proxied
from support.synthetic import random_shards, write_cache
from teacher_cache.shards import store_requests
from teacher_cache.shards.reader import CacheReader
from trainer.distiller import distill

SHARES = {"error": 0.10, "silence": 0.02, "stall": 0.02, "truncation": 0.04, "reset": 0.04}
BAD = "shard-000003.logits.tar"
Make = Callable[[str, str], TrainConfig]


@pytest.fixture
def make(make_config: Callable[..., TrainConfig], tmp_path: Path) -> Make:
    """A configuration to train on the cache at a URL."""

    def make(url: str, name: str) -> TrainConfig:
        local = {"folder": str(tmp_path / "copies"), "max_gib": 1.0}
        data = {"cache": url, "shards_mixed": 2, "local_copies": local}
        return make_config(data=data, loop={"max_steps": 20, "save_every": 50}, output=str(tmp_path / name))

    return make


def write_both(*urls: str, shards: int = 8) -> None:
    lengths = np.random.default_rng(3).integers(3, 20, (shards, 80 // shards)).tolist()
    for url in urls:
        write_cache(url, random_shards(lengths, 61, seed=3), 61)


def test_a_run_from_a_failing_store_has_the_losses_of_one_from_disk(
    make: Make, s3_server: str, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors, silence, bodies that stop or break off, resets, and two files with a wrong bit in their first answer."""
    write_both(s3_url, str(tmp_path / "cache"), shards=40)  # enough requests for each fault
    distill(make(str(tmp_path / "cache"), "disk"))
    monkeypatch.setattr(store_requests, "PART_BYTES", 1000)
    monkeypatch.setattr(store_requests, "PATIENCE", 1.0)
    monkeypatch.setattr(store_requests, "LISTING_PATIENCE", 1.0)
    monkeypatch.setattr(store_requests, "FIRST_DELAY", 0.05)
    with proxied(s3_server, SHARES, flips={BAD: 1, "shard-000006.tokens.tar": 1}) as proxy:
        distill(make(s3_url, "s3"))
    assert losses(tmp_path / "s3") == losses(tmp_path / "disk")
    assert len(losses(tmp_path / "s3")) == 20
    assert all(proxy.injected[fault] >= 2 for fault in (*FAULTS, "flip")), proxy.injected


def test_an_object_that_is_bad_stops_the_run_and_is_named(
    make: Make, s3_server: str, s3_url: str, tmp_path: Path
) -> None:
    write_both(s3_url)
    config = make(s3_url, "s3")
    (tmp_path / "train.json").write_text(config.model_dump_json())
    with proxied(s3_server, flips={BAD: 1000}):
        done = run("train-student", "run", tmp_path / "train.json")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {s3_url}/{BAD}: fetched twice, its sha256 is ")


def test_an_object_that_is_bad_is_left_out_by_choice(make: Make, s3_server: str, s3_url: str, tmp_path: Path) -> None:
    """It is fetched twice, not once more for each of its samples."""
    write_both(s3_url)
    config = make(s3_url, "s3")
    data = config.data.model_copy(update={"on_corrupt": "skip"})
    loop = config.loop.model_copy(update={"max_steps": None, "epochs": 2})
    with proxied(s3_server, flips={BAD: 1000}) as proxy:
        summary = distill(config.model_copy(update={"data": data, "loop": loop}))
    assert summary["ended"] == "completed"
    assert summary["skipped_samples"] == 20
    assert proxy.injected["flip"] == 2
    state = json.loads((tmp_path / "s3/checkpoint-40/data_state.json").read_text())
    assert state["skipped_samples"] == 20


def test_a_sample_damaged_on_its_way_is_asked_for_once_more(s3_server: str, s3_url: str, tmp_path: Path) -> None:
    write_both(s3_url, str(tmp_path / "cache"))
    wanted = CacheReader(str(tmp_path / "cache")).read_tokens(30)
    for flips in (1, 2):
        with proxied(s3_server, flips={"shard-000003.tokens.tar": flips}):
            reader = CacheReader(s3_url, ("tokens",))
            if flips == 1:
                assert reader.read_tokens(30).text == wanted.text
            else:
                with pytest.raises(CorruptCacheError, match=r"shard-000003\.tokens\.tar: sample \w+: xxh3 "):
                    reader.read_tokens(30)
