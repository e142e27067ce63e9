"""Tiny teachers, written as ordinary Hugging Face folders: random ones, and one whose every logit is known by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 384
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with ``VOCAB_SIZE`` tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [f"def f{i}(x): return x + {i}  # user assistant system" for i in range(400)], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def tiny_config(**changes: Any) -> LlamaConfig:
    """A two-layer Llama that both engines run."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    return LlamaConfig(**{**settings, **changes})


def write_random_teacher(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random teacher with a tokenizer; its logits are spread enough for top-k sets to be stable."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(**changes))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_successor_teacher(folder: Path) -> tuple[Path, np.ndarray]:
    """A teacher whose row depends on the token just read only, and the log-probabilities [V, V] of its rows.

    Attention and MLP contribute nothing, embeddings are one-hot, so after token a the normalised hidden state is
    √d at place a, and the logit of token b is √d · head[b, a]. The head favours b = a + 1 (mod V).
    """
    size = VOCAB_SIZE
    config = tiny_config(hidden_size=size, num_hidden_layers=1, num_attention_heads=12, num_key_value_heads=12)
    model = LlamaForCausalLM(config)
    rng = np.random.default_rng(0)
    head = rng.normal(0, 0.02, (size, size)).astype(np.float32)
    head[(np.arange(size) + 1) % size, np.arange(size)] = 0.5
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.lm_head.weight.copy_(torch.from_numpy(head))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    logits = np.sqrt(1 / (1 / size + config.rms_norm_eps)) * head.T.astype(np.float64)
    return folder, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def write_text_corpus(folder: Path, documents: int = 12, words: int = 60, seed: int = 0) -> Path:
    """Small text files of words the tiny tokenizer knows."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(documents):
        text = " ".join(f"def f{n}(x): return x + {n}" for n in rng.integers(0, 1000, words // 6))
        (folder / f"doc-{i:03d}.txt").write_text(text)
    return folder


def write_random_reward_model(folder: Path, num_labels: int = 1, **changes: Any) -> Path:
    """A random sequence-classification model with a tokenizer; its outputs differ by about one."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny_config(num_labels=num_labels, **changes))
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape) / 8)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
