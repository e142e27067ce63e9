"""Two training jobs share a folder of local copies; one of them is killed again and again."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from transformers import TrainerCallback

from schemas.train_config import TrainConfig
from support.amount import amount
from support.commands import Forked, kill_group, run_ok, start_installed
from support.logged import losses
from support.proxy import Proxy, proxied
from support.synthetic import random_shards, write_cache
from support.watch import Watch
from trainer.distiller import distill

KILLS = amount(5, full=20)
NEVER = 100_000
DELAY = 0.3  # seconds that a tar takes, so that kills hit while files are fetched
VICTIM_STEPS = amount(30, full=60)


class StopAt(TrainerCallback):
    """Ends a run after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


def tars_asked_for(proxy: Proxy, url: str) -> int:
    return sum(path.startswith(url.removeprefix("s3:/")) and path.endswith(".tar") for _, path in proxy.requests)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.timeout(1200)
def test_killing_a_job_that_shares_local_copies_harms_no_other(
    make_config: Callable[..., TrainConfig], s3_server: str, s3_url: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """SIGKILLs at random instants after a job has begun to fetch.

    Both jobs train on the same files, which lie in two places so that the server's log tells who asked. The one that
    goes on is a command started as a user does, the killed ones are the same command in forked processes.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in this process: sums depend on it
    lengths = np.random.default_rng(3).integers(3, 20, (8, 10)).tolist()
    for name in ("survivor", "victim"):
        write_cache(f"{s3_url}/{name}", random_shards(lengths, 61, seed=3), 61)
    files = fsspec.filesystem("s3").find(s3_url, detail=True)
    bound = 5 * max(file["size"] for name, file in files.items() if name.endswith(".tar"))
    folder = tmp_path / "copies"

    def config(name: str, url: str, steps: int, seed: int) -> TrainConfig:
        local = {"folder": str(folder), "max_gib": bound / 2**30}
        data = {"cache": url, "shards_mixed": 1, "local_copies": local}
        loop = {"max_steps": steps, "save_every": NEVER, "seed": seed}
        made = make_config(data=data, loop=loop, output=str(tmp_path / name))
        (tmp_path / f"{name}.json").write_text(made.model_dump_json())
        return made

    survives = config("survivor", f"{s3_url}/survivor", NEVER, seed=0)
    config("victim", f"{s3_url}/victim", VICTIM_STEPS, seed=1)
    rng = random.Random(0)
    with proxied(s3_server, delay=DELAY) as proxy, Watch(folder) as watch:
        survivor = start_installed("train-student", "run", tmp_path / "survivor.json")
        try:
            wait_for(lambda: tars_asked_for(proxy, f"{s3_url}/survivor") > 0)
            for _ in range(KILLS):
                before = tars_asked_for(proxy, f"{s3_url}/victim")
                victim = Forked("train-student", "run", tmp_path / "victim.json")
                wait_for(lambda before=before: tars_asked_for(proxy, f"{s3_url}/victim") > before)
                time.sleep(rng.uniform(0, 0.5))
                assert victim.poll() is None
                kill_group(victim)
                assert survivor.poll() is None, survivor.communicate()
            run_ok("train-student", "run", tmp_path / "victim.json")
        finally:
            survivor.send_signal(signal.SIGTERM)
            _, stderr = survivor.communicate(timeout=120)
    assert survivor.returncode == 128 + signal.SIGTERM, stderr
    assert 0 < watch.most_bytes <= bound
    assert watch.looks > 100
    assert not list(folder.glob("*.part")), "what killed jobs have left is cleared away"

    write_cache(str(tmp_path / "cache"), random_shards(lengths, 61, seed=3), 61)
    for name, steps, seed in (("survivor", NEVER, 0), ("victim", VICTIM_STEPS, 1)):
        found = losses(tmp_path / name)
        distill(config(f"{name}-disk", str(tmp_path / "cache"), steps, seed), callbacks=[StopAt(len(found))])
        assert found == losses(tmp_path / f"{name}-disk")
    assert len(losses(survives.output)) > KILLS
