"""Descriptions of a cache: capture settings, size, pull command."""

import shlex
from pathlib import Path
from typing import Any

from schemas.cache_config import CaptureConfig
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.storage import Storage
from tools.finding.words import capture_in_words, pull_command, total_bytes


def test_a_hostile_address_is_one_argument() -> None:
    url = "s3://b/a cache; rm -rf '~'"
    assert shlex.split(pull_command(url, "ab12")) == ["cache-tools", "pull", url, "FOLDER", "--digest", "ab12"]
    assert "--digest" not in pull_command(url, None)


def test_every_signal_in_words(tmp_path: Path) -> None:
    manifest = write_cache(str(tmp_path), random_shards([[9, 4]]))
    tree: dict[str, Any] = {
        "logits": {"k": 64},
        "draws": {"n": 7, "temperatures": [1.0, 3.0]},
        "final": {"dtype": "bfloat16"},
        "hidden": {"layers": [0.5, 1.0], "positions": {"every": 4}},
        "attention": {"heads": [1, 5]},
    }
    words = capture_in_words(manifest.model_copy(update={"capture": CaptureConfig.model_validate(tree)}))
    assert words == {
        "logits": "top 64; temperatures 1, 3; rows: loss_mask",
        "draws": "7 from the tail; temperatures 1, 3",
        "final": "bfloat16; rows: loss_mask",
        "hidden": "layers 1, 2; int8; rows: every 4",
        "attention": "layer 2; 2 heads; 32 keys; rows: keywords",
    }


def test_bytes_are_of_all_files_that_the_manifest_lists(tmp_path: Path) -> None:
    manifest = write_cache(str(tmp_path), random_shards([[9, 4]]))
    storage = Storage(str(tmp_path))
    assert total_bytes(manifest) == sum(storage.sizes().values()) - storage.size("manifest.json")
