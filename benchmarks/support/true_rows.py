"""Unrounded rows of the real teacher, from an ordinary forward pass."""

import numpy as np

from benchmarks.real_teacher import make_teacher
from benchmarks.support.common import TEMPERATURES, K
from schemas.cache_config import LogitsCapture
from teacher_cache.records import Request


class Forward:
    """Rows of each sequence as an engine captures them, final hidden states [S, D], and the output head [V, D]."""

    def __init__(self, sequences: list[np.ndarray]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from teacher_cache.signals.logits.capture import reduce_logits, to_sample

        model = AutoModelForCausalLM.from_pretrained(make_teacher(), dtype=torch.float32).eval()
        self.head_VD = model.lm_head.weight.detach()
        self.capture = LogitsCapture(k=K, temperatures=TEMPERATURES, positions="all")
        self.hidden_SD, self.samples = [], []  # one per sequence
        for ids in sequences:
            ids_S = torch.from_numpy(ids)
            with torch.inference_mode():
                hidden_SD = model.model(ids_S[None]).last_hidden_state[0]
                rows = reduce_logits(hidden_SD @ self.head_VD.T, ids_S.roll(-1), K, TEMPERATURES)
            self.hidden_SD.append(hidden_SD)
            every_row = Request(ids, np.arange(len(ids), dtype=np.int32))
            self.samples.append(to_sample(rows, every_row, self.capture))
