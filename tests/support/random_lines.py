"""Random command lines and configurations: drawn from what click knows of each command, and what people mistype."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

NUMBERS = (
    "0",
    "1",
    "-1",
    "2",
    "7",
    "1000000",
    str(2**31),
    str(2**63),
    "9" * 40,
    "1e9",
    "nan",
    "inf",
    "-inf",
    "0x10",
    "1.5",
)
TEXTS = (
    "", " ", "-", "--", "x", "a b", "ü", "\u202e", "[/]", "[red]", "%s", "{}", "$HOME", "~", "~/x", "~nobody/x", ".",
    "..", "/", "//", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/nowhere/x", "a" * 300, "b/" * 3000,
    "\n", "ftp://h/x", "zip://a::b", "http://127.0.0.1:9/x", "http://", "https:///x", "file:///nowhere", "memory://x",
    "s3://", "hf://x", "gs://x/y", "a::b", "::", "1%", "0%", "101%", "train=90%,x=10%", "x=", "0-1", "9-1", "0" * 64,
    "g" * 64, "logits", "tokens,logits", "1/2", "0/0", "2/1", "-1/1", "\udcff", "caf\udce9",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**64, 10**20, -(10**20), 0.0, -0.5, 1e308, 1e-308, float("nan"),
    float("inf"), "", "x", "~", "/nowhere", "[/]", "\u202e", "a" * 5000, [], [1], [[]], {}, {"x": 1}, "2026-01-01",
    "1e5",
)  # fmt: skip
OVERRIDES = ("a=1", "=1", "a", "output=", "output.path={w}/x", "a..b=1", "loop.max_steps=[", "x.y.z=&a [*a]")
BREAKS = ("\0", "\t", "[", "{", "&a", "*a", "!!python/name:os", "\x1b", "---\n")


def command_lines(groups: dict[str, click.Group], workshop: Path, seed: int) -> Iterator[list[str]]:
    """Endless command lines; paths of ``workshop`` stand for arguments as often as nonsense does."""
    rng = random.Random(seed)
    good = sorted(str(path) for path in workshop.iterdir()) + [f"{workshop}/cache"] * 6 + [f"{workshop}/other"] * 2
    while True:
        name = rng.choice(list(groups))
        command = rng.choice(sorted(groups[name].commands))
        yield [name, *_line(groups[name].commands[command], command, rng, good)]


def _line(command: click.Command, name: str, rng: random.Random, good: list[str]) -> list[str]:
    line = [name]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            count = rng.choice((1, 1, 1, 1, 1, 0, 2)) if parameter.nargs == 1 else rng.choice((1, 2, 2, 3))
            line += [_argument(rng, good) for _ in range(count)]
        elif isinstance(parameter, click.Option) and rng.random() < (0.9 if parameter.required else 0.2):
            line.append(rng.choice(parameter.opts))
            if not parameter.is_flag:
                line.append(_value(parameter, rng, good))
    if rng.random() < 0.1:
        line.insert(rng.randrange(len(line) + 1), rng.choice(("--nonsense", "-x", "--json", "--", "", "-h")))
    return line


def _argument(rng: random.Random, good: list[str]) -> str:
    return (
        rng.choice(good) if rng.random() < 0.6 else rng.choice(TEXTS) if rng.random() < 0.8 else f"new-{rng.random()}"
    )


def _value(option: click.Option, rng: random.Random, good: list[str]) -> str:
    if option.name == "overrides":
        return rng.choice(OVERRIDES).format(w=good[0])
    if isinstance(option.type, click.Choice) and rng.random() < 0.8:
        return rng.choice(list(option.type.choices))
    if rng.random() < 0.5 and isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        return rng.choice(("1", "2", "3", "0.5"))
    return rng.choice((*NUMBERS, *TEXTS, *good))


def configurations(trees: list[dict[str, Any]], seed: int) -> Iterator[tuple[int, str]]:
    """Endless YAML texts: a tree (by number) with one to three values replaced, removed or moved; some are no YAML."""
    rng = random.Random(seed)
    while True:
        number = rng.randrange(len(trees))
        tree = copy.deepcopy(trees[number])
        for _ in range(rng.randint(1, 3)):
            places = list(_places(tree))
            parent, key = rng.choice(places)
            action = rng.random()
            if action < 0.7:
                parent[key] = copy.deepcopy(rng.choice(VALUES))
            elif action < 0.85:
                del parent[key]
            elif isinstance(parent, dict):
                parent[rng.choice(("x", "", "max_steps", "k", "layers"))] = parent.pop(key)
            if not tree:
                break
        text = yaml.safe_dump(tree, allow_unicode=True)
        if rng.random() < 0.1:
            cut = rng.randrange(len(text) + 1)
            text = text[:cut] + rng.choice(BREAKS) + text[cut:]
        yield number, text


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)
