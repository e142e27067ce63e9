"""Commands for keys, signatures and trust."""

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
    help="File with trusted keys, lines of `hex name`; default: ~/.config/cache-tools/trusted_keys.",
)


def trust_options(command: Decorated) -> Decorated:
    """Add ``--require-signature`` and ``--trusted-keys``, passed as ``required`` (a tuple) and ``trusted_keys``."""
    require = click.option(
        "--require-signature",
        "required",
        multiple=True,
        metavar="KEY",
        help="Refuse a cache that this key did not sign: a .pub file, 64 hex digits, or a trusted name. Repeatable: "
        "all must have signed.",
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
@click.option("--name", show_default=False, help="Name of the signer; default: the file's name.")
@click.option("--passphrase", is_flag=True, help="Encrypt the key with $CACHE_TOOLS_PASSPHRASE, or after a prompt.")
@json_option
def keygen(file: Path, name: str | None, passphrase: bool, as_json: bool) -> None:
    """Generate a signing key: FILE is the private key, FILE.pub the public one. Nothing is overwritten."""
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
@click.option("--name", show_default=False, help="Name of the signer; default: the name in the key's .pub file.")
@json_option
def sign(url: str, key_file: Path, name: str | None, as_json: bool) -> None:
    """Sign a complete cache: its manifest, and thereby the checksum of every file.

    The files' content is not checked; run `cache-tools verify` first. A cache must be signed again after a change. The
    passphrase of an encrypted key is $CACHE_TOOLS_PASSPHRASE, or prompted for.
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
        raise UserError(f"{public_file(key_file)}: does not exist, so the signer is unknown; give --name NAME")
    return read_public_file(public_file(key_file))[1]


@click.command(
    cls=Command,
    examples=(
        "cache-tools trust alice.pub",
        "cache-tools trust --remove alice",
    ),
)
@click.argument("key", required=False)
@click.option("--name", show_default=False, help="Name for the key; default: the one in the .pub file.")
@click.option("--remove", metavar="NAME", help="Stop trusting this name.")
@trusted_keys_option
@json_option
def trust(key: str | None, name: str | None, remove: str | None, trusted_keys: Path | None, as_json: bool) -> None:
    """Trust KEY, a .pub file or 64 hex digits, under a name for --require-signature; list the trusted keys.

    Compare the digits with the key's owner through another channel than the one the file came by.
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
            raise UserError(f"{key}: the key has no name; give it one with --name NAME")
        add(path, public, name)
    show(read_keys(path) if path.exists() else {}, as_json)


def _passphrase(file: Path, confirm: bool = False) -> str:
    """Passphrase from the environment, or prompted for."""
    from tools.trust.sign import PASSPHRASE

    found = os.environ.get(PASSPHRASE)
    if found is not None:
        return found
    return click.prompt(f"passphrase of {file}", hide_input=True, confirmation_prompt=confirm, err=True)
