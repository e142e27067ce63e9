"""Write the JSON Schemas of the contract to ``schemas/json``, or check that they are up to date.

    python -m schemas.generate            write them
    python -m schemas.generate --check    exit 1 and name the stale files

They are generated, yet checked in: whoever reads or writes a cache without this code validates against them. The price
is that they can go stale, which ``make lint`` and the tests catch. Text depends on the models and on the version of
pydantic (pinned by the lock files), on nothing else.
"""

import json
import sys
from pathlib import Path

import click
from pydantic import BaseModel

from schemas.cache_config import CacheConfig
from schemas.catalog_file import Catalog
from schemas.chat_record import ChatRecord
from schemas.curate_config import CurateConfig
from schemas.curated_manifest import CuratedManifest
from schemas.generate_config import GenerateConfig
from schemas.generated_manifest import GeneratedManifest, GeneratedShard
from schemas.manifest import Manifest, ShardIndex
from schemas.matrix_config import MatrixConfig
from schemas.rounds_config import RoundsConfig
from schemas.signature import Signature
from schemas.strict import FORMAT_VERSION
from schemas.train_config import TrainConfig

FOLDER = Path(__file__).resolve().parent / "json"
MODELS: dict[str, type[BaseModel]] = {
    "cache-config": CacheConfig,
    "train-config": TrainConfig,
    "manifest": Manifest,
    "shard-index": ShardIndex,
    "signature": Signature,
    "catalog": Catalog,
    "chat": ChatRecord,
    "generate-config": GenerateConfig,
    "generated-manifest": GeneratedManifest,
    "generated-shard": GeneratedShard,
    "rounds-config": RoundsConfig,
    "curate-config": CurateConfig,
    "curated-manifest": CuratedManifest,
    "matrix-config": MatrixConfig,
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> dict[str, str]:
    """Text of every schema by file name: indented JSON with a final newline, keys in the order of the models."""
    return {f"{name}.schema.json": _document(model) for name, model in MODELS.items()}


def _document(model: type[BaseModel]) -> str:
    schema = {"$schema": DIALECT, "$comment": f"format_version {FORMAT_VERSION}", **model.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of the files below ``folder`` that are missing, differ from the models, or belong to no model; sorted."""
    wanted = documents()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def write(folder: Path = FOLDER) -> None:
    """Make ``folder`` hold exactly the schemas of the models."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = documents()
    for path in folder.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with status 1 when a file is stale.")
def main(check: bool) -> None:
    """Write the JSON Schemas of the configurations and of the cache format to schemas/json."""
    if not check:
        write()
    elif names := stale():
        click.echo(f"error: stale in schemas/json: {', '.join(names)}; run: python -m schemas.generate", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
