"""Public keys by name: a file with one ``hex name`` line per key, and ``#`` comments."""

import re
from pathlib import Path

from schemas.errors import UserError
from schemas.regular_files import read_file

MAX_BYTES = 1 << 20
NAME = r"[^\s\x00-\x1f\x7f#][^\x00-\x1f\x7f]{0,199}"
LINE = re.compile(rf"([0-9a-f]{{64}})\s+({NAME})")
_HEX = re.compile(r"[0-9a-f]{64}")


def default_file() -> Path:
    """Default file of trusted keys."""
    return Path.home() / ".config" / "cache-tools" / "trusted_keys"


def read_keys(path: Path) -> dict[str, str]:
    """Read keys (64 hex digits) by name. Raises UserError naming file and line."""
    data = read_file(path, MAX_BYTES, "cannot read the keys")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot read the keys: {error}") from None
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{path}:{number}: expected 64 hex digits and a name, got {line[:80]!r}")
        key, name = match.groups()
        if keys.get(name, key) != key:
            raise UserError(f"{path}:{number}: second key with the name {name!r}; rename one of them")
        keys[name] = key
    return keys


def read_public_file(path: Path) -> tuple[str, str]:
    """Read key and name from a ``.pub`` file. Raises UserError."""
    keys = read_keys(path)
    if len(keys) != 1:
        raise UserError(f"{path}: {len(keys)} keys, expected one line: 64 hex digits and a name")
    ((name, key),) = keys.items()
    return key, name


def load_public_key(key: str, trusted_keys: Path | None = None) -> str:
    """Resolve 64 hex digits, a ``.pub`` file, or a name in the trusted keys, to 64 hex digits. Raises UserError."""
    if _HEX.fullmatch(key):
        return key
    if key.endswith(".pub"):
        return read_public_file(Path(key))[0]
    path = trusted_keys or default_file()
    names = read_keys(path) if path.exists() else {}
    if key not in names:
        raise UserError(
            f"key {key!r}: not among the {len(names)} names in {path}; use one of these, 64 hex digits or a .pub "
            "file, or add it with `cache-tools trust FILE.pub`"
        )
    return names[key]
