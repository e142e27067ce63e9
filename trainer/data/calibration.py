"""Samples of a cache to measure a model's activations on: their tokens alone, spread over the cache."""

from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from schemas.errors import UserError
from teacher_cache.lengths import max_length
from trainer.data.batches import evaluation_loader
from trainer.data.readable import Cache
from trainer.data.row_plan import SortedRows
from trainer.data.selection import Selection, Subset

MAX_SHARDS = 64  # whose indexes are read, unless they hold too few of the selected samples
BATCH_SAMPLES = 4


def calibration_rows(cache: Cache, selection: Selection, n_samples: int) -> SortedRows:
    """``n_samples`` of the selected samples, evenly spread, or all if there are fewer. Raises UserError if none is."""
    subset = Subset(cache, selection)
    shards = np.unique(np.linspace(0, subset.n_shards - 1, MAX_SHARDS).astype(int)).tolist()
    cache.load_indexes(shards)
    samples = np.concatenate([subset.samples(shard) for shard in shards])
    if len(samples) < n_samples:
        samples = subset.selected()[0]
    if not len(samples):
        raise UserError(f"{cache.url}: no sample to measure activations on; choose another cache")
    n_samples = min(n_samples, len(samples))
    chosen = samples[np.arange(n_samples) * len(samples) // n_samples]
    return SortedRows(chosen, subset.lengths(chosen))


def calibration_batches(cache: Cache, rows: SortedRows, skip_corrupt: bool = False) -> DataLoader[Any]:
    """Batches of these rows with ``input_ids`` and ``attention_mask``, padded on the right."""
    return evaluation_loader(cache, rows, BATCH_SAMPLES, skip_corrupt=skip_corrupt)


def calibration_sequences(
    cache: Cache, selection: Selection, n_samples: int, model_config: Any, max_tokens: int, skip_corrupt: bool = False
) -> list[np.ndarray]:
    """Token ids of ``calibration_rows``, int64 [S], without padding, of each the first ``max_tokens``.

    They are cut at the positions of the model, too. Raises UserError if no sample is selected.
    """
    limit = min(max_tokens, max_length(model_config.get_text_config()) or max_tokens)
    return [
        ids_L[is_token_L][:limit].numpy()
        for batch in calibration_batches(cache, calibration_rows(cache, selection, n_samples), skip_corrupt)
        for ids_L, is_token_L in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
