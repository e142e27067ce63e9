"""A tiny generator whose every reply is a walk over bytes that is known by hand, and places with its replies."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import LlamaForCausalLM

from schemas.generate_config import GenerateConfig
from schemas.load import validate
from support.models import VOCAB_SIZE, tiny_config, tiny_tokenizer

END = "<|im_end|>"
AFTER_WORD = ["a", "b", " ", "\xf0", "\xc3", END]
WALK = {  # a byte, and those that may follow it with equal probability; the first reply token follows a newline
    "\n": ["a", "b", "\xf0", "\xc3", "w", "z", "\x80", " ", END],
    "a": AFTER_WORD,
    "b": [*AFTER_WORD, "\x01"],
    " ": ["a", "x", "\xf0", END],
    "x": AFTER_WORD,  # the tokenizer itself has one token for a space and an x
    "\xf0": ["\x9f"],  # 🦜, a token for each of its four bytes
    "\x9f": ["\xa6"],
    "\xa6": ["\x9c"],
    "\x9c": AFTER_WORD,
    "\xc3": ["\xa9"],  # é
    "\xa9": AFTER_WORD,
    "w": ["a", "b"],  # the beginning of a refusal, if the configuration says so
    "z": ["z"],  # for ever
    "\x80": ["a"],  # no character begins with this byte
    "\x01": ["\x02"],  # for ever, but not in short circles
    **{chr(n): [chr(n + 1), chr(n + 2)] for n in range(2, 6)},
    "\x06": ["\x02"],
    "\x07": ["\x02", "\x03"],
}


def write_talking_generator(folder: Path, **changes: Any) -> Path:
    """A model whose next token depends on the last one only, as WALK says."""
    tokenizer = tiny_tokenizer()

    def id_of(name: str) -> int:
        if name == END:
            return tokenizer.convert_tokens_to_ids(END)
        return next(token for token in range(VOCAB_SIZE) if spelled(tokenizer, token) == name.encode("latin-1"))

    shape: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 12, "num_hidden_layers": 1}
    model = LlamaForCausalLM(tiny_config(hidden_size=VOCAB_SIZE, **{**shape, **changes}))
    head_VV = -torch.ones(VOCAB_SIZE, VOCAB_SIZE)
    for before, after in WALK.items():
        head_VV[[id_of(name) for name in after], id_of(before)] = 1
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(VOCAB_SIZE))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.lm_head.weight.copy_(head_VV)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spelled(tokenizer: Any, token: int) -> bytes:
    """The bytes of a token of the tiny tokenizer; 0xFF stands for all that are not in UTF-8."""
    text = tokenizer.convert_ids_to_tokens(token)
    return text.encode() if text.startswith("<|") else bytes(BYTE_OF.get(character, 0xFF) for character in text)


def _byte_of() -> dict[str, int]:
    """By character that stands for it in a byte-level vocabulary, as the pre-tokenizer writes them."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 0x40), *range(0x10000, 0x110000, 0x1000)]))
    ((written, _),) = splitter.pre_tokenize_str(text)
    return dict(zip(written, text.encode(), strict=True))


BYTE_OF = _byte_of()


def write_prompts(path: Path, count: int = 24) -> Path:
    """Chats and plain prompts, some with a system message."""
    records: list[dict[str, Any]] = []
    for i in range(count):
        said = f"{i} + {i}? 🦜 naïve"
        system = [{"role": "system", "content": "Be brief."}] * (i % 2)
        records.append({"messages": [*system, {"role": "user", "content": said}]} if i % 3 else {"prompt": said})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def generate_tree(model: Path, asked: Path, place: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration for the reference engine with all reject reasons; ``changes`` to single keys of its parts."""
    tree: dict[str, Any] = {
        "generator": {"path": str(model), "dtype": "float32"},
        "engine": {"kind": "transformers", "device": "cpu"},
        "prompts": {"sources": [{"path": str(asked), "layer": "base"}], "max_tokens": 64},
        "sampling": {"samples": 3, "max_new_tokens": 40},
        "reject": {"repeated_tokens": 20, "refusals": ["W"]},
        "output": {"path": str(place), "replies_per_shard": 10},
    }
    return {**tree, **{key: {**tree.get(key, {}), **part} for key, part in changes.items()}}


def generate_config(model: Path, asked: Path, place: Path, seed: int = 0, **changes: dict[str, Any]) -> GenerateConfig:
    """The same as a model."""
    tree = generate_tree(model, asked, place, **changes)
    return validate(GenerateConfig, tree | {"seed": seed}, "test")
