"""A plain training loop for losses that no cache of rows serves: they need the teacher's whole distributions.

These are rebuilt from the cache's final hidden states. Samples come in the trainer's order, and the optimiser, its
schedule, clipping and bf16 are those of a run of ``train-student`` with the same settings. Writes the model to
``output/final``, as such a run does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.support.published_losses import Matched, Sequence, gold, uld
from schemas.train_config import TrainConfig

SequenceLoss = Callable[[torch.Tensor, Sequence], torch.Tensor]


def train(config: TrainConfig, name: str, teacher: Path) -> None:
    """Train ``student.checkpoint`` on ``data.cache``, whose samples are plain text; ``losses`` do not count.

    name: ``uld`` or ``gold``. teacher: a folder with its tokenizer.
    """
    from transformers import AutoTokenizer, get_cosine_schedule_with_warmup

    from trainer.data.open_caches import open_cache
    from trainer.data.order import CacheOrder, Shuffle
    from trainer.data.row_plan import plan_rows
    from trainer.data.selection import Selection, Subset
    from trainer.student.build import load_model

    loop, settings = config.loop, config.optimizer
    url, folder = str(config.data.cache), Path(str(config.student.checkpoint))
    cache = open_cache(url, ("tokens", "final"))
    order = CacheOrder(Subset(cache, Selection()), Shuffle(loop.seed, config.data.shards_mixed))
    batch, steps = loop.micro_batch_size, loop.max_steps or 1
    plan = plan_rows([order], None, global_batch=batch, epochs=1, max_steps=steps)
    texts = Texts(url, AutoTokenizer.from_pretrained(folder))
    student: Any = load_model(folder, key="student", dtype=torch.float32)
    student.train()
    sizes = texts.head.weight_VD.shape[0], student.get_output_embeddings().weight.shape[0]
    matched = Matched.of(AutoTokenizer.from_pretrained(teacher), texts.tokenizer, *sizes)
    losses: dict[str, SequenceLoss] = {"uld": uld, "gold": lambda logits_JV, each: gold(logits_JV, each, matched)}
    loss = losses[name]
    optimizer = torch.optim.AdamW(
        student.parameters(), settings.lr, settings.betas, settings.eps, weight_decay=settings.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, steps)
    for step in range(steps):
        read = [texts[sample] for (sample,) in plan.rows(list(range(step * batch, (step + 1) * batch)))]
        with torch.autocast("cpu", torch.bfloat16, enabled=loop.bf16):
            ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids_J) for ids_J, _ in read], batch_first=True)
            logits = student(input_ids=ids, use_cache=False).logits
        total = torch.stack([loss(logits[r, : len(e.ids_J)].float(), e) for r, (_, e) in enumerate(read)]).mean()
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        print(f"{step + 1}/{steps}: {total.item():.4f}", flush=True)
    student.save_pretrained(Path(config.output) / "final")
    texts.tokenizer.save_pretrained(Path(config.output) / "final")


class Texts:
    """The samples of a cache as student and teacher read them."""

    def __init__(self, url: str, tokenizer: Any) -> None:
        from teacher_cache.api import open_cache
        from teacher_cache.corpus.token_spans import ByteTokenizer
        from teacher_cache.shards.reader import CacheReader

        self.tokenizer = tokenizer
        self._encoder = ByteTokenizer(tokenizer)
        self._cache = open_cache(url, signals=["final"])
        self.head = CacheReader(url, ("tokens", "final")).read_head()

    def __getitem__(self, sample: int) -> tuple[np.ndarray, Sequence]:
        """The student's tokens, int64, and the sequence without its last row on either side."""
        found = self._cache[sample]
        (spans,) = self._encoder.encode([found.text])
        ids_J = spans.ids.astype(np.int64)
        rows_S = found.final.positions
        teacher = self.head.logits(torch.from_numpy(found.final.values)).softmax(dim=1)
        return ids_J, Sequence(
            torch.from_numpy(ids_J[1:]),
            ids_J[:-1],
            spans.end[:-1],
            found.input_ids[rows_S].astype(np.int64),
            found.tokens.byte_end[rows_S],
            teacher,
        )
