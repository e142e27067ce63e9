"""Public keys by name: a file with a line for each, ``hex name``, and ``#`` before comments."""

import os
import re
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from schemas.errors import UserError
from teacher_cache.shards.lease import Lease, part_of
from teacher_cache.shards.storage import Storage

MAX_BYTES = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = r"[^\s\x00-\x1f\x7f#][^\x00-\x1f\x7f]{0,199}"
_LINE = re.compile(rf"([0-9a-f]{{64}})\s+({_NAME})")


def default_file() -> Path:
    """Where trusted keys are if nothing else is said."""
    return Path.home() / ".config" / "cache-tools" / "trusted_keys"


def public_file(private_key: Path) -> Path:
    """Where the public half of a private key is written."""
    return private_key.with_name(private_key.name + ".pub")


def read_keys(path: Path) -> dict[str, str]:
    """Keys (64 hex digits) by name. Raises UserError naming file and line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the keys: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES} bytes, that is no file of keys")
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}:{number}: expected 64 hex digits and a name, got {line[:80]!r}")
        key, name = match.groups()
        if keys.get(name, key) != key:
            raise UserError(f"{path}:{number}: a second key with the name {name!r}; names must be distinct")
        keys[name] = key
    return keys


def read_public_file(path: Path) -> tuple[str, str]:
    """Key and name in a ``.pub`` file. Raises UserError."""
    keys = read_keys(path)
    if len(keys) != 1:
        raise UserError(f"{path}: {len(keys)} keys, wanted one line: 64 hex digits and a name")
    ((name, key),) = keys.items()
    return key, name


def load_public_key(key: str, trusted_keys: Path | None = None) -> str:
    """64 hex digits from these digits, a ``.pub`` file, or a name in the file of trusted keys. Raises UserError."""
    if _HEX.fullmatch(key):
        return key
    if key.endswith(".pub"):
        return read_public_file(Path(key))[0]
    path = trusted_keys or default_file()
    names = read_keys(path) if path.exists() else {}
    if key not in names:
        raise UserError(
            f"key {key!r}: not among the {len(names)} names in {path}; give one of these, 64 hex digits or a .pub "
            "file, or add it with `cache-tools trust FILE.pub`"
        )
    return names[key]


def trust(path: Path, key: str, name: str) -> None:
    """Add a key to the file of trusted keys, which is made if need be. Raises UserError if the name has another."""
    if not re.fullmatch(_NAME, name) or name != name.strip():
        raise UserError(f"the name {name!r}: wanted at most 200 printable characters in one line")
    with _updating(path):
        known = read_keys(path) if path.exists() else {}
        if known.get(name, key) != key:
            raise UserError(f"{path}: {name!r} is trusted with another key, {known[name]}; remove that, or use --name")
        if name not in known:
            text = path.read_text() if path.exists() else ""
            _replace(path, text + ("" if not text or text.endswith("\n") else "\n") + f"{key} {name}\n")


def distrust(path: Path, name: str) -> None:
    """Take a name out of the file of trusted keys. Raises UserError when it is not there."""
    if not path.exists() or name not in read_keys(path):
        raise UserError(f"{path}: no key of the name {name!r}; `cache-tools trust` lists them")
    with _updating(path):
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if (match := _LINE.fullmatch(line.strip())) is None or match.group(2) != name]
        _replace(path, "".join(kept))


def _updating(path: Path) -> AbstractContextManager[Lease]:
    """Have the file for oneself, from reading it to replacing it; others are waited for."""
    return part_of(Storage(str(path.absolute().parent)), "trusted-keys", "cache-tools trust", lambda holder: True)


def _replace(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
