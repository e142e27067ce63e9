"""A model card names the caches that were trained on, whatever these call themselves."""

from pathlib import Path

from markdown_it import MarkdownIt

from schemas.load import validate
from schemas.train_config import TrainConfig
from support.hostile import write_hostile_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from trainer.model_card import model_card


def test_names_from_a_cache_stay_text(tmp_path: Path) -> None:
    write_hostile_cache(tmp_path / "cache")
    manifest = read_manifest(Storage(str(tmp_path / "cache")))
    tree = {
        "data": {"cache": "c"},
        "student": {"teacher": "t", "from_layers": [0]},
        "optimizer": {"lr": 1e-3},
        "loop": {"max_steps": 1},
        "output": "o",
    }
    summary = {"steps": 1, "rows_per_step": 2, "tokens": 3, "final_step": 1, "validation": {}}
    text = model_card(validate(TrainConfig, tree, "test"), [manifest], summary).split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = {child.type for token in tokens for child in token.children or []}
    assert not {"html_inline", "link_open", "image"} & inline
    assert not {"html_block", "table_open", "fence"} & {token.type for token in tokens}
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2"]
