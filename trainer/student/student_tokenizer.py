"""The student's tokenizer: check that it matches the cache's, and copy its files to the final model."""

import shutil
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.model_folder import not_loaded
from teacher_cache.tokenizer import FILES, describe_tokenizer

OTHERS = (  # of rarer tokenizer classes; FILES also identify the tokenizer of a plan, so they do not grow
    "*.spm", "vocab*.json", "*_vocab.json", "word_*.json", "bpe.codes", "dict.txt", "emoji.json", "normalizer.json",
    "byte_maps.json", "prophetnet.tokenizer",
)  # fmt: skip
CODE = "*.py"
EVALUATED = "MODEL"  # the model's argument name in `train-student evaluate`
OF_MATRIX = "models: "  # the name of a model of a matrix follows


def check_tokenizer(
    manifest: Manifest,
    folder: Path,
    where: str,
    key: str = "student",
    trust_remote_code: bool = False,
    advice: str = "",
) -> None:
    """Raise UserError if the tokenizer in ``folder`` is not the one of the cache at ``where``.

    key: the setting that names the folder. advice: what to do; default: to align. A folder without a tokenizer passes;
    only the vocabulary size can be checked then.
    """
    other = other_fingerprint(manifest, folder, key, trust_remote_code)
    if other is not None:
        wanted = manifest.tokenizer.fingerprint
        raise UserError(
            f"{folder}: the student's tokenizer {other[:12]}… is not the one the cache {where} was made with, "
            f"{wanted[:12]}…; {advice or how_to_align(key) + ' to teach a student with another tokenizer'}"
        )


def other_fingerprint(manifest: Manifest, folder: Path, key: str, trust_remote_code: bool) -> str | None:
    """Fingerprint of the tokenizer in ``folder`` if it is not the cache's; None if it is, or if there is none."""
    if not tokenizer_files(folder):
        return None
    found = describe_tokenizer(load_tokenizer(folder, key, trust_remote_code)).fingerprint
    return None if found == manifest.tokenizer.fingerprint else found


def load_tokenizer(folder: Path, key: str, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer in ``folder``; code that ships with it runs only if trusted. Raises UserError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # third-party tokenizers can raise anything
        raise not_loaded(error, f"{folder}: cannot load the student's tokenizer", how_to_trust(key)) from None


def how_to_trust(key: str) -> str:
    """Return the advice on how to trust the code of the model that ``key`` names."""
    if key.startswith(OF_MATRIX):
        return "set trust_remote_code: true for this model"
    return "add --trust-remote-code" if key == EVALUATED else "set student.trust_remote_code: true"


def how_to_align(key: str) -> str:
    """Return the advice on how to use a cache of another tokenizer with the model that ``key`` names."""
    if key.startswith(OF_MATRIX):
        return "set align: border for the task"
    return "add --align border" if key == EVALUATED else "set data.align (all teaches most)"


def copy_tokenizer(source: Path, folder: Path, trust_remote_code: bool = False) -> bool:
    """Copy the tokenizer files from ``source`` to ``folder``, unchanged; return False if there are none.

    Code that ships with the tokenizer is copied only if trusted.
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
    """List the files in ``folder`` that belong to a tokenizer of any transformers class."""
    found = {path for pattern in (*FILES, *OTHERS) for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.suffix != ".py")
