"""How far a curation is, by the marks of its chunks: whoever works on it, and wherever."""

from schemas.curate_config import CurateConfig
from schemas.errors import MissingFileError
from teacher_cache.curated.curated_place import CURATED
from teacher_cache.curation.stages import PLAN, READ, PlanFile, ReadMark, mark_of, read_small, scratch_path
from teacher_cache.shards.storage import Storage


class CuratedChunks:
    """Chunks of all stages of a curation, and which of them are done; as ``CommittedUnits``."""

    def __init__(self, config: CurateConfig) -> None:
        """Raises UserError if there can be no scratch folder."""
        self._storage, self._scratch = Storage(config.output.path), Storage(scratch_path(config))
        self.sizes: dict[str, int] = {}  # 1 each; {}: the input is not read yet
        self.done: set[str] = set()
        self.complete = False

    def look(self) -> None:
        """Look again: a listing. Raises UserError."""
        self.complete = self._storage.exists(CURATED)
        if self.complete:  # and the marks may be gone
            self.done = {*self.sizes}
            return
        try:
            chunks = read_small(ReadMark, self._scratch, READ).chunks
            stages = 2 + len(read_small(PlanFile, self._scratch, PLAN).compared)  # with reading, and the one after all
        except MissingFileError:
            return
        self.sizes = {mark_of(stage, chunk): 1 for stage in range(stages) for chunk in range(chunks)}
        self.done = self.sizes.keys() & self._scratch.present()

    @property
    def total(self) -> int:
        """Chunks of all stages."""
        return len(self.sizes)

    @property
    def finished(self) -> int:
        """Those that are done."""
        return len(self.done)
