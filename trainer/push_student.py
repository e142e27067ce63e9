"""``train-student push``: a student's folder as a model repository of the Hugging Face Hub, in one commit."""

import os
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from teacher_cache.hub import HubUpload, repository_of

MODEL_FILES = ("config.json", "adapter_config.json")
MAX_FILES = 1000


def push_student(folder: Path, url: str, private: bool = True) -> dict[str, Any]:
    """Upload the files of a model's or adapter's folder, with its card; returns a summary.

    private: whether others may not see the repository, if it is new. Raises UserError.
    """
    repository = repository_of(url, "model")
    if not any((folder / name).is_file() for name in MODEL_FILES):
        raise UserError(f"{folder}: has no {' or '.join(MODEL_FILES)}; give the folder `final` of a run")
    files: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_symlink() or not path.is_file():
                raise UserError(f"{path}: is no regular file; copy the folder without links")
            if not name.startswith("."):
                files[path.relative_to(folder).as_posix()] = path
    if len(files) > MAX_FILES:
        raise UserError(f"{folder}: {len(files)} files, at most {MAX_FILES} are uploaded; give the folder of one model")
    upload = HubUpload(repository)
    upload.create(private)
    return {
        "url": url,
        "commit": upload.commit({}, files, [], f"Student {folder.resolve().name}", {}),
        "files": len(files),
    }
