"""Students with another tokenizer than the tiny teachers', and caches that can teach them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from schemas.cache_config import CacheConfig
from schemas.load import validate
from support.models import tiny_config, write_random_teacher
from teacher_cache import job

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<end>{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
MERGES = ("d e", "de f", "Ġ x", "+ Ġ", "r e", "t u", "re tu")


def other_tokenizer(merges: tuple[str, ...] = MERGES, template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE of single bytes and these merges, with a template of its own."""
    pairs = [(left, right) for left, right in (merge.split() for merge in merges)]
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in pairs)]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=template)


def write_student(folder: Path, tokenizer: Any, seed: int = 2, **changes: Any) -> Path:
    """A random Llama of two layers with this tokenizer."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 16, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(tiny_config(**{**shape, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_cache_of_texts(place: Path, output: Path, seed: int = 0, tokenizer: Any = None, **capture: Any) -> Path:
    """A cache of a random teacher: 40 short texts and 8 chats, in several shards."""
    place.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = [
        {"text": f"def f{i}(x): return x + {i * seed}{'  # été' * (i % 3)}"} for i in range(40)
    ]
    for i in range(8):
        roles = [("system", "Be brief.")] * (i % 2) + [("user", f"{i} + {i}?"), ("assistant", f"{2 * i}, x + {i}.")]
        records.append({"messages": [{"role": role, "content": said} for role, said in roles]})
    (place / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    teacher = write_random_teacher(place / "teacher", seed=seed, hidden_size=16, head_dim=8)
    if tokenizer is not None:
        tokenizer.save_pretrained(teacher)
    tree = {
        "teacher": {"path": str(teacher), "dtype": "float32"},
        "engine": {"kind": "transformers", "device": "cpu"},
        "corpus": {"sources": [{"path": str(place / "records.jsonl"), "format": "jsonl"}], "max_tokens": 96},
        "capture": {"logits": {"k": 12}, **capture},
        "output": {"path": str(output), "tokens_per_shard": 300},
    }
    job.run(validate(CacheConfig, tree, "test"))
    return output
