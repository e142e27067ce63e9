"""What a fleet sees of a curation: nothing, then chunks that are done, then its end."""

from pathlib import Path

import pytest

from schemas.curated_manifest import CuratedManifest
from support.curating import STEPS, curate_config, write_curation_input
from teacher_cache.curation.curation_job import curate
from teacher_cache.curation.curation_run import CurationRun
from teacher_cache.fleet.curated_chunks import CuratedChunks


def test_chunks_of_all_stages_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_curation_input(tmp_path)
    config = curate_config(tmp_path, str(tmp_path / "place"), output={"path": str(tmp_path / "place")})
    chunks, seen = CuratedChunks(config), []
    finish, stage = CurationRun._finish, CurationRun._stage

    def look() -> None:
        chunks.look()
        seen.append((chunks.finished, chunks.total, chunks.complete))

    def look_before(self: CurationRun, *arguments: object) -> object:
        look()
        return stage(self, *arguments)  # type: ignore[arg-type]

    def look_and_finish(self: CurationRun, *arguments: object) -> CuratedManifest:
        look()
        return finish(self, *arguments)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(CurationRun, "_stage", look_before)
    monkeypatch.setattr(CurationRun, "_finish", look_and_finish)
    look()
    curate(config)
    look()
    compared = sum(step["step"] in ("deduplicate", "mix") for step in STEPS)
    n_chunks = seen[1][0]  # read
    total = (2 + compared) * n_chunks
    assert n_chunks > 0
    assert seen[0] == (0, 0, False)
    assert seen[1:-1] == [(number * n_chunks, total, False) for number in range(1, 3 + compared)]
    assert seen[-1] == (total, total, True)
