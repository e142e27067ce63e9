"""The command: folders that compressed-tensors and transformers read as exactly what was rounded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from schemas.errors import UserError
from support.amount import FULL
from support.folding_families import FAMILIES, random_model
from support.models import VOCAB_SIZE, tiny_config
from support.synthetic import random_shards, write_cache
from trainer.quantization import smoke
from trainer.quantization.dense_packing import pack
from trainer.quantization.prepass import PROMPT
from trainer.quantization.smoke import check_readers
from trainer.train_student_cli import main

FORMATS = ("--format", "dense", "--format", "container", "--format", "folded")


def reads_three_bits() -> bool:
    try:
        check_readers()
    except Exception:
        return False
    return True


needs_reader = pytest.mark.skipif(not reads_three_bits(), reason="compressed-tensors is older than 0.18")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("export") / "cache")
    write_cache(url, random_shards([[40, 30], [25]], VOCAB_SIZE, seed=0), VOCAB_SIZE)
    return url


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    random_model("Llama", torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def export(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@needs_reader
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [2, 3])
def test_a_third_party_reads_exactly_the_rounded_weights(family: str, bits: int, cache: str, tmp_path: Path) -> None:
    random_model(family, torch.bfloat16).save_pretrained(tmp_path / "model")
    options = ("--cache", cache, "--bits", bits, "--group-size", 32, "--no-check", "--json")
    done = export(tmp_path / "model", tmp_path / "out", *options, *FORMATS)
    assert done.exit_code == 0, done.output
    folded = AutoModelForCausalLM.from_pretrained(tmp_path / "out/folded").state_dict()
    for name in ("dense", "container"):
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name)
        ids = torch.arange(1, 20)[None]
        with torch.no_grad():
            logits = model(ids).logits  # decompresses
            wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "out/folded")(ids).logits
        assert torch.equal(logits, wanted)
        read = model.state_dict()
        assert all(torch.equal(read[key], folded[key]) for key in folded)
    for key, weight in folded.items():
        if key.endswith("_proj.weight"):
            levels = weight.view(len(weight), -1, 32).sort(dim=-1).values
            assert (levels.diff(dim=-1) != 0).sum(dim=-1).max() < 1 << bits, key


def test_a_dense_file_is_small_and_its_summary_says_how_small(model_folder: Path, cache: str, tmp_path: Path) -> None:
    options = ("--cache", cache, "--group-size", 32, "--no-check", "--json", "--samples", 2, "--max-tokens", 20)
    done = export(model_folder, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["calibration"] == {"samples": 2, "tokens": 40}
    assert summary["output_error"] < summary["output_error_without_scales"]
    stored = weights_of(tmp_path / "out")
    parts = ("weight_packed", "weight_scale", "weight_shape")
    size = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith(parts))
    assert summary["bits_per_weight"]["dense"] == 8 * size / summary["weights"]
    assert 3.5 <= summary["bits_per_weight"]["dense"] < 3.6  # 16 bits of scale for 32 weights, and the shapes
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] == 3
    card = (tmp_path / "out/README.md").read_text()
    assert "3-bit integers" in card
    assert "2 sequences, 40 tokens" in card
    assert not (tmp_path / "out.tmp").exists()


@needs_reader
@pytest.mark.skipif(not FULL, reason="starts vLLM three times; in make test-full")
def test_vllm_says_what_the_folded_copy_says(cache: str, tmp_path: Path) -> None:
    config = tiny_config()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    done = export(tmp_path / "model", tmp_path / "out", "--cache", cache, "--group-size", 32, "--json", *FORMATS)
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["largest_difference"]["vllm"]) == {"dense", "container"}


def test_other_kernels_are_held_to_the_mean_and_may_say_another_text() -> None:
    wanted = smoke.Said([1, 2], torch.zeros(PROMPT + 1))
    noisy = torch.zeros(PROMPT + 1)
    noisy[3], noisy[-1] = 0.3, 9.0
    assert smoke.compare(smoke.Said([1, 3], noisy), wanted, "dense", prompt=PROMPT) == pytest.approx(0.3)
    with pytest.raises(UserError, match=r"dense: .* by 0\.5, wanted at most 0\.3"):
        smoke.compare(smoke.Said([1, 2], noisy * 0 + 0.5), wanted, "dense", prompt=PROMPT)
    with pytest.raises(UserError, match="and the greedy texts are different; nothing was written"):
        smoke.compare(smoke.Said([1, 3], wanted.log_probabilities), wanted, "dense", prompt=None)


def test_experts_are_not_checked_in_vllm_on_cpus(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(smoke, "has_vllm", lambda: True)
    monkeypatch.setattr(smoke, "in_transformers", lambda *_: smoke.Said([1], torch.zeros(9)))
    ids = list(range(9))
    found = smoke.check_folders(tmp_path, {"dense": tmp_path}, ids, has_experts=True, trust_remote_code=False)
    assert found == {"transformers": {"dense": 0.0}}
    assert "on CPUs it runs no quantised experts; use --format folded" in caplog.text


def test_targets_choose_what_is_packed(model_folder: Path, cache: str, tmp_path: Path) -> None:
    options = ("--cache", cache, "--group-size", 32, "--no-check", "--target", "down_proj")
    assert export(model_folder, tmp_path / "out", *options).exit_code == 0
    packed = {name for name in weights_of(tmp_path / "out") if name.endswith("weight_packed")}
    assert packed == {f"model.layers.{i}.mlp.down_proj.weight_packed" for i in range(2)}
    ignored = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["ignore"]
    assert {"lm_head", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"} <= {*ignored}


@needs_reader
def test_the_check_compares_what_was_written_and_refuses_what_differs(
    model_folder: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "has_vllm", lambda: False)
    options = ("--cache", cache, "--group-size", 32, "--json")
    done = export(model_folder, tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["largest_difference"] == {"transformers": {"dense": 0.0}}
    monkeypatch.setattr("trainer.quantization.model_folders.pack", lambda integers, bits: -pack(integers, bits))
    refused = export(model_folder, tmp_path / "bad", *options)
    assert refused.exit_code == 2
    assert "dense in transformers: log-probabilities differ" in refused.output
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("bad")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-size", 128], "--group-size 128: does not divide the 64 inputs"),
        (["--group-size", 32, "--format", "gptq"], "--format gptq: vLLM reads GPTQ with 4 and 8 bits only; use dense"),
        (["--group-size", 32, "--format", "gguf"], "--format gguf: "),
        (["--group-size", 32, "--format", "zip"], "--format zip: no such format; use dense"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    options: list[object], message: str, model_folder: Path, cache: str, tmp_path: Path
) -> None:
    done = export(model_folder, tmp_path / "out", "--cache", cache, "--no-check", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused(model_folder: Path, cache: str, tmp_path: Path) -> None:
    done = export(model_folder, tmp_path, "--cache", cache, "--group-size", 32)
    assert done.exit_code == 2
    assert f"{tmp_path}: exists; remove it, or name another OUTPUT" in done.stderr


def test_an_older_reader_is_refused_before_the_calibration(
    model_folder: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.quantization.smoke.version", lambda name: "0.17.0")
    done = export(model_folder, tmp_path / "out", "--cache", cache, "--group-size", 32)
    assert done.exit_code == 2
    assert "compressed-tensors: 0.17.0 is installed, which does not read 3-bit files" in done.stderr
    monkeypatch.setattr("trainer.quantization.smoke.version", lambda name: "1.2.0")
    check_readers()
