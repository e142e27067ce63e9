"""Where the files of a model or tokenizer lie: in a folder, or in the hub's cache on this machine.

What is not there is not looked for elsewhere: a mistyped path would be sent to a hub as a name.
"""

import re
from pathlib import Path

from schemas.errors import UserError
from teacher_cache.text import reason_of

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
ADAPTER = "adapter_config.json"


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can be meant as MODEL or OWNER/MODEL of a hub, and is no path of something here."""
    return HUB_ID.fullmatch(name) is not None and not Path(name.partition("/")[0]).exists()


def local_folder(name: str, key: str, revision: str | None = None) -> Path:
    """The folder of the model that ``name`` means: a path, or a hub id whose files are in the hub's local cache.

    ``key`` names the setting in the UserError, which is also raised for an adapter without its model.
    """
    folder = Path(name)
    if not folder.is_dir():
        cached = _cached_folder(name, revision) if is_hub_id(name) else None
        if cached is None:
            raise UserError(f"{key}: {name} ({_why(folder)}): cannot read a model configuration; {_advice(name)}")
        folder = cached
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{key}: {folder}: holds an adapter ({ADAPTER}) of another model; merge it into that model (PEFT's "
            "merge_and_unload), save the result, and give its folder"
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
    return "a file" if folder.exists() else "no such folder here"


def _advice(name: str) -> str:
    wanted = "give the folder of a Hugging Face model"
    if not is_hub_id(name):
        return wanted
    return f"{wanted}; if this is the name of one on a hub, fetch it first: hf download {name}"


def why_not_loaded(error: Exception, trust: str) -> str:
    """``: REASON``, to put behind the path of what could not be loaded; ``trust``: what to do to trust its code."""
    if "trust_remote_code" in str(error):
        return f": it would run code of its own (auto_map); if you have read that code and trust it, {trust}"
    return reason_of(error)
