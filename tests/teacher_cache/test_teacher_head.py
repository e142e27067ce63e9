"""The output head, from ordinary model folders of several architectures into a cache and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
)

from schemas.cache_config import CacheConfig, CaptureConfig, FinalCapture, LogitsCapture, TeacherConfig
from schemas.errors import CorruptCacheError, UserError
from schemas.load import validate
from support.models import tiny_tokenizer, write_random_teacher, write_text_corpus
from support.synthetic import logits_sample, random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.output_head import OutputHead
from teacher_cache.shards.head_file import read_head
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage, file_entry
from teacher_cache.signals.final.rebuilding import check_rebuilt
from teacher_cache.signals.hidden.capture import quantise, to_floats, to_hidden_sample
from teacher_cache.teacher_head import read_teacher_head
from tools.checking.verify import verify

SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 0,
}
ARCHITECTURES = {
    "tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "soft cap": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=5.0),
    "divided": GraniteConfig(**SHAPE, logits_scaling=4.0),
    "multiplied": CohereConfig(**SHAPE, logit_scale=0.25),
    "with a bias": PhiConfig(**SHAPE),
}


def write_model(folder: Path, config: PreTrainedConfig) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def cache(tmp_path: Path, teacher: Path, **final: Any) -> str:
    corpus = write_text_corpus(tmp_path / "corpus", documents=3)
    tree = cache_tree(teacher, corpus, tmp_path / "cache", capture={"final": final, "logits": {"k": 4}})
    job.run(validate(CacheConfig, tree, "test"))
    return str(tmp_path / "cache")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_every_logit_can_be_rebuilt(tmp_path: Path, name: str, dtype: str) -> None:
    folder = write_model(tmp_path / "teacher", ARCHITECTURES[name])
    reader = CacheReader(cache(tmp_path, folder, dtype=dtype), ("tokens", "final"))
    capture = reader.manifest.capture.final
    assert capture is not None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for position in range(len(reader)):
        tokens, sample = reader.read_tokens(position), reader.read_final(position)
        assert np.array_equal(sample.positions, np.flatnonzero(tokens.loss_mask))
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens.input_ids.astype(np.int64))[None]).logits[0]
        rebuilt = reader.read_head().logits(to_floats(sample, capture)[:, 0])
        wanted = logits[torch.from_numpy(sample.positions).long()]
        assert (rebuilt - wanted).norm() / wanted.norm() < 0.02
    assert verify(str(tmp_path / "cache")).problems == []


def test_weights_in_several_files_and_below_a_prefix(tmp_path: Path) -> None:
    folder = write_random_teacher(tmp_path / "teacher")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    head = {"language_model.lm_head.weight": tensors.pop("lm_head.weight").bfloat16()}
    save_file(head, folder / "model-1.safetensors")
    save_file(tensors, folder / "model-2.safetensors")
    weight_map = dict.fromkeys(head, "model-1.safetensors") | dict.fromkeys(tensors, "model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = read_teacher_head(TeacherConfig(path=str(folder), dtype="float32"))
    assert torch.equal(found.weight_VD, head["language_model.lm_head.weight"]), "not wider than in the file"


def test_the_head_is_not_wider_than_the_teachers_dtype(tmp_path: Path) -> None:
    folder = write_random_teacher(tmp_path / "teacher")
    assert read_teacher_head(TeacherConfig(path=str(folder), dtype="bfloat16")).weight_VD.dtype == torch.bfloat16


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    folder = write_random_teacher(tmp_path / "teacher")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"capture\.final: no output head among the weights of"):
        read_teacher_head(TeacherConfig(path=str(folder)))
    tensors["lm_head.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head\.weight of .* is torch\.float32 \(3, 3\), wanted .* 384 × 64"):
        read_teacher_head(TeacherConfig(path=str(folder)))


def test_a_head_that_does_not_give_the_captured_logits_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Like an architecture with an unknown transform of the logits."""
    folder = write_model(tmp_path / "teacher", ARCHITECTURES["divided"])
    monkeypatch.setattr("teacher_cache.teacher_head.logit_transform", lambda config: (1.0, None))
    with pytest.raises(UserError, match=r"capture\.final: the logits of a GraniteForCausalLM cannot be rebuilt"):
        cache(tmp_path, folder)


def test_the_check_compares_positions_common_to_both_signals(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(8, 16), OutputHead(torch.randn(50, 16))
    final = FinalCapture(dtype="float16")
    capture = CaptureConfig(final=final)
    manifest = write_cache(str(tmp_path), random_shards([[3]])).model_copy(update={"capture": capture})

    def check(logits_rows: list[int], final_rows: list[int], states: torch.Tensor) -> None:
        mask = np.isin(np.arange(8), logits_rows)
        logits = logits_sample(head.logits(hidden).numpy(), np.zeros(8, np.uint32), LogitsCapture(k=4), mask)
        stored = to_hidden_sample(np.array(final_rows, np.int32), [quantise(states[final_rows], final)])
        check_rebuilt(stored, logits, final, manifest, head)

    for logits_rows, final_rows in (([3, 5, 6], [3, 5, 6]), ([1, 3, 5, 6], [0, 2, 3, 6, 7]), ([2], list(range(8)))):
        check(logits_rows, final_rows, hidden)
        with pytest.raises(UserError, match="cannot be rebuilt from its final hidden state"):
            check(logits_rows, final_rows, hidden.roll(1, dims=0))
    check([1, 3], [0, 2], hidden.roll(1, dims=0))  # nothing to compare


def spoil(url: str, change: Any) -> None:
    """Change the head's tensors, and the manifest to match."""
    storage = Storage(url)
    tensors = load_file(Path(url) / "head.safetensors")
    save_file(change(tensors), Path(url) / "head.safetensors")
    manifest = read_manifest(storage)
    assert manifest.head is not None
    entry = file_entry((Path(url) / "head.safetensors").read_bytes())
    manifest = manifest.model_copy(update={"head": manifest.head.model_copy(update={"file": entry})})
    (Path(url) / "manifest.json").write_text(manifest.to_json())


WRONG = {
    "another shape": (lambda t: {"weight": t["weight"][:-1].contiguous()}, r"weight \(383, 64\), bias None"),
    "a bias of another shape": (lambda t: t | {"bias": torch.zeros(3)}, r"bias \(3,\)"),
    "something else": (lambda t: t | {"more": torch.zeros(3)}, r"\['more'\]"),
    "no weight": (lambda t: {"bias": torch.zeros(384)}, r"weight None"),
    "integers": (
        lambda t: {"weight": t["weight"].to(torch.int32)},
        r"must be float16, bfloat16 or float32, and finite",
    ),
    "not finite": (lambda t: {"weight": t["weight"] / 0}, r"must be float16, bfloat16 or float32, and finite"),
    "far too large": (lambda t: t | {"more": torch.zeros(10**6)}, r"expected at most"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_invalid_head_is_refused(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    url = cache(tmp_path, write_random_teacher(tmp_path / "teacher"))
    spoil(url, change)
    with pytest.raises(CorruptCacheError, match=message):
        CacheReader(url, ("tokens",)).read_head()
    (problem,) = verify(url).problems
    assert problem.startswith("head.safetensors: ")


def test_a_changed_or_missing_head_is_found(tmp_path: Path) -> None:
    url = cache(tmp_path, write_random_teacher(tmp_path / "teacher"))
    path = Path(url) / "head.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptCacheError, match="the manifest says"):
        read_head(Storage(url), read_manifest(Storage(url)))
    path.unlink()
    assert "head.safetensors: the file is missing" in verify(url).problems
    manifest = read_manifest(Storage(url))
    with pytest.raises(CorruptCacheError, match="not listed in the manifest"):
        read_head(Storage(url), manifest.model_copy(update={"head": None}))
