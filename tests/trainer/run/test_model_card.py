"""The model card names target and caches, with names from caches escaped."""

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from schemas.cache_config import CaptureConfig
from schemas.load import validate
from schemas.train_config import TrainConfig
from support.hostile import write_hostile_cache
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from trainer.losses.objective import Objective
from trainer.measured_pruning import PrunedFfns
from trainer.run.model_card import model_card

TREE = {
    "data": {"cache": "c"},
    "student": {"teacher": "t", "from_layers": [0]},
    "optimizer": {"lr": 1e-3},
    "loop": {"max_steps": 1},
    "output": "o",
}
SUMMARY = {
    "align": None,
    "steps": 1,
    "rows_per_step": 2,
    "tokens": 3,
    "final_step": 1,
    "validation": {"kl": 0.5, "perplexity": 3.0},
}


@pytest.mark.parametrize(
    ("divergence", "words"),
    [("forward", "KL(teacher ‖ student)"), ("reverse", "KL(student ‖ teacher)"), ("jsd", "Jensen-Shannon")],
)
def test_the_card_names_the_target_and_divergence_used(tmp_path: Path, divergence: str, words: str) -> None:
    write_cache(str(tmp_path), random_shards([[5]]))
    manifest = read_manifest(Storage(str(tmp_path)))
    config = validate(TrainConfig, {**TREE, "losses": {"tla": {"divergence": divergence}}}, "test")
    summary = {**SUMMARY, "validation_kl_is_exact": True}
    objective = Objective(config.losses, CaptureConfig.model_validate({"final": {}}))
    card = model_card(config, objective, [manifest], summary)
    (line,) = [line for line in card.splitlines() if line.startswith("- TLA")]
    assert words in line
    assert "from the cache's `final` target" in line
    assert "| kl | 0.5 |" in card
    assert "own tokens" not in card
    turned = model_card(config, objective, [manifest], {**summary, "align": "all"})
    assert "- rows turned into weights on this student's own tokens (align: all)" in turned
    bound = model_card(config, objective, [manifest], {**summary, "validation_kl_is_exact": False})
    assert "| kl (lower bound: tokens not stored count as one) | 0.5 |" in bound


def test_names_from_a_cache_are_escaped(tmp_path: Path) -> None:
    write_hostile_cache(tmp_path / "cache")
    manifest = read_manifest(Storage(str(tmp_path / "cache")))
    summary = {**SUMMARY, "validation": {}, "validation_kl_is_exact": None}
    config = validate(TrainConfig, TREE, "test")
    text = model_card(config, Objective(config.losses, manifest.capture), [manifest], summary).split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = {child.type for token in tokens for child in token.children or []}
    assert not {"html_inline", "link_open", "image"} & inline
    assert not {"html_block", "table_open", "fence"} & {token.type for token in tokens}
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2"]


def test_the_card_says_what_was_pruned(tmp_path: Path) -> None:
    write_cache(str(tmp_path), random_shards([[5]]))
    manifest = read_manifest(Storage(str(tmp_path)))
    config = validate(TrainConfig, {**TREE, "student": {"teacher": "t", "ffn": {"remove": 0.125}}}, "test")
    pruned = PrunedFfns(
        widths={"intermediate_size": (1536, 1344)},
        parameters=(134_515_008, 124_561_728),
        cache=manifest.digest(),
        samples=512,
        tokens=98765,
    )
    objective = Objective(config.losses, CaptureConfig.model_validate({"final": {}}))
    card = model_card(config, objective, [manifest], {**SUMMARY, "validation_kl_is_exact": True}, pruned)
    assert "started from the model `t`, without the least active channels of its FFNs." in card
    assert "removed before training: `intermediate_size` 1,536 → 1,344 (−12.5 %); those with the smallest sum" in card
    assert f"over 98765 tokens of 512 samples of the cache with manifest digest `{manifest.digest()}`" in card
    assert "- parameters of the model that was cut, all layers: 134,515,008 → 124,561,728 (−7.4 %)" in card
