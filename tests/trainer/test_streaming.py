"""Training from an object store is training from a folder."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from support.logged import losses
from support.models import write_random_teacher, write_text_corpus
from support.proxy import proxied
from support.synthetic import random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache import job
from trainer.distiller import distill


@pytest.mark.parametrize(("workers", "copies"), [(0, True), (2, True), (0, False)])
def test_a_run_from_s3_has_the_losses_of_one_from_disk(
    make_config: Any, s3_url: str, tmp_path: Path, workers: int, copies: bool
) -> None:
    lengths = np.random.default_rng(3).integers(3, 20, (8, 10)).tolist()
    for url in (str(tmp_path / "cache"), s3_url):
        write_cache(url, random_shards(lengths, 61, seed=3), 61)
    files = fsspec.filesystem("s3").find(s3_url, detail=True)
    shard_bytes = max(file["size"] for name, file in files.items() if name.endswith(".tar"))
    bound = 5 * shard_bytes
    folder = tmp_path / "copies"
    local = {"folder": str(folder), "max_gib": bound / 2**30} if copies else None
    data = {"shards_mixed": 1, "cache": str(tmp_path / "cache")}
    distill(make_config(data=data, output=str(tmp_path / "disk")))
    data |= {"cache": s3_url, "local_copies": local, "num_workers": workers}
    config = make_config(data=data, output=str(tmp_path / "s3"))
    distill(config)
    assert losses(config.output) == losses(tmp_path / "disk")
    if copies:
        assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= bound
    else:
        assert not folder.exists()


def test_signals_that_are_not_learned_from_are_not_downloaded(
    make_config: Any, s3_server: str, s3_url: str, tmp_path: Path
) -> None:
    """The server's log: no request for a tar of hidden states unless a loss needs them."""
    teacher, corpus = write_random_teacher(tmp_path / "teacher"), write_text_corpus(tmp_path / "texts", documents=12)
    capture = {"logits": {"k": 8}, "draws": None, "hidden": {"layers": [1, 2]}}
    job.run(validate(CacheConfig, cache_tree(teacher, corpus, s3_url, tokens_per_shard=300, capture=capture), "test"))
    asked = {}
    for name, terms in (("logits", {}), ("hidden", {"lhsm": {}})):
        local = {"folder": str(tmp_path / f"{name}-copies")}
        config = make_config(
            data={"cache": s3_url, "local_copies": local},
            student={"checkpoint": None, "teacher": str(teacher), "from_layers": [0, 1]},
            losses=terms,
            output=str(tmp_path / name),
        )
        with proxied(s3_server) as proxy:
            distill(config)
        asked[name] = {path.split(".", 1)[1] for _, path in proxy.requests if path.endswith(".tar")}
    assert asked == {
        "logits": {"tokens.tar", "logits.tar"},
        "hidden": {"tokens.tar", "logits.tar", "hidden.tar"},
    }


def test_a_folder_of_copies_that_is_too_small_for_the_order_is_refused(
    make_config: Any, s3_url: str, tmp_path: Path
) -> None:
    """Samples come from all shards that are mixed in turn: each would be fetched again and again."""
    lengths = np.random.default_rng(3).integers(3, 20, (8, 10)).tolist()
    totals = write_cache(s3_url, random_shards(lengths, 61, seed=3), 61).totals
    half = sum(totals.bytes.values()) / 2 / 2**30

    def train(shards_mixed: int, max_gib: float, url: str = s3_url) -> None:
        local = {"folder": str(tmp_path / "copies"), "max_gib": max_gib}
        data = {"cache": url, "shards_mixed": shards_mixed, "local_copies": local}
        distill(make_config(data=data, loop={"max_steps": 1, "resume": False}))

    with pytest.raises(UserError, match=r"^data.local_copies.max_gib: \S+ is less .* data.shards_mixed = 5 shards"):
        train(5, half)
    train(4, half)
    with pytest.raises(UserError, match=r"data.shards_mixed = 64 shards"):
        train(64, half)
    write_cache(str(tmp_path / "cache"), random_shards(lengths, 61, seed=3), 61)
    train(64, half, str(tmp_path / "cache"))
