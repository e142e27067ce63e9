"""Training from an object store is training from a folder."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from support.metrics import losses
from support.synthetic import random_shards, write_cache
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
    data = {"shards_mixed": 1, "num_workers": workers}
    distill(make_config(data={**data, "cache": str(tmp_path / "cache")}, output=str(tmp_path / "disk")))
    config = make_config(data={**data, "cache": s3_url, "local_copies": local}, output=str(tmp_path / "s3"))
    distill(config)
    assert losses(config.output) == losses(tmp_path / "disk")
    if copies:
        assert 0 < sum(path.stat().st_size for path in folder.iterdir()) <= bound
    else:
        assert not folder.exists()
