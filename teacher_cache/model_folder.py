"""Locate the files of a model or tokenizer: a folder, or the hub's local cache.

Nothing is downloaded: otherwise a mistyped path would be sent to a hub as a name.
"""

import errno
import os
import re
from pathlib import Path

from schemas.errors import FullError, MachineError, UserError
from schemas.failures import failure, os_error_in
from teacher_cache.text import reason_of

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
ADAPTER = "adapter_config.json"
_MISSING = re.compile(r"No such file or directory: (.+)")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form MODEL or OWNER/MODEL of a hub, and is not an existing local path."""
    return HUB_ID.fullmatch(name) is not None and not Path(name.partition("/")[0]).exists()


def local_folder(name: str, key: str, revision: str | None = None) -> Path:
    """The folder of the model ``name``: a path, or a hub id whose files are in the hub's local cache.

    Raises UserError, naming the setting ``key``, if there is none, or if it is an adapter without its base model.
    """
    folder = Path(name)
    if not folder.is_dir():
        cached = _cached_folder(name, revision) if is_hub_id(name) else None
        if cached is None:
            raise UserError(f"{key}: {name} ({_why(folder)}): cannot read a model configuration; {_advice(name)}")
        folder = cached
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{key}: {folder}: contains an adapter ({ADAPTER}) for another model; merge it into that model "
            "(`train-student merge`, of other adapters PEFT's merge_and_unload), and pass the folder of the result"
        )
    return folder


def _cached_folder(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _why(folder: Path) -> str:
    return "a file" if folder.exists() else "no such folder"


def _advice(name: str) -> str:
    wanted = "pass the folder of a Hugging Face model"
    if not is_hub_id(name):
        return wanted
    return f"{wanted}; if this is a hub id, download it first: hf download {name}"


def not_loaded(error: Exception, what: str, trust: str = "", advice: str = "") -> UserError:
    """Error for a model or tokenizer that failed to load; what: such as "FOLDER: cannot load the model".

    A machine that is out of memory, disk space or file handles is reported as such, even if a library hides it:
    safetensors calls every file that it cannot open missing. trust: how to enable the model's own code.
    """
    found = failure(os_error_in(error) or _not_missing(error) or error, what)
    if isinstance(found, MachineError | FullError):
        return found
    if trust and "trust_remote_code" in str(error):
        return UserError(
            f"{what}: it would run code of its own (auto_map); if you have read that code and trust it, {trust}{advice}"
        )
    return UserError(f"{what}{reason_of(error)}{advice}")


def _not_missing(error: Exception) -> OSError | None:
    """Why an existing file, which ``error`` calls missing, cannot be opened; None if it is missing or opens."""
    found = _MISSING.search(str(error))
    if not isinstance(error, FileNotFoundError) or found is None or not Path(found[1]).exists():
        return None
    try:
        Path(found[1]).open("rb").close()
    except OSError as reason:
        return reason
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE), found[1])  # most likely: it can be opened again
