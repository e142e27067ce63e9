"""The end of a run that trained an adapter: its folder, written from the last or best checkpoint."""

import shutil
from pathlib import Path

from schemas.train_config import StudentConfig
from trainer.adapters.adapter_folder import AdapterRecord, write_adapter
from trainer.adapters.merged_model import merge_folder
from trainer.adapters.trained_weights import trained_in

MERGED = "-merged"


def write_final_adapter(
    folder: Path,
    checkpoint: Path,
    student: StudentConfig,
    init_folder: Path,
    base: str,
    fingerprint: str,
    card: str,
) -> None:
    """Write the adapter of ``checkpoint`` to ``folder``, and, if asked for, the merged model to ``FOLDER-merged``.

    init_folder: the base model here; base, fingerprint: what is recorded of it, where it is for others and
    which it is. Raises UserError.
    """
    trained = trained_in(checkpoint)
    record = AdapterRecord.of(student, trained, base, fingerprint)
    write_adapter(folder, trained, record, init_folder, student.trust_remote_code, card)
    assert student.adapter is not None
    if student.adapter.merge:
        merged = folder.with_name(folder.name + MERGED)
        shutil.rmtree(merged, ignore_errors=True)
        merge_folder(folder, merged, str(init_folder), trust_remote_code=student.trust_remote_code)
