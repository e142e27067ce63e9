"""``python -m benchmarks.chat_templates FOLDER``: correctness of loss masks over chat templates × chat shapes.

FOLDER holds templates as ``*.jinja``. For each cell, a chat goes through the corpus with one token per byte and is then
judged by ``chat_oracle``. Then its messages are looked for in the rendered text alone, as ``cache-tools upgrade`` does.
Prints the table, writes it as JSON, and exits with status 3 if a cell is wrong.
"""

import json
import logging
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.support.chat_oracle import REFUSED, RIGHT, WRONG, Answer, Judge, Verdict
from benchmarks.support.chat_shapes import SHAPES, Shape
from benchmarks.support.results import BAR_MISSED
from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus import Corpus
from teacher_cache.records import TokenSample
from tools.making.unrender import Outcome, Unrenderer

SIGNS = {RIGHT: ".", REFUSED: "r", WRONG: "W"}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write (default: none).")
def main(folder: Path, output: Path | None) -> None:
    """Judge every template in FOLDER on every chat shape."""
    logging.disable(logging.WARNING)  # the corpus logs each kind of cut
    sources = {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    table = {name: judge_template(source) for name, source in sources.items()}
    again = {name: found_again(source) for name, source in sources.items()}
    totals = Counter(verdict.kind for row in table.values() for verdict in row.values())
    _print(table)
    print(f"{len(table)} templates × {len(SHAPES)} shapes = {totals.total()} cells: {dict(totals)}")
    print("messages found again in the rendered text:")
    for shape in SHAPES:
        print(f"    {shape.name:30} {dict(Counter(row[shape.name] for row in again.values() if shape.name in row))}")
    if output is not None:
        cells = {name: {shape: [v.kind, v.why] for shape, v in row.items()} for name, row in table.items()}
        output.write_text(json.dumps({"totals": totals, "templates": cells, "found_again": again}, indent=1) + "\n")
    sys.exit(BAR_MISSED if totals[WRONG] else 0)


def judge_template(source: str) -> dict[str, Verdict]:
    """The verdict on each chat shape."""
    tokenizer = byte_tokenizer(source)
    return {shape.name: Judge(tokenizer, shape).judge(answer(tokenizer, shape)) for shape in SHAPES}


def found_again(source: str) -> dict[str, str]:
    """By chat shape that the template renders, what came of finding its messages in the text.

    "as planned" is the record that the plan writes.
    """
    tokenizer = byte_tokenizer(source)
    found = {}
    unrenderer = None
    for shape in SHAPES:
        try:
            sample, _ = _rendered(tokenizer, shape)
        except UserError:
            continue
        unrenderer = unrenderer or Unrenderer(tokenizer, _settings("unused"))
        record, outcome = unrenderer.read(replace(sample, chat=b""))
        as_planned = record is not None and record.to_json() == sample.chat
        proven = "as planned" if as_planned else "another that renders alike"
        found[shape.name] = proven if outcome is Outcome.PROVEN else outcome.value
    return found


def answer(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> Answer:
    """The corpus's rendering and mask of a chat, or its refusal."""
    try:
        sample, corpus = _rendered(tokenizer, shape)
    except UserError as error:
        return Answer(refusal=str(error))
    mask = np.zeros(len(sample.text.encode()), dtype=bool)
    for t in np.flatnonzero(sample.loss_mask) + 1:  # the token that a row predicts
        mask[sample.byte_start[t] : sample.byte_end[t]] = True
    return Answer(sample.text, mask, corpus.counts.cut_replies)


def _rendered(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> tuple[TokenSample, Corpus]:
    """The sample that the corpus makes of a chat. Raises UserError if it refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.jsonl"
        path.write_text(json.dumps({"messages": shape.messages, **shape.record}))
        corpus = Corpus(_settings(str(path)), tokenizer)
        try:
            (sample,) = corpus
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}:1: ")) from None
    return sample, corpus


def _settings(path: str) -> CorpusConfig:
    return CorpusConfig(sources=[SourceConfig(path=path, format="jsonl")], max_tokens=1 << 20)


def byte_tokenizer(source: str) -> Any:
    """A tokenizer with one token per byte, and ``source`` as its chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.chat_template = source
    return tokenizer


def _print(table: dict[str, dict[str, Verdict]]) -> None:
    for number, shape in enumerate(SHAPES, start=1):
        print(f"{number:3d} {shape.name}")
    print(". right   r refused   W wrong")
    for name, row in table.items():
        print(f"{name:45.45} {' '.join(SIGNS[verdict.kind] for verdict in row.values())}")
        for cell, verdict in row.items():
            if verdict.kind == WRONG:
                print(f"    {cell}: {verdict.why}")


if __name__ == "__main__":
    main()
