"""A tiny teacher, its cache in memory and a synthetic one on disk, and tiny students."""

import functools
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from schemas.cache_config import CaptureConfig, CodecConfig, CorpusConfig, LogitsCapture, Provenance, SourceConfig
from schemas.manifest import CorpusCounts, CorpusInfo, Manifest, ShardIndex, TeacherInfo, TokenizerInfo, Totals
from schemas.train_config import TrainConfig
from support.synthetic import random_shards, write_cache
from teacher_cache.records import RowBatch

torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another
VOCABULARY = 61
K = 8
TEMPERATURES = [1.0, 2.0]
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@pytest.fixture(autouse=True)
def own_random_numbers(request: pytest.FixtureRequest) -> None:
    """Whichever tests ran before in this process, a test draws the same numbers."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


def llama_config(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**{**SHAPE, **changes})


def qwen3_config(**changes: Any) -> Qwen3Config:
    return Qwen3Config(**{**SHAPE, "head_dim": 8, **changes})


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random model with peaked distributions and attention that matters."""
    torch.manual_seed(seed)
    model = (LlamaForCausalLM if config.model_type == "llama" else Qwen3ForCausalLM)(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return model.eval()


def make_manifest(samples: int, tokens: int, **tokenizer: Any) -> Manifest:
    digest = hashlib.sha256(b"tiny").hexdigest()
    return Manifest(
        teacher=TeacherInfo(
            name="tiny-teacher",
            revision=None,
            dtype="float32",
            architecture="LlamaForCausalLM",
            num_layers=4,
            hidden_size=32,
            vocab_size=VOCABULARY,
            fingerprint=digest,
        ),
        tokenizer=TokenizerInfo(**{"fingerprint": digest, "vocab_size": VOCABULARY, **tokenizer}),
        corpus=CorpusInfo(
            fingerprint=digest,
            settings=CorpusConfig(sources=[SourceConfig(path="tiny", format="text")]),
            counts=CorpusCounts(
                **dict.fromkeys(
                    ("documents", "empty", "duplicates", "too_short", "split", "truncated", "dropped_over_long"), 0
                ),
                samples=samples,
                tokens=tokens,
                loss_tokens=tokens - samples,
            ),
        ),
        capture=CaptureConfig(logits=LogitsCapture(k=K, temperatures=TEMPERATURES)),
        codec=CodecConfig(),
        provenance=Provenance(),
        tokens_per_shard=4096,
        units=[],
        complete=True,
        shards=[],
        tables={},
        totals=Totals(samples=samples, tokens=tokens, bytes={}, index_bytes=0),
    )


@functools.cache
def fake_samples(seed: int, lengths: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [fake_sample(length, rng) for length in lengths]


def fake_sample(length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    input_ids = rng.integers(3, VOCABULARY, length)
    with torch.no_grad():
        logits = teacher()(torch.from_numpy(input_ids)[None]).logits[0].double()
    log_p = logits.log_softmax(-1)
    logprobs, ids = log_p.topk(K)
    counts = torch.from_numpy(rng.integers(1, K + 1, length))
    padding = torch.arange(K)[None] >= counts[:, None]
    loss_mask = rng.random(length) < 0.8
    loss_mask[-1] = False
    loss_mask[0] = True
    following = torch.from_numpy(np.roll(input_ids, -1))
    next_logprob = log_p.gather(1, following[:, None])[:, 0].numpy()
    next_logprob[-1] = np.nan
    partition = torch.stack([torch.logsumexp(log_p / t, -1) for t in TEMPERATURES], -1)
    return {
        "input_ids": input_ids,
        "position_ids": np.arange(length),
        "attention_mask": np.ones(length, bool),
        "loss_mask": loss_mask,
        "ids": ids.masked_fill(padding, 0).numpy().astype(np.int32),
        "logprobs": logprobs.masked_fill(padding, -torch.inf).numpy().astype(np.float32),
        "next_logprob": next_logprob.astype(np.float32),
        "log_partition": partition.numpy().astype(np.float32),
    }


class FakeCache:
    """The reader's interface over samples in memory: a pure function of ``seed``."""

    def __init__(self, seed: int = 0, samples: int = 24, **tokenizer: Any) -> None:
        rng = np.random.default_rng(seed)
        self.num_tokens = rng.integers(3, 20, samples).astype(np.int32)
        self.keys = [hashlib.sha256(f"{seed}-{i}".encode()).hexdigest()[:32] for i in range(samples)]
        self.manifest = make_manifest(samples, int(self.num_tokens.sum()), **tokenizer)
        self.url = "fake"
        self.keeps_copies = False
        self.shard_sizes = np.array([samples // 2, samples - samples // 2])
        self.signals = ("tokens", "logits")
        self.reads: list[list[list[int]]] = []
        self.samples = fake_samples(seed, tuple(self.num_tokens.tolist()))

    def read_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> RowBatch:
        self.reads.append([list(row) for row in rows])
        fills = {"logprobs": -np.inf, "next_logprob": np.nan}
        length = length or max(int(self.num_tokens[list(row)].sum()) for row in rows)
        fields: dict[str, list[np.ndarray]] = {name: [] for name in self.samples[0]}
        for row in rows:
            for name in fields:
                value = np.concatenate([self.samples[i][name] for i in row])
                widths = [(0, length - len(value))] + [(0, 0)] * (value.ndim - 1)
                fields[name].append(np.pad(value, widths, constant_values=fills.get(name, 0)))
        return RowBatch(**{name: np.stack(values) for name, values in fields.items()})

    def __len__(self) -> int:
        return len(self.keys)

    def index(self, shard: int) -> ShardIndex:
        here = slice(0, self.shard_sizes[0]) if shard == 0 else slice(self.shard_sizes[0], None)
        return ShardIndex.model_construct(keys=self.keys[here], num_tokens=self.num_tokens[here].tolist(), layers=None)

    def load_indexes(self, shards: Iterable[int]) -> None:
        pass

    def fetch_ahead(self, positions: np.ndarray) -> None:
        pass

    def close(self) -> None:
        pass


@functools.cache
def teacher() -> PreTrainedModel:
    return tiny_model(llama_config(), seed=1)


@pytest.fixture
def cache() -> FakeCache:
    return FakeCache()


@pytest.fixture
def teacher_model() -> PreTrainedModel:
    return teacher()


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache on disk: 40 samples in four shards, top 8, temperatures 1 and 3."""
    return write_real_cache(tmp_path_factory.mktemp("cache") / "a", seed=0)


def write_real_cache(folder: Path, seed: int) -> Path:
    lengths = np.random.default_rng(seed).integers(3, 20, (4, 10)).tolist()
    write_cache(str(folder), random_shards(lengths, VOCABULARY, seed=seed), VOCABULARY)
    return folder


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama without a tokenizer."""
    folder = tmp_path_factory.mktemp("student")
    tiny_model(llama_config(num_hidden_layers=2), seed=2).save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(tmp_path: Path, student_folder: Path, real_cache: Path) -> Callable[..., TrainConfig]:
    """``make_config(data={...}, loop={...}, …)``: a short run, with changes by group."""

    def make(**changes: Any) -> TrainConfig:
        tree: dict[str, Any] = {
            "data": {"cache": str(real_cache)},
            "student": {"checkpoint": str(student_folder)},
            "optimizer": {"lr": 3e-3},
            "loop": {"max_steps": 6, "micro_batch_size": 2, "gradient_accumulation": 2, "save_every": 2},
            "output": str(tmp_path / "out"),
        }
        for group, values in changes.items():
            tree[group] = {**tree.get(group, {}), **values} if isinstance(values, dict) else values
        return TrainConfig.model_validate(tree)

    return make
