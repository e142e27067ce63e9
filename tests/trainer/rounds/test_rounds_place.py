"""What is thrown away of complete rounds."""

from pathlib import Path

import pytest

from support.small_rounds import rounds_config, write_small_rounds
from trainer.rounds.round_settings import settled
from trainer.rounds.rounds_place import throw_away


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_rounds(tmp_path_factory.mktemp("rounds"))


@pytest.mark.parametrize(("keep", "kept"), [("caches", [1, 2, 3]), ("latest", [2, 3]), ("none", [3])])
def test_only_complete_rounds_lose_caches_and_checkpoints(folder: Path, tmp_path: Path, keep: str, kept: list) -> None:
    """Two rounds are complete, the third is under way."""
    settings = settled(rounds_config(folder, tmp_path, rounds=3, keep=keep))
    for number in (1, 2, 3):
        place = settings.round(number)
        for made in (place.replies, place.cache, place.final, place.training / "checkpoint-9"):
            made.mkdir(parents=True)
    throw_away(settings, 2)
    throw_away(settings, 2)
    assert [number for number in (1, 2, 3) if settings.round(number).cache.exists()] == kept
    assert [number for number in (1, 2, 3) if settings.round(number).replies.exists()] == kept
    assert all(settings.round(number).final.exists() for number in (1, 2, 3))
    assert [path.parent.parent.name for path in tmp_path.glob("round-*/train/checkpoint-9")] == ["round-003"]
