"""The student's tokenizer: the same tokens as the cache's, and all its files for whoever uses the final model."""

import shutil
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.model_folder import not_loaded
from teacher_cache.tokenizer import FILES, describe_tokenizer

OTHERS = (  # the files of rarer classes; FILES are also what a plan is continued by, and stay as they are
    "*.spm", "vocab*.json", "*_vocab.json", "word_*.json", "bpe.codes", "dict.txt", "emoji.json", "normalizer.json",
    "byte_maps.json", "prophetnet.tokenizer",
)  # fmt: skip
CODE = "*.py"
EVALUATED = "MODEL"  # what `train-student evaluate` calls the model


def check_tokenizer(
    manifest: Manifest, folder: Path, where: str, key: str = "student", trust_remote_code: bool = False
) -> None:
    """Raise UserError if the student in ``folder`` brings a tokenizer with other tokens than the cache at ``where``.

    key: the setting that names it. A folder without a tokenizer passes: then only the size of the vocabulary can be
    checked.
    """
    if not tokenizer_files(folder):
        return
    found = describe_tokenizer(load_tokenizer(folder, key, trust_remote_code)).fingerprint
    wanted = manifest.tokenizer.fingerprint
    if found != wanted:
        raise UserError(
            f"{folder}: the student's tokenizer {found[:12]}… is not the one the cache {where} was made with, "
            f"{wanted[:12]}…; use a student that shares the teacher's tokenizer"
        )


def load_tokenizer(folder: Path, key: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer in ``folder``. Its own code runs only if it is trusted; raises UserError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # what the files of a stranger's tokenizer may make its class raise
        raise not_loaded(error, f"{folder}: cannot load the student's tokenizer", how_to_trust(key)) from None


def how_to_trust(key: str) -> str:
    """How the model that the setting ``key`` names is allowed to run code that ships with it."""
    return "add --trust-remote-code" if key == EVALUATED else "set student.trust_remote_code: true"


def copy_tokenizer(source: Path, folder: Path, trust_remote_code: bool = False) -> bool:
    """Copy the tokenizer's files from ``source`` to ``folder``, byte for byte; False if there are none.

    Code that ships with it comes along only where it is trusted.
    """
    files = tokenizer_files(source)
    if trust_remote_code:
        files += sorted(source.glob(CODE))
    for file in files:
        target = folder / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    return bool(files)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files in ``folder`` that belong to a tokenizer, of any class that transformers has."""
    found = {path for pattern in (*FILES, *OTHERS) for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.suffix != ".py")
