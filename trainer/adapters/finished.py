"""The end of a run that trained an adapter: its folder, written from the last or best checkpoint."""

import shutil
from pathlib import Path

from schemas.train_config import StudentConfig
from teacher_cache.teacher import model_fingerprint
from trainer.adapters.adapter_folder import AdapterRecord, write_adapter
from trainer.adapters.merged_model import merge_folder
from trainer.adapters.trained_weights import trained_in

MERGED = "-merged"


def write_final_adapter(
    folder: Path, checkpoint: Path, student: StudentConfig, init_folder: Path, base: str, card: str
) -> None:
    """Write the adapter of ``checkpoint`` to ``folder``, and, if asked for, the merged model to ``FOLDER-merged``.

    init_folder: the base model here; base: where it is for others, a folder or URL. Raises UserError.
    """
    trained = trained_in(checkpoint)
    named = base if "://" in base else str(Path(base).resolve())
    record = AdapterRecord.of(student, trained, named, model_fingerprint(str(init_folder), key="student"))
    about = f"- base model: fingerprint `{record.base_fingerprint}`\n"
    title, losses = card.split("\n## Losses", 1)
    write_adapter(folder, trained, record, init_folder, student.trust_remote_code, f"{title}{about}\n## Losses{losses}")
    assert student.adapter is not None
    if student.adapter.merge:
        merged = folder.with_name(folder.name + MERGED)
        shutil.rmtree(merged, ignore_errors=True)
        merge_folder(folder, merged, str(init_folder), trust_remote_code=student.trust_remote_code)
