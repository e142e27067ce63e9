"""How far a model is from the real teacher on texts that it was not trained on."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.real_teacher import make_teacher
from trainer.student.build import load_model


def load(folder: Path) -> Any:
    """A model in float32, to be evaluated."""
    return load_model(folder, "MODEL", torch.float32).eval()


class Judge:
    """The teacher's log-probabilities on texts, and what others make of them."""

    def __init__(self, texts: Iterable[str], max_tokens: int) -> None:
        """Read the first ``max_tokens`` tokens of each text."""
        tokenizer, teacher = AutoTokenizer.from_pretrained(make_teacher()), load(make_teacher())
        self.ids = [torch.tensor([tokenizer(text)["input_ids"][:max_tokens]]) for text in texts]
        self.log_p = [log_probabilities(teacher, ids) for ids in self.ids]

    def quality(self, model: Any) -> dict[str, Any]:
        """KL(teacher ‖ model), nats a token, perplexity of the texts, and the tokens that both are over."""
        kl = loss = tokens = 0.0
        for ids, log_p in zip(self.ids, self.log_p, strict=True):
            log_q = log_probabilities(model, ids)
            kl += float((log_p.exp() * (log_p - log_q)).sum())
            loss -= float(log_q.gather(1, ids[0, 1:, None]).sum())
            tokens += len(log_q)
        return {"kl": kl / tokens, "perplexity": math.exp(loss / tokens), "tokens": int(tokens)}


@torch.no_grad()
def log_probabilities(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of each next token, float32 [S - 1, V]; ids: int64 [1, S]."""
    return model(ids, use_cache=False).logits[0, :-1].log_softmax(dim=-1)
