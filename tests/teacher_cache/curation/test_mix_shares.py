"""Shares of the data mix in tokens that count."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from support.records_to_judge import chat_record, opened, reply_record, text_record
from teacher_cache.curation.curation_step import Decision, GlobalStep, Table
from teacher_cache.curation.record import Generated, Record

LAYERS = ("base", "code", "reasoning")


def mix(layers: tuple[str, ...] = LAYERS, **settings: object) -> GlobalStep:
    step = opened({"step": "mix", **settings}, layers)
    assert isinstance(step, GlobalStep)
    return step


def table_of(tokens: Mapping[str, list[int]]) -> Table:
    """Records of these tokens, layer after layer."""
    layers = tuple(sorted(tokens))
    layer_N = np.repeat(np.arange(len(layers)), [len(tokens[layer]) for layer in layers])
    n_tokens_N = np.array([count for layer in layers for count in tokens[layer]], np.int64)
    zeros = np.zeros(len(layer_N), np.int64)
    return Table(np.arange(len(layer_N)), zeros, layer_N, n_tokens_N, layers)


def random_numbers(table: Table, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, len(table), np.uint64)


def kept(table: Table, decision: Decision) -> dict[str, int]:
    stays = decision.code_N == 0
    return {layer: int(table.n_tokens_N[stays & (table.layer_N == at)].sum()) for at, layer in enumerate(table.layers)}


@given(
    sizes=st.tuples(*[st.integers(500, 2000)] * 3),
    shares=st.tuples(*[st.integers(5, 60)] * 3),
    longest=st.integers(1, 120),
    seed=st.integers(0, 2**32),
)
def test_shares_are_within_half_a_point(
    sizes: tuple[int, ...], shares: tuple[int, ...], longest: int, seed: int
) -> None:
    """Whatever the layers hold, and as many tokens as the scarcest of them allows, to one record's."""
    rng = np.random.default_rng(seed)
    tokens = {
        layer: rng.integers(longest // 2 + 1, longest + 1, size).tolist()
        for layer, size in zip(LAYERS, sizes, strict=True)
    }
    table, wanted = table_of(tokens), dict(zip(LAYERS, shares, strict=True))
    decision = mix(shares=wanted, on_deficit="shrink").decide(random_numbers(table, seed), table)
    found = kept(table, decision)
    whole = sum(found.values())
    most = min(sum(tokens[layer]) / share for layer, share in wanted.items()) * sum(shares)
    assert most - 3 * longest <= whole <= most + 3 * longest
    for layer, share in wanted.items():
        assert abs(found[layer] / whole - share / sum(shares)) <= 0.005 + 3 * longest / whole
        assert found[layer] <= sum(tokens[layer])
        if whole > 700 * longest:
            assert abs(found[layer] / whole - share / sum(shares)) <= 0.005
    assert {layer: note["tokens"] for layer, note in decision.notes["layers"].items()} == found


def test_a_total_is_met_if_there_is_enough() -> None:
    table = table_of({layer: [100] * 500 for layer in LAYERS})
    shares = {"base": 60, "code": 25, "reasoning": 15}
    decision = mix(shares=shares, tokens=40_000).decide(random_numbers(table), table)
    assert kept(table, decision) == {"base": 24_000, "code": 10_000, "reasoning": 6_000}
    assert decision.notes["layers"]["code"] == {"tokens": 10_000, "percent": 25.0, "available": 50_000}


def test_a_deficit_is_named_with_what_is_missing() -> None:
    table = table_of({"base": [100] * 500, "code": [100] * 10, "reasoning": [10] * 10})
    step = mix(shares={"base": 60, "code": 25, "reasoning": 15}, tokens=40_000)
    message = (
        "steps.0.tokens: 40000: code has 1000 of 10000 tokens, 9000 are missing; reasoning has 100 of 6000 tokens, "
        "5900 are missing; add data"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        step.decide(random_numbers(table), table)


def test_what_shrinks_says_which_layer_is_the_limit() -> None:
    table = table_of({"base": [100] * 500, "code": [100] * 10, "reasoning": [100] * 500})
    shares = {"base": 60, "code": 25, "reasoning": 15}
    decision = mix(shares=shares, tokens=40_000, on_deficit="shrink").decide(random_numbers(table), table)
    assert kept(table, decision) == {"base": 2400, "code": 1000, "reasoning": 600}
    assert decision.notes["limited_by"] == "code"
    decision = mix(shares=shares, tokens=2000, on_deficit="shrink").decide(random_numbers(table), table)
    assert kept(table, decision) == {"base": 1200, "code": 500, "reasoning": 300}
    assert decision.notes["limited_by"] == "tokens"


def test_a_layer_without_a_share_leaves_and_one_without_tokens_is_an_error() -> None:
    table = table_of({"base": [10] * 50, "code": [10] * 50})
    step = mix(("base", "code"), shares={"base": 1, "code": 0}, on_deficit="shrink")
    assert kept(table, step.decide(random_numbers(table), table)) == {"base": 500, "code": 0}
    empty = table_of({"base": [10] * 50, "code": []})
    step = mix(("base", "code"), shares={"base": 1, "code": 1}, on_deficit="shrink")
    with pytest.raises(UserError, match=r"steps\.0\.shares: no token of layer code is left to mix"):
        step.decide(random_numbers(empty), empty)


@pytest.mark.parametrize(
    ("shares", "problem"),
    [({"base": 1}, "no share for code, reasoning"), (dict.fromkeys((*LAYERS, "codes"), 1), "no source has codes")],
)
def test_shares_are_of_the_layers_of_the_sources(shares: dict[str, float], problem: str) -> None:
    with pytest.raises(UserError, match=rf"steps\.0\.shares: {problem}; the layers of the sources are base, code"):
        mix(shares=shares, on_deficit="shrink")


def with_ids(record: Record, ids: list[int]) -> Record:
    assert isinstance(record.content, Generated)
    reply = replace(record.content.reply, reply_ids=np.array(ids, np.uint32))
    return replace(record, content=record.content._replace(reply=reply))


def test_the_choice_depends_on_content_and_seed_alone() -> None:
    records = [text_record(f"text {number}") for number in range(40)]
    records += [chat_record("asked", f"said {number}") for number in range(40)]
    records += [with_ids(reply_record("asked", "said"), [number]) for number in range(40)]
    settings = {"shares": dict.fromkeys(LAYERS, 1), "on_deficit": "shrink"}
    numbers = mix(**settings).sketch(records)
    assert numbers.dtype == np.uint64
    assert len({*numbers.tolist()}) == 120
    assert mix(**settings).sketch(records[::-1]).tolist() == numbers[::-1].tolist()
    assert not np.isin(mix(**settings, seed=1).sketch(records), numbers).any()
