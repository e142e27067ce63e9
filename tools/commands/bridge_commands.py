"""Commands that export to and import from other systems' formats."""

from typing import cast, get_args

import click

from schemas.cache_config import Dtype
from teacher_cache.command import MOST, json_option, progress, show
from teacher_cache.program import Command


@click.command(
    "export",
    cls=Command,
    examples=(
        "cache-tools export runs/demo/cache exports/demo --to parquet",
        "cache-tools export s3://team/cache exports/kd --to axolotl --temperature 2",
    ),
)
@click.argument("url")
@click.argument("out")
@click.option(
    "--to",
    "layout",
    type=click.Choice(["parquet", "distillkit", "axolotl", "megatron", "speculators"]),
    required=True,
    help="parquet: plain columns, for Hugging Face datasets; distillkit: DistillKit's captured teachers; axolotl: "
    "Axolotl's prepared sequences; megatron: Megatron-LM's indexed data sets; speculators: hidden states, to train "
    "draft models.",
)
@click.option("--temperature", type=float, help="axolotl: its kd_temperature, at which targets are softened. [1]")
@click.option("--tokens-per-file", type=click.IntRange(1, MOST), help="Tokens per Parquet file.  [1000000]")
@json_option
def export(
    url: str, out: str, layout: str, temperature: float | None, tokens_per_file: int | None, as_json: bool
) -> None:
    """Write a cache's tokens, with its logits or hidden states, to the new folder OUT in another system's layout.

    DistillKit's trainer needs the data set saved to disk and packed; the folder's README.md says how.

    Log-probabilities are those of the cache (for axolotl: softened, and normalised over the stored tokens). For
    speculators, the cache must hold every row of its last decoder layer (capture.hidden). Other signals are left out.
    The folder's README.md says how to read the files.
    """
    from tools.bridges.export import export as write

    with progress("exporting") as advance:
        written = write(url, out, layout, temperature, tokens_per_file, advance)
    show(vars(written), as_json)


@click.command(
    "import",
    cls=Command,
    examples=(
        "cache-tools import exports/demo s3://team/cache --from parquet",
        "cache-tools import dump.jsonl runs/cache --from logprobs --teacher models/teacher",
    ),
)
@click.argument("path")
@click.argument("url")
@click.option(
    "--from",
    "layout",
    type=click.Choice(["parquet", "distillkit", "logprobs"]),
    required=True,
    help="parquet: files of `cache-tools export --to parquet`; distillkit: files captured by DistillKit; logprobs: "
    "JSONL with vLLM's prompt_logprobs, or with responses in OpenAI's style.",
)
@click.option(
    "--teacher",
    metavar="PATH",
    help="Folder of the teacher that was captured (not for parquet); its configuration suffices.",
)
@click.option("--teacher-name", metavar="NAME", help="Name of the teacher.  [the folder's]")
@click.option(
    "--teacher-dtype",
    type=click.Choice(get_args(Dtype)),
    default="bfloat16",
    help="Data type that the teacher was run in.",
)
@click.option("--tokenizer", metavar="PATH", help="Folder of the tokenizer.  [the teacher's]")
@click.option(
    "--compression-config",
    metavar="FILE",
    help="distillkit: YAML with the compression settings.  [PATH/compression_config.yaml]",
)
@click.option("--layer", default="base", help="Layer of the data mix of the sequences.")
@click.option("--tokens-per-shard", type=click.IntRange(1, MOST), default=262_144, help="Tokens per shard.")
@json_option
def import_cache(
    path: str,
    url: str,
    layout: str,
    teacher: str | None,
    teacher_name: str | None,
    teacher_dtype: str,
    tokenizer: str | None,
    compression_config: str | None,
    layer: str,
    tokens_per_shard: int,
    as_json: bool,
) -> None:
    """Make a new cache at URL from another system's files in the folder (or from the one file) PATH.

    Every value is checked; the first invalid one ends the import, naming its file and row, and nothing is left at URL.
    DistillKit's layout has no log-partitions, so its caches have temperature 1 only, and lacks the realised token's
    log-probability where that is not among the stored ones: it is estimated, and the manifest's notes count these.
    So are dumps of log-probabilities, whose tokens may be named by ids, text or bytes (docs/bridges.md).
    """
    from tools.bridges.imports import CapturedOptions, import_files

    dtype = cast(Dtype, teacher_dtype)
    options = CapturedOptions(teacher, teacher_name, dtype, tokenizer, compression_config, layer)
    with progress("importing") as advance:
        made = import_files(path, url, layout, options, tokens_per_shard, advance)
    show(vars(made), as_json)
