"""Bits per byte: the same for any tokenizer where the model gives every byte the same probability."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.support.bits import bits_per_byte, pieces


def test_texts_are_cut_at_line_ends() -> None:
    text = "one\ntwo\n" + 20 * "x" + "\nend"
    assert pieces([text, "two"], 8) == ["one\ntwo\n", 20 * "x" + "\n", "end", "two"]


@torch.no_grad()
def test_bits_are_those_of_all_bytes_but_the_first_tokens() -> None:
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary | {"ab": 256}, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=257, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.get_output_embeddings().weight.zero_()  # every token has probability 1 / 257
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    found = bits_per_byte(model, tokenizer, ["abab", "é"])  # ab ab; two bytes
    assert found == pytest.approx(2 * math.log2(257) / (2 + 1), abs=1e-6)
