"""Students without the least active FFN channels, from a teacher or a checkpoint."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

from schemas.errors import UserError
from support.ffn_models import tiny_ffn_model
from support.models import tiny_tokenizer
from support.synthetic import random_shards, write_cache
from trainer.data.calibration import calibration_batches, calibration_rows
from trainer.data.open_caches import open_cache
from trainer.data.selection import Selection
from trainer.distiller import distill
from trainer.initial_weights import materialise_student, read_recipe
from trainer.student.build import load_student
from trainer.student.ffn_channels import most_active
from trainer.student.ffn_importance import channel_sums
from trainer.student.ffns import find_ffns


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    tiny_ffn_model("llama", num_hidden_layers=3).float().save_pretrained(folder)
    return folder


def without_channels(make_config, folder: Path, tmp_path: Path, name: str = "out", data=None, **student):
    student = {"teacher": str(folder), "ffn": {"remove": 0.5}} | student
    return make_config(student={"checkpoint": None, **student}, output=str(tmp_path / name), data=data or {})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_has_the_channels_that_are_most_active_on_the_caches_tokens(
    make_config, teacher_folder: Path, real_cache: Path, tmp_path: Path
) -> None:
    folder = materialise_student(without_channels(make_config, teacher_folder, tmp_path))
    assert folder == tmp_path / "out/student-init"
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder)
    cache = open_cache(str(real_cache), ("tokens",))
    rows = calibration_rows(cache, Selection(), 512)
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.config.intermediate_size == 64
    assert student.config.num_hidden_layers == 3
    for one, layer in zip(
        channel_sums(teacher, find_ffns(teacher), calibration_batches(cache, rows)), student.model.layers, strict=True
    ):
        (kept,) = most_active(one.abs_EF, 64)
        assert kept.tolist() != list(range(64))
        for name in ("gate_proj", "up_proj"):
            assert torch.equal(getattr(layer.mlp, name).weight, getattr(one.ffn.module, name).weight[kept])
            assert torch.equal(getattr(layer.mlp, name).bias, getattr(one.ffn.module, name).bias[kept])
        assert torch.equal(layer.mlp.down_proj.weight, one.ffn.module.down_proj.weight[:, kept])
        assert torch.equal(layer.mlp.down_proj.bias, one.ffn.module.down_proj.bias)
    recipe = read_recipe(folder)
    assert recipe is not None
    assert recipe.pruned is not None
    assert recipe.ffn is not None
    assert recipe.ffn.cache == str(real_cache)
    assert recipe.pruned.widths == {"intermediate_size": (160, 64)}
    assert recipe.pruned.parameters == (teacher.num_parameters(), student.num_parameters())
    assert (recipe.pruned.samples, recipe.pruned.tokens) == (40, cache.manifest.totals.tokens)
    assert recipe.pruned.cache == cache.manifest.digest()


def test_the_same_input_gives_the_same_bytes(make_config, teacher_folder: Path, tmp_path: Path) -> None:
    one, other = (
        materialise_student(without_channels(make_config, teacher_folder, tmp_path, name)) for name in ("a", "b")
    )
    assert files_of(one) == files_of(other)


def test_layers_and_channels_are_cut_together(make_config, teacher_folder: Path, tmp_path: Path) -> None:
    """Channels are chosen in the whole teacher."""
    whole = load_file(
        materialise_student(without_channels(make_config, teacher_folder, tmp_path, "a")) / "model.safetensors"
    )
    config = without_channels(make_config, teacher_folder, tmp_path, "b", from_layers=[0, 2], dtype="bfloat16")
    folder = materialise_student(config)
    both = load_file(folder / "model.safetensors")
    for new, old in ((0, 0), (1, 2)):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(both[name.format(new)], whole[name.format(old)].bfloat16())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 64)


def test_a_checkpoint_can_be_cut(make_config, teacher_folder: Path, tmp_path: Path) -> None:
    from_teacher = materialise_student(without_channels(make_config, teacher_folder, tmp_path, "a"))
    config = without_channels(make_config, teacher_folder, tmp_path, "b", teacher=None, checkpoint=str(teacher_folder))
    from_checkpoint = materialise_student(config)
    assert files_of(from_teacher)["model.safetensors"] == files_of(from_checkpoint)["model.safetensors"]
    shutil.rmtree(teacher_folder)
    assert materialise_student(config) == from_checkpoint


def test_another_cache_may_be_measured_on(make_config, teacher_folder: Path, real_cache: Path, tmp_path: Path) -> None:
    settings = {"remove": 0.5, "cache": str(real_cache), "samples": 3}
    config = without_channels(
        make_config, teacher_folder, tmp_path, ffn=settings, data={"cache": str(tmp_path / "not-read")}
    )
    recipe = read_recipe(materialise_student(config))
    assert recipe is not None
    assert recipe.pruned is not None
    assert recipe.pruned.samples == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ffn": {"width": 64}}, r"made with ffn = .*'remove': 0\.5.*, but the configuration says .*'width': 64"),
        ({"ffn": {"remove": 0.5, "samples": 20}}, r"made with ffn = .*'samples': 512.* says .*'samples': 20"),
        ({"ffn": None, "from_layers": [0]}, r"made with from_layers = None"),
    ],
)
def test_changed_settings_are_noticed(make_config, teacher_folder: Path, tmp_path: Path, changed, message: str) -> None:
    materialise_student(without_channels(make_config, teacher_folder, tmp_path))
    with pytest.raises(UserError, match=message):
        materialise_student(without_channels(make_config, teacher_folder, tmp_path, **changed))


def test_the_cache_may_move_but_not_change(make_config, teacher_folder: Path, real_cache: Path, tmp_path: Path) -> None:
    folder = materialise_student(without_channels(make_config, teacher_folder, tmp_path))
    moved = shutil.copytree(real_cache, tmp_path / "moved")
    elsewhere = without_channels(make_config, teacher_folder, tmp_path, data={"cache": str(moved)})
    assert materialise_student(elsewhere) == folder
    write_cache(str(tmp_path / "other"), random_shards([[5, 6]], 61, seed=1), 61)
    for url in (tmp_path / "other", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"made with ffn = .*but the configuration says .*{url}"):
            materialise_student(without_channels(make_config, teacher_folder, tmp_path, data={"cache": str(url)}))


def test_a_cache_of_another_tokenizer_is_refused(make_config, teacher_folder: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(teacher_folder)
    with pytest.raises(UserError, match=r"is not the one the cache .*; set student\.ffn\.cache to a cache of this tok"):
        materialise_student(without_channels(make_config, teacher_folder, tmp_path))
    assert not (tmp_path / "out/student-init").exists()


def test_an_impossible_width_leaves_nothing(make_config, teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"student\.ffn\.width: 192"):
        materialise_student(without_channels(make_config, teacher_folder, tmp_path, ffn={"width": 192}))
    assert not list((tmp_path / "out").glob("*"))


def test_a_run_trains_what_is_left_and_says_so(make_config, teacher_folder: Path, tmp_path: Path) -> None:
    config = without_channels(make_config, teacher_folder, tmp_path, from_layers=[0, 2])
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"max_steps": 2})})
    assert distill(config)["steps"] == 2
    shutil.rmtree(teacher_folder)
    longer = config.model_copy(update={"loop": config.loop.model_copy(update={"max_steps": 3})})
    assert distill(longer)["steps"] == 3
    final = tmp_path / "out/final"
    assert AutoModelForCausalLM.from_pretrained(final).config.intermediate_size == 64
    assert "`intermediate_size` 160 → 64 (−60.0 %)" in (final / "README.md").read_text()


def test_a_multimodal_mixture_is_cut(make_config, tmp_path: Path) -> None:
    text = tiny_ffn_model("qwen3_5_moe_text").config.to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 1, "out_hidden_size": 32}
    torch.manual_seed(0)
    model = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config=vision))
    model.save_pretrained(tmp_path / "teacher")
    config = without_channels(make_config, tmp_path / "teacher", tmp_path, ffn={"remove": 0.3}, from_layers=[1])
    folder = materialise_student(config)
    recipe = read_recipe(folder)
    assert recipe is not None
    assert recipe.pruned is not None
    assert recipe.pruned.widths == {"moe_intermediate_size": (160, 128), "shared_expert_intermediate_size": (96, 64)}
    student = load_student(folder, config.student)
    assert student.model.layers[0].mlp.experts.down_proj.shape == (4, 32, 128)
    assert "experts_implementation" not in (folder / "config.json").read_text()
