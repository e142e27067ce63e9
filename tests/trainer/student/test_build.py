import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
)

from schemas.errors import UserError
from schemas.train_config import StudentConfig
from support.attention_models import CONFIGS as ATTENTION
from support.attention_models import special_model, write_special
from trainer.initial_weights import materialise_student
from trainer.student.build import load_model, load_student, pruned_config, pruned_state
from trainer.student.forward import masked_hidden, output_head


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    """Qwen3 with alternating attention types, a tied head, and tokenizer files."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    )
    folder = tmp_path / "teacher"
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text(f"content of {name}")
    return folder


def from_layers(make_config, folder: Path, layers: list[int], **changes):
    return make_config(student={"checkpoint": None, "teacher": str(folder), "from_layers": layers}, **changes)


def test_pruned_student_has_the_teachers_weights_and_tokenizer(make_config, teacher_folder: Path) -> None:
    config = from_layers(make_config, teacher_folder, [0, 3])
    folder = materialise_student(config)
    assert folder == Path(config.output) / "student-init"
    teacher, student = load_file(teacher_folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert torch.equal(student["model.embed_tokens.weight"], teacher["model.embed_tokens.weight"])
    assert torch.equal(student["model.norm.weight"], teacher["model.norm.weight"])
    for new, old in ((0, 0), (1, 3)):
        suffixes = [name.split(f"layers.{old}.")[1] for name in teacher if f"layers.{old}." in name]
        assert len(suffixes) == 11
        for suffix in suffixes:
            assert torch.equal(student[f"model.layers.{new}.{suffix}"], teacher[f"model.layers.{old}.{suffix}"])
    assert not any("layers.2." in name for name in student)
    assert (folder / "chat_template.jinja").read_text() == "content of chat_template.jinja"
    assert not list(folder.parent.glob("*.tmp"))

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    assert model.config.layer_types == ["full_attention", "sliding_attention"]


def test_pruned_to_all_layers_computes_what_the_teacher_computes(make_config, teacher_folder: Path) -> None:
    folder = materialise_student(from_layers(make_config, teacher_folder, [0, 1, 2, 3]))
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(teacher_folder)(ids).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)


@pytest.mark.parametrize(
    ("settings", "layers", "wanted"),
    [
        ({"mlp_only_layers": [1]}, [1, 3], {"mlp_only_layers": [0], "decoder_sparse_step": 1}),
        ({"mlp_only_layers": [0, 1, 2, 3]}, [1, 3], {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1}),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, [0, 3], {"mlp_only_layers": [0], "decoder_sparse_step": 1}),
        ({"first_k_dense_replace": 2}, [1, 3], {"first_k_dense_replace": 1}),
    ],
)
def test_layers_without_experts_stay_without(settings: dict, layers: list[int], wanted: dict) -> None:
    """By their new numbers; the weights fit the layers that the configuration makes."""
    family = DeepseekV3Config if "first_k_dense_replace" in settings else Qwen3MoeConfig
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    small = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    shape = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 4, "num_hidden_layers": 4, "num_experts_per_tok": 2}
    config = family(**shape, **heads, **experts, **small, **settings)
    teacher = AutoModelForCausalLM.from_config(config)
    pruned = pruned_config(config, layers)
    assert {name: getattr(pruned, name) for name in wanted} == wanted
    student = AutoModelForCausalLM.from_config(pruned)
    student.load_state_dict(pruned_state(teacher.state_dict(), layers), strict=True)
    kinds = [type(teacher.model.layers[layer].mlp) for layer in layers]
    assert [type(layer.mlp) for layer in student.model.layers] == kinds


def test_teacher_folder_is_not_needed_again(make_config, teacher_folder: Path) -> None:
    config = from_layers(make_config, teacher_folder, [1])
    folder = materialise_student(config)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(teacher_folder)
    assert materialise_student(config) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_layer_that_does_not_exist(make_config, teacher_folder: Path) -> None:
    config = from_layers(make_config, teacher_folder, [0, 4])
    with pytest.raises(UserError, match=r"student.from_layers: the teacher has 4 layers, numbered 0 to 3; got 4"):
        materialise_student(config)
    assert not Path(config.output).exists()


def test_changed_layers_are_noticed(make_config, teacher_folder: Path) -> None:
    materialise_student(from_layers(make_config, teacher_folder, [0, 3]))
    with pytest.raises(UserError, match=r"made with from_layers = \[0, 3\], but the configuration says \[0, 2\]"):
        materialise_student(from_layers(make_config, teacher_folder, [0, 2]))


def test_missing_teacher(make_config, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^student.teacher: .*/nowhere \(no such folder\): cannot read a model configuration"
    ):
        materialise_student(from_layers(make_config, tmp_path / "nowhere", [0]))


def test_half_written_folder_is_not_taken_for_a_student(make_config, teacher_folder: Path, monkeypatch) -> None:
    config = from_layers(make_config, teacher_folder, [0])
    monkeypatch.setattr("trainer.initial_weights.copy_tokenizer", lambda *folders: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        materialise_student(config)
    monkeypatch.undo()
    assert not (Path(config.output) / "student-init").exists()
    assert (materialise_student(config) / "config.json").is_file()


def test_random_weights_depend_on_the_seed(make_config, teacher_folder: Path, tmp_path: Path) -> None:
    weights = []
    for i, seed in enumerate((0, 0, 1)):
        config = make_config(
            student={"checkpoint": None, "config": str(teacher_folder / "config.json")},
            loop={"seed": seed},
            output=str(tmp_path / f"out{i}"),
        )
        folder = materialise_student(config)
        assert (folder / "tokenizer.json").is_file()
        weights.append(load_file(folder / "model.safetensors")["model.embed_tokens.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_checkpoint_is_used_where_it_is(make_config, student_folder: Path) -> None:
    config = make_config()
    assert materialise_student(config) == student_folder
    assert load_student(student_folder, config.student).config.num_hidden_layers == 2


def test_dtype(make_config, teacher_folder: Path) -> None:
    config = from_layers(make_config, teacher_folder, [0])
    config = config.model_copy(update={"student": config.student.model_copy(update={"dtype": "bfloat16"})})
    folder = materialise_student(config)
    assert load_file(folder / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert load_student(folder, config.student).dtype == torch.float32, "as it is trained"


def test_missing_weights_are_refused(make_config, student_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model = LlamaForCausalLM.from_pretrained(student_folder)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(broken, state_dict=state)
    with pytest.raises(UserError, match=r"broken: 3 weights are missing, the first is model.layers.1.mlp.down_proj"):
        load_student(broken, make_config().student)


def test_a_truncated_weights_file_is_refused(make_config, student_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(student_folder, tmp_path / "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"^student: .*broken: cannot load the model: "):
        load_student(broken, make_config().student)


def test_pruned_state_needs_layers() -> None:
    with pytest.raises(UserError, match="no weights are named"):
        pruned_state({"transformer.h.0.weight": torch.zeros(1)}, [0])


def test_pruned_config_cuts_only_per_layer_lists() -> None:
    config = Qwen3Config(num_hidden_layers=2, layer_types=["full_attention"] * 2, eos_token_id=[7, 8])
    pruned = pruned_config(config, [1])
    assert (pruned.num_hidden_layers, pruned.layer_types, pruned.eos_token_id) == (1, ["full_attention"], [7, 8])


@pytest.mark.parametrize("kind", ATTENTION)
def test_students_with_features_that_sdpa_drops_use_eager_attention(tmp_path: Path, kind: str) -> None:
    folder = write_special(tmp_path / "student", kind)
    ids = torch.randint(3, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "loss_mask": torch.ones_like(ids, dtype=torch.bool)}

    def loss_and_gradient(student: Any) -> tuple[torch.Tensor, torch.Tensor]:
        student.zero_grad()
        logits = output_head(student).logits(masked_hidden(student, batch))
        loss = torch.nn.functional.cross_entropy(logits, ids.flatten())
        loss.backward()
        return loss.detach(), student.model.layers[0].self_attn.q_proj.weight.grad.clone()

    student = load_student(folder, StudentConfig(checkpoint=str(folder)))
    as_evaluated = load_model(folder, "MODEL", torch.float32)
    assert student.config._attn_implementation == as_evaluated.config._attn_implementation == "eager"
    found, wanted = loss_and_gradient(student), loss_and_gradient(special_model(kind))
    torch.testing.assert_close(found, wanted)
    student.config._attn_implementation = "sdpa"
    for one, other in zip(loss_and_gradient(student), wanted, strict=True):
        assert (one - other).abs().max() > 2e-3 * other.abs().max(), "the feature does not show"


@pytest.mark.parametrize("kind", ATTENTION)
def test_an_attention_kernel_that_drops_a_feature_is_refused(make_config, tmp_path: Path, kind: str) -> None:
    folder = write_special(tmp_path / "student", kind)
    with pytest.raises(UserError, match=r"^student\.attention: sdpa drops .*; set it to eager"):
        load_student(folder, StudentConfig(checkpoint=str(folder), attention="sdpa"))
    for start in ({"config": str(folder)}, {"teacher": str(folder), "from_layers": [0]}):
        config = make_config(student={"checkpoint": None, "attention": "sdpa", **start})
        with pytest.raises(UserError, match=r"^student\.attention: sdpa drops"):
            materialise_student(config)
        assert not (Path(config.output) / "student-init").exists()


def test_other_students_keep_sdpa(teacher_folder: Path) -> None:
    student = load_student(teacher_folder, StudentConfig(checkpoint=str(teacher_folder)))
    assert student.config._attn_implementation == "sdpa"


def test_varlen_is_the_default_for_packed_rows_in_bf16_on_gpus(teacher_folder: Path, monkeypatch) -> None:
    chosen = StudentConfig(checkpoint=str(teacher_folder))
    monkeypatch.setattr("trainer.student.build._has_varlen_kernel", lambda: True)
    for packing, bf16, attention in ((True, True, "varlen"), (False, True, "sdpa"), (True, False, "sdpa")):
        student = load_student(teacher_folder, chosen, packing, bf16)
        assert student.config._attn_implementation == attention
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match=r"^student\.attention: varlen takes 16-bit inputs.*loop\.bf16: true"):
        load_student(teacher_folder, chosen.model_copy(update={"attention": "varlen"}), packing=True, bf16=False)


@pytest.mark.parametrize("kind", ATTENTION)
def test_varlen_is_not_chosen_where_it_would_drop_a_feature(tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.setattr("trainer.student.build._has_varlen_kernel", lambda: True)
    folder = write_special(tmp_path / "student", kind)
    student = load_student(folder, StudentConfig(checkpoint=str(folder)), packing=True, bf16=True)
    assert student.config._attn_implementation == "eager"
