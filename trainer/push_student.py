"""``train-student push``: a student's folder as a model repository of the Hugging Face Hub, in one commit."""

import json
import os
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from teacher_cache.hub import Content, HubUpload, repository_of
from teacher_cache.text import in_header
from trainer.adapters.adapter_folder import RECORD_FILE
from trainer.run.output_names import ADAPTER_CONFIG, MODEL_MARKS

MAX_FILES = 1000
CARD = "README.md"


def push_student(folder: Path, url: str, private: bool = True, base: str | None = None) -> dict[str, Any]:
    """Upload the files of a model's or adapter's folder, with its card; returns a summary.

    private: whether others may not see the repository, if it is new. base: the adapter's base model as others find it,
    OWNER/NAME, instead of the folder in which it was trained. Raises UserError.
    """
    repository = repository_of(url, "model")
    if not any((folder / name).is_file() for name in MODEL_MARKS):
        raise UserError(f"{folder}: has no {' or '.join(MODEL_MARKS)}; give the folder `final` of a run")
    files: dict[str, Content] = {}
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
    files |= _naming_base(folder, base)
    upload = HubUpload(repository)
    upload.create(private)
    return {
        "url": url,
        "commit": upload.commit([], files, [], f"Student {folder.resolve().name}", {}),
        "files": len(files),
    }


def _naming_base(folder: Path, base: str | None) -> dict[str, bytes]:
    """Files of an adapter that name its base model, with ``base`` as its name; none if they can stay as they are."""
    config, record, card = folder / ADAPTER_CONFIG, folder / RECORD_FILE, folder / CARD
    if not config.is_file():
        if base is not None:
            raise UserError(f"--base {base}: {folder} is a whole model, no adapter; leave it out")
        return {}
    settings = _json(config)
    if base is None:
        named = settings.get("base_model_name_or_path") or ""
        if not named or Path(named).exists() or Path(named).is_absolute():
            raise UserError(
                f"{config}: the base model is the folder {named!r}, which others do not have; push it, too, and name "
                "it with --base OWNER/NAME, or push the merged model"
            )
        return {}
    base = repository_of(f"hf://{base}", "model").name
    trees = {ADAPTER_CONFIG: settings | {"base_model_name_or_path": base}}
    if record.is_file():
        trees[RECORD_FILE] = _json(record) | {"base": base}
    found = {name: json.dumps(tree, indent=1).encode() + b"\n" for name, tree in trees.items()}
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        found[CARD] = in_header(text, f"base_model: {base}").encode()
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: wanted a JSON object")
    return tree
