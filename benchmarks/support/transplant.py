"""A model with another tokenizer: the tokenizer cut to what some texts need, and first rows for its tokens.

A cut tokenizer reads these texts exactly as the whole one does, since byte pairs are joined by rank and every token
that appears on the way is kept; bytes always are, so any other text can be read, in more tokens. The row of a token, in
the embeddings and in a head of its own, is the mean of the rows of the tokens that the model's own tokenizer makes of
the same bytes.
"""

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from teacher_cache.corpus.token_spans import special_ids, vocabulary_table


def cut_tokenizer(tokenizer: Any, texts: Iterable[str]) -> Any:
    """A fast tokenizer with the tokens that ``texts`` need of a byte-level one, renumbered in order.

    Raises ValueError if the cut one reads a text differently.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    model = tree["model"]
    vocabulary = model["vocab"]
    added = "|".join(re.escape(token["content"]) for token in tree["added_tokens"])
    parts = {part for text in texts for part in re.split(added, text)} if added else set(texts)
    words = {word for part in parts for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(part)}
    kept = {token for token in vocabulary if len(token) == 1}
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    for word in words:
        kept |= {word} if model["ignore_merges"] and word in vocabulary else _joined(word, ranks)
    model["vocab"] = {token: i for i, token in enumerate(sorted(kept, key=vocabulary.__getitem__))}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= kept]
    for i, token in enumerate(tree["added_tokens"]):
        token["id"] = len(kept) + i
    found = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.eos_token,
    )
    for text in texts:
        whole, cut = (each.backend_tokenizer.encode(text).tokens for each in (tokenizer, found))
        if whole != cut:
            raise ValueError(f"the cut tokenizer reads a text of {len(text)} characters in other tokens")
    return found


def _joined(word: str, ranks: dict[tuple[str, ...], int]) -> set[str]:
    """All that is put together, pair by pair, when a word is read."""
    found, parts = set(), list(word)
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = list(itertools.pairwise(parts)).index(best)
        parts[at : at + 2] = ["".join(best)]
        found.add(parts[at])
    return found


def transplant(model: Any, own: Any, other: Any) -> None:
    """Give ``model``, whose tokenizer is ``own``, rows for the tokens of ``other``, in place."""
    import torch

    own_table, other_table = vocabulary_table(own), vocabulary_table(other)
    byte_ids = {own_table.token(i): i for i in range(len(own_table.length_V)) if own_table.length_V[i] == 1}
    special = special_ids(other)
    parts = []
    for i in range(len(other_table.length_V)):
        if i in special:
            parts.append([own.eos_token_id] if i == other.eos_token_id else [])
            continue
        data = other_table.token(i)
        try:
            parts.append(own(data.decode(), add_special_tokens=False)["input_ids"])
        except UnicodeDecodeError:
            parts.append([byte_ids[bytes([byte])] for byte in data if bytes([byte]) in byte_ids])
    tied = model.config.tie_word_embeddings
    layers = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]
    rows = [means_of(layer.weight.data, parts) for layer in layers]
    model.resize_token_embeddings(len(parts), mean_resizing=False)
    with torch.no_grad():
        for layer, rows_VD in zip(
            [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])], rows, strict=True
        ):
            layer.weight.copy_(rows_VD)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, other.eos_token_id, other.pad_token_id


def means_of(weight_UD: Any, parts: list[list[int]]) -> Any:
    """The mean of the rows of each list of ids, of all rows for an empty one; [V, D] in the dtype of ``weight_UD``."""
    import torch

    wide_UD = weight_UD.double()
    whole_D = wide_UD.mean(dim=0)
    return torch.stack([wide_UD[ids].mean(dim=0) if ids else whole_D for ids in parts]).to(weight_UD.dtype)
