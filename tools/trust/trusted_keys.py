"""Updates to the file of trusted keys, which ``teacher_cache.trust.keys`` reads."""

import re
from contextlib import AbstractContextManager
from pathlib import Path

from schemas.errors import UserError
from schemas.failures import failure
from schemas.regular_files import read_file
from teacher_cache.shards.lease import Lease, part_lease
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.keys import LINE, MAX_BYTES, NAME, read_keys
from teacher_cache.user_file import write_whole


def public_file(private_key: Path) -> Path:
    """The public key's file, beside the private key's."""
    return private_key.with_name(private_key.name + ".pub")


def trust(path: Path, key: str, name: str) -> None:
    """Add a key to the file of trusted keys, creating it if needed. Raises UserError if the name has another key."""
    if not re.fullmatch(NAME, name) or name != name.strip():
        raise UserError(f"the name {name!r}: wanted at most 200 printable characters in one line")
    with _updating(path):
        known = read_keys(path) if path.exists() else {}
        if known.get(name, key) != key:
            raise UserError(f"{path}: {name!r} has another key, {known[name]}; remove that one, or use --name")
        if name not in known:
            text = read_file(path, MAX_BYTES).decode() if path.exists() else ""
            _replace(path, text + ("" if not text or text.endswith("\n") else "\n") + f"{key} {name}\n")


def distrust(path: Path, name: str) -> None:
    """Remove a name from the file of trusted keys. Raises UserError when it is not there."""
    if not path.exists() or name not in read_keys(path):
        raise UserError(f"{path}: no key named {name!r}; `cache-tools trust` lists the keys")
    with _updating(path):
        lines = read_file(path, MAX_BYTES).decode().splitlines(keepends=True)
        kept = [line for line in lines if (match := LINE.fullmatch(line.strip())) is None or match.group(2) != name]
        _replace(path, "".join(kept))


def _updating(path: Path) -> AbstractContextManager[Lease]:
    """An exclusive lease on the file, from reading to replacing it; waits for other holders."""
    return part_lease(Storage(str(path.absolute().parent)), "trusted-keys", "cache-tools trust", lambda holder: True)


def _replace(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failure(error, f"{path}: cannot be written") from None
    write_whole(path, text.encode())
