"""Bits per byte of a model on texts: what it costs to write them, whatever the tokenizer."""

import math
from collections.abc import Sequence
from typing import Any

import torch


def pieces(texts: Sequence[str], max_characters: int) -> list[str]:
    """The texts, cut after line ends into pieces of at most ``max_characters`` (of longer lines: one line)."""
    found = []
    for text in texts:
        piece = ""
        for line in text.splitlines(keepends=True):
            if piece and len(piece) + len(line) > max_characters:
                found.append(piece)
                piece = ""
            piece += line
        found.append(piece)
    return found


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Mean over all bytes but those of each text's first token, which no row predicts."""
    from teacher_cache.corpus.token_spans import ByteTokenizer

    model.eval()
    nats, size = 0.0, 0
    for spans in ByteTokenizer(tokenizer).encode(list(texts)):
        ids_1S = torch.from_numpy(spans.ids.astype("int64"))[None]
        logits_SV = model(input_ids=ids_1S, use_cache=False).logits[0, :-1].float()
        nats -= float(logits_SV.log_softmax(dim=-1).gather(1, ids_1S[0, 1:, None]).sum(dtype=torch.float64))
        size += len(spans.data) - int(spans.end[0])
    return nats / math.log(2) / size
