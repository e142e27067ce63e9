"""Commands about who vouches for a cache."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from schemas.errors import UserError
from teacher_cache.command import json_option, show
from teacher_cache.program import Command

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, path_type=Path)

trusted_keys_option = click.option(
    "--trusted-keys",
    type=_FILE,
    help="File with trusted keys, lines of `hex name`; else ~/.config/cache-tools/trusted_keys.",
)


def trust_options(command: Decorated) -> Decorated:
    """Add ``--require-signature`` and ``--trusted-keys``, passed on as ``required`` (a tuple) and ``trusted_keys``."""
    require = click.option(
        "--require-signature",
        "required",
        multiple=True,
        metavar="KEY",
        help="Refuse a cache that this key did not sign: a .pub file, 64 hex digits, or a trusted name. Repeatable: "
        "all must have.",
    )
    return require(trusted_keys_option(command))


@click.command(
    cls=Command,
    examples=(
        "cache-tools keygen ~/.config/cache-tools/alice --name alice",
        "cache-tools keygen ~/.config/cache-tools/alice --passphrase",
    ),
)
@click.argument("file", type=_FILE)
@click.option("--name", show_default=False, help="Who signs with it; default: the file's name.")
@click.option("--passphrase", is_flag=True, help="Encrypt it: with $CACHE_TOOLS_PASSPHRASE, or what you are asked for.")
@json_option
def keygen(file: Path, name: str | None, passphrase: bool, as_json: bool) -> None:
    """Make a key to sign caches with: FILE is the private key, FILE.pub is for others. Nothing is overwritten."""
    from tools.trust.sign import generate_key
    from tools.trust.trusted_keys import public_file

    secret = _passphrase(file, confirm=True).encode() if passphrase else None
    public = generate_key(file, name or file.stem, secret)
    show({"public_key": public, "private_key_file": str(file), "public_key_file": str(public_file(file))}, as_json)


@click.command(
    cls=Command,
    examples=(
        "cache-tools sign runs/demo/cache --key ~/.config/cache-tools/alice",
        "cache-tools sign s3://bucket/caches/demo --key alice --name 'Alice Smith'",
    ),
)
@click.argument("url")
@click.option("--key", "key_file", type=_FILE, required=True, help="Private key, as `cache-tools keygen` writes it.")
@click.option("--name", show_default=False, help="Who signs; default: the name in the key's .pub file.")
@json_option
def sign(url: str, key_file: Path, name: str | None, as_json: bool) -> None:
    """Sign a complete cache: vouch for its manifest, and so for the checksum of every file.

    What the files hold is not looked at; run `cache-tools verify` before. A cache that is changed must be signed
    again. If the key is encrypted, its passphrase is $CACHE_TOOLS_PASSPHRASE, or you are asked for it.
    """
    from schemas.signature import signature_file
    from teacher_cache.shards.storage import Storage
    from tools.trust.sign import load_private_key
    from tools.trust.sign import sign as sign_cache

    key = load_private_key(key_file, lambda: _passphrase(key_file))
    signature = sign_cache(Storage(url), key, name or _name_of(key_file))
    facts = json.loads(signature.statement.model_dump_json()) | {"public_key": signature.public_key}
    show(facts | {"file": signature_file(signature.public_key)}, as_json)


def _name_of(key_file: Path) -> str:
    from teacher_cache.trust.keys import read_public_file
    from tools.trust.trusted_keys import public_file

    if not public_file(key_file).exists():
        raise UserError(f"{public_file(key_file)}: not there, so say who signs: --name NAME")
    return read_public_file(public_file(key_file))[1]


@click.command(
    cls=Command,
    examples=(
        "cache-tools trust alice.pub",
        "cache-tools trust --remove alice",
    ),
)
@click.argument("key", required=False)
@click.option("--name", show_default=False, help="Name to trust the key by; default: the one in the .pub file.")
@click.option("--remove", metavar="NAME", help="Trust this name no longer.")
@trusted_keys_option
@json_option
def trust(key: str | None, name: str | None, remove: str | None, trusted_keys: Path | None, as_json: bool) -> None:
    """Trust KEY, a .pub file or 64 hex digits, by a name that --require-signature then knows; list who is trusted.

    Compare the digits with those that the key's owner tells you, by some other way than the file came.
    """
    from teacher_cache.trust.keys import default_file, load_public_key, read_keys, read_public_file
    from tools.trust.trusted_keys import distrust
    from tools.trust.trusted_keys import trust as add

    path = trusted_keys or default_file()
    if remove is not None:
        distrust(path, remove)
    if key is not None:
        public = load_public_key(key, path)
        name = name or (read_public_file(Path(key))[1] if key.endswith(".pub") else None)
        if name is None:
            raise UserError("a key without a name; give it one with --name NAME")
        add(path, public, name)
    show(read_keys(path) if path.exists() else {}, as_json)


def _passphrase(file: Path, confirm: bool = False) -> str:
    """From the environment, or asked for."""
    from tools.trust.sign import PASSPHRASE

    found = os.environ.get(PASSPHRASE)
    if found is not None:
        return found
    return click.prompt(f"passphrase of {file}", hide_input=True, confirmation_prompt=confirm, err=True)
