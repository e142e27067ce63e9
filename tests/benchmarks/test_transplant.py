"""Transplanting a model to another tokenizer: the cut tokenizer, and the first rows."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.support.transplant import cut_tokenizer, transplant
from teacher_cache.corpus.token_spans import ByteTokenizer, vocabulary_table

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = ["abc abcd ab", "déjà vu 🙂 abab", "\n\tx = bcd", "ab!!<end>ab"]


def byte_level(*joined: str, whole_first: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, and tokens in rising rank, each joined from every pair of known tokens that spells it."""
    vocabulary = {token: i for i, token in enumerate([*ALPHABET, *joined])}
    merges = [
        (token[:at], token[at:])
        for token in joined
        for at in range(1, len(token))
        if token[:at] in vocabulary and token[at:] in vocabulary
    ]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_first))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.mark.parametrize("whole_first", [False, True])
def test_a_cut_tokenizer_reads_the_texts_alike(whole_first: bool) -> None:
    whole = byte_level("ab", "bc", "Ġab", "cd", "Ġabc", "abc", "Ã©", "!<", "!!", "zz", "zzz", whole_first=whole_first)
    cut = cut_tokenizer(whole, TEXTS)
    for text in TEXTS:
        assert cut.tokenize(text) == whole.tokenize(text)
    assert "zz" not in cut.get_vocab()
    assert "zzz" not in cut.get_vocab()
    assert set(ALPHABET) <= cut.get_vocab().keys()
    assert sorted(cut.get_vocab().values()) == list(range(len(cut)))
    assert cut.eos_token_id == len(cut) - 1
    (spans,) = ByteTokenizer(cut).encode(["zzz 🙂"])  # a text that it was not cut for
    assert vocabulary_table(cut).token(int(spans.ids[0])) == b"z"
    assert spans.end[-1] == len("zzz 🙂".encode())


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_means_of_the_rows_of_the_same_bytes(tied: bool) -> None:
    own, other = byte_level("ab", "abc"), byte_level("bc", "abcd", "Ã©", "\xc3x"[:1] + "x")
    config = LlamaConfig(
        vocab_size=len(own), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    before = [model.get_input_embeddings().weight.double(), model.get_output_embeddings().weight.double()]
    transplant(model, own, other)
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    ids, parts = own.get_vocab(), {"abcd": ["abc", "d"], "bc": ["b", "c"], "Ã©": ["Ã", "©"], "<end>": ["<end>"]}
    for old, new in zip(before, after, strict=True):
        assert len(new) == len(other)
        for token, pieces in parts.items():
            wanted = torch.stack([old[ids[piece]] for piece in pieces]).mean(dim=0)
            np.testing.assert_allclose(new[other.get_vocab()[token]].detach(), wanted.detach(), atol=1e-7)
    assert (after[0] is after[1]) == tied
    assert model.config.eos_token_id == other.eos_token_id
    assert model(input_ids=torch.tensor([[len(other) - 1]])).logits.shape[-1] == len(other)
