"""``configs/pyramid.yaml`` on a small real corpus: docstrings and code of the standard library, HumanEval, sums.

A random model stands in for the reward model. Everything else is as the file says.
"""

import ast
import json
import random
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForSequenceClassification

from benchmarks.support.corpus import human_eval_chats, standard_library
from schemas.curate_config import CurateConfig
from schemas.load import load_config
from support.curating import kept_and_removed
from support.models import tiny_config, tiny_tokenizer
from support.reasoning_cases import chain
from teacher_cache.curated.curated_place import read_curated
from teacher_cache.curation.curation_job import curate
from teacher_cache.curation.record import Record
from teacher_cache.curation.record_rows import from_row
from teacher_cache.shards.storage import Storage

CONFIG = Path(__file__).parents[1] / "configs/pyramid.yaml"
MODULES, CONTAMINATED, CHAINS = 25, 12, 60
Chat = dict[str, Any]


def chat(asked: str, said: str) -> Chat:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def functions() -> Iterator[tuple[str, str, str]]:
    """(name, docstring, source) of functions of the standard library that have a docstring."""
    for path in standard_library()[:MODULES]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (said := ast.get_docstring(node)):
                yield (
                    f"{path.stem}.{node.name}",
                    said,
                    textwrap.dedent(ast.get_source_segment(text, node, padded=True) or ""),
                )


def chains(rng: random.Random) -> Iterator[Chat]:
    """Sums in the format of a chain of verification; every fourth is wrong."""
    things = ["pens", "apples", "books", "stones", "tickets", "letters", "horses", "cups", "keys", "rings", "coins"]
    places = ["shop", "school", "farm", "harbour", "museum", "library", "kitchen", "station"]
    for number in range(CHAINS):
        boxes, each, sold, thing, place = (
            rng.randint(3, 9),
            rng.randint(11, 40),
            rng.randint(2, 9),
            *(rng.choice(words) for words in (things, places)),
        )
        held = boxes * each
        answers = (f"{boxes} × {each} = {held + (number % 4 == 0)}", f"{held} - {sold} = {held - sold}")
        asked = f"In a {place} are {boxes} boxes of {each} {thing}; {sold} {thing} go. How many are left?"
        draft = f"{boxes} boxes of {each} {thing} make {held + 10}, less {sold}: {held + 10 - sold} {thing}."
        questions = (f"What is {boxes} times {each}?", f"What is left of {held} {thing} without {sold}?")
        yield chat(asked, chain(f"{held - sold} {thing} are left in the {place}.", answers, draft, questions))


def write_lines(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CurateConfig:
    folder = tmp_path_factory.mktemp("pyramid")
    rng = random.Random(0)
    known = list(functions())
    write_lines(folder / "base.jsonl", [chat(f"What does {name} do?", said) for name, said, _ in known])
    fenced = [chat(f"Write {name}.", f"Here it is:\n\n```python\n{source}\n```") for name, _, source in known]
    prose = [chat("How?", "Without any code, as the words of this reply say."), chat("Again?", "```python\nx = (\n```")]
    problems = human_eval_chats()
    changed = [  # in another case and spacing
        chat("Solve it.", "\n".join("  " + line.upper() for line in each["messages"][1]["content"].splitlines()))
        for each in problems[:CONTAMINATED]
    ]
    write_lines(folder / "code.jsonl", fenced + prose + changed)
    write_lines(folder / "reasoning.jsonl", list(chains(rng)))
    tiny_tokenizer().save_pretrained(folder / "teacher")
    LlamaForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(folder / "reward")
    tiny_tokenizer().save_pretrained(folder / "reward")
    as_written = load_config(CurateConfig, str(CONFIG))
    names = ("base", "code", "reasoning")
    paths = [f"input.sources.{number}.path={folder / name}.jsonl" for number, name in enumerate(names)]
    paths += [f"tokenizer.path={folder / 'teacher'}", f"output.path={folder / 'out'}"]
    for number, step in enumerate(as_written.steps):
        if step.step == "reward":
            paths += [f"steps.{number}.model.path={folder / 'reward'}", f"steps.{number}.model.dtype=float32"]
        for place, one in enumerate(step.sets if step.step == "decontaminate" else []):
            path = folder / f"evaluation/{one.name}.jsonl"
            if one.name == "humaneval":
                said = [each["messages"][1]["content"].strip("`").removeprefix("python") for each in problems]
                items = [dict.fromkeys(one.fields, code) for code in said]
            else:
                made_up = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(20)]
                items = [dict.fromkeys(one.fields, " ".join(made_up))]
            write_lines(path, items)
            paths.append(f"steps.{number}.sets.{place}.path={path}")
    return load_config(CurateConfig, str(CONFIG), tuple(paths))


@pytest.fixture(scope="module")
def curated(config: CurateConfig) -> tuple[list[Record], list[tuple[Record, str, str]]]:
    """What stays, and what left with the name of the step and the reason."""
    curate(config)
    kept, removed = kept_and_removed(config.output.path)
    names = {f"steps.{number}": step.step for number, step in enumerate(config.steps)}
    return [from_row(row, "test") for row in kept], [
        (from_row(row, "test"), names[row.step], row.reason) for row in removed
    ]


def test_it_has_the_recipes_numbers(config: CurateConfig) -> None:
    steps = {step.step: step for step in config.steps}
    assert steps["mix"].shares == {"base": 60, "code": 25, "reasoning": 15}  # type: ignore[union-attr]
    assert (steps["length"].layers, steps["length"].min_tokens, steps["length"].max_tokens) == (["base"], 128, 512)  # type: ignore[union-attr]
    assert (steps["reward"].layers, steps["reward"].share) == (["base"], 0.3)  # type: ignore[union-attr]
    assert steps["code"].layers == ["code"]  # type: ignore[union-attr]


def test_shares_are_those_of_tokens(curated: Any, config: CurateConfig) -> None:
    kept, _ = curated
    tokens: Counter[str] = Counter()
    for record in kept:
        tokens[record.layer] += record.n_tokens
    longest = max(record.n_tokens for record in kept)
    for layer, share in {"base": 0.60, "code": 0.25, "reasoning": 0.15}.items():
        assert abs(tokens[layer] / tokens.total() - share) <= 0.005 + 2 * longest / tokens.total(), tokens
    manifest = read_curated(Storage(config.output.path))
    assert {layer: amount.tokens for layer, amount in manifest.layers.items()} == tokens


def test_what_is_evaluated_on_left(curated: Any) -> None:
    kept, removed = curated
    left = [record for record, step, reason in removed if step == "decontaminate" and "humaneval" in reason]
    assert sum(record.prompt == "Solve it." for record in left) == CONTAMINATED
    assert len(left) <= CONTAMINATED + 2
    assert not any(record.prompt == "Solve it." for record in kept)


def test_the_base_is_the_best_of_the_right_length(curated: Any) -> None:
    kept, removed = curated
    judged = [record for record, step, _ in removed if step == "reward"]
    stayed = [record for record in kept if record.layer == "base"]
    stayed += [record for record, step, _ in removed if step == "mix" and record.layer == "base"]
    assert {record.layer for record in judged} == {"base"}
    assert all(128 <= record.n_tokens <= 512 for record in judged + stayed)
    assert abs(len(stayed) / (len(stayed) + len(judged)) - 0.3) < 0.05
    assert Counter(reason for _, step, reason in removed if step == "length").keys() == {"too_short", "too_long"}


def test_code_parses_and_chains_are_right(curated: Any) -> None:
    kept, removed = curated
    code = [record for record in kept if record.layer == "code"]
    assert len(code) > 3
    for record in code:
        assert ast.parse(record.reply.split("```")[1].removeprefix("python")).body
    assert sum(step == "code" for _, step, _ in removed) == 2
    reasoning = [record for record, step, _ in removed if step == "reasoning"]
    assert len(reasoning) == CHAINS // 4
    assert all(record.flags["computed"] is True for record in kept if record.layer == "reasoning")
