"""``python -m trainer.matrix.tasks.long_documents``: make items of a long-context task from abstracts.

    python -m trainer.matrix.tasks.long_documents ABSTRACTS OUTPUT --tokenizer FOLDER --tokens 32768 --items 100

ABSTRACTS is JSONL with ``title`` and ``abstract``, as arXiv's metadata. A prompt is as many whole abstracts as fit, and
asks for one of them word for word; over the items its place moves evenly from the beginning to the end. Equal input
gives equal bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from pydantic import BaseModel, Field

from schemas.cache_config import MAX_TOKENS
from schemas.errors import UserError
from trainer.matrix.tasks.jsonl_items import read_items
from trainer.matrix.tasks.long_context_task import Question
from trainer.run.output_files import replace_text

MAX_ABSTRACTS = 100_000
BEGINNING = "These are abstracts of papers.\n\n"
QUESTION = "Repeat the abstract of the paper titled “{title}” word for word, and nothing else.\n\nAbstract:"


class Paper(BaseModel):
    """What is read of a paper."""

    title: str = Field(min_length=1)
    abstract: str = Field(min_length=1)

    def shown(self) -> str:
        """As it is in a prompt."""
        return f"Title: {_line(self.title)}\nAbstract: {_line(self.abstract)}\n\n"


def questions(papers: Sequence[Paper], lengths_P: np.ndarray, tokens: int, items: int, seed: int) -> list[Question]:
    """Items with prompts of at most ``tokens``; lengths_P: int64, tokens of each paper as it is shown.

    No paper is asked for twice. Raises UserError if there are too few.
    """
    if items > len(papers):
        raise UserError(
            f"--items {items}: there are {len(papers)} papers of different titles; give more, or ask for fewer"
        )
    rng = np.random.default_rng(seed)
    asked = rng.permutation(len(papers))[:items]
    return [_question(papers, lengths_P, tokens, place, int(one), items, rng) for place, one in enumerate(asked)]


def _question(
    papers: Sequence[Paper],
    lengths_P: np.ndarray,
    tokens: int,
    place: int,
    asked: int,
    items: int,
    rng: np.random.Generator,
) -> Question:
    others_P = rng.permutation(len(papers))
    others_P = others_P[others_P != asked]
    total_P = np.cumsum(lengths_P[others_P]) + lengths_P[asked]
    count = int(np.searchsorted(total_P, tokens, side="right"))
    if count == len(others_P):
        raise UserError(f"--tokens {tokens}: all papers have {int(lengths_P.sum())} tokens together; give more of them")
    depth = (place + 0.5) / items
    order = np.insert(others_P[:count], int(depth * (count + 1)), asked)
    paper = papers[asked]
    text = "".join(papers[int(each)].shown() for each in order)
    return Question(
        id=f"{place:05d} at {100 * depth:.0f} %",
        prompt=BEGINNING + text + QUESTION.replace("{title}", _line(paper.title)),
        wanted=_line(paper.abstract),
    )


def _line(text: str) -> str:
    return " ".join(text.split())


@click.command()
@click.argument("abstracts", type=click.Path(dir_okay=False))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--tokenizer", required=True, type=click.Path(path_type=Path), help="Folder of a model: counts tokens.")
@click.option("--tokens", default=32768, show_default=True, type=click.IntRange(256, MAX_TOKENS), help="Of a prompt.")
@click.option("--items", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1))
def main(abstracts: str, output: Path, tokenizer: Path, tokens: int, items: int, seed: int) -> None:
    """Make items of a long-context task: OUTPUT asks for single ones of many ABSTRACTS."""
    try:
        _make(abstracts, output, tokenizer, tokens, items, seed)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None


def _make(abstracts: str, output: Path, tokenizer: Path, tokens: int, items: int, seed: int) -> None:
    from trainer.student.student_tokenizer import load_tokenizer

    papers = list({_line(paper.title): paper for paper in read_items(abstracts, Paper, MAX_ABSTRACTS)}.values())
    counter = load_tokenizer(tokenizer, "--tokenizer")
    ids = counter([paper.shown() for paper in papers], add_special_tokens=False)["input_ids"]
    longest = max(papers, key=lambda paper: len(paper.title)).title
    room = len(counter(BEGINNING + QUESTION.replace("{title}", _line(longest)))["input_ids"])
    made = questions(papers, np.array([len(each) for each in ids]), tokens - room, items, seed)
    replace_text(
        output, "".join(each.model_dump_json(exclude_none=True, exclude_defaults=True) + "\n" for each in made)
    )


if __name__ == "__main__":
    main()
