"""The layout of vllm-project/speculators: hidden states of a verifier, to train a draft model for speculative decoding.

Derived from the public sources of speculators (train/data.py, data_generation/preprocessing.py, models/eagle3) and
hs-connectors (transfer.py). A data set saved to disk by ``datasets`` has ``input_ids``, ``loss_mask`` and ``seq_len``;
row n has ``hidden_states/hs_N.safetensors`` with ``hidden_states`` [S, layers, D] and ``token_ids`` int64 [S].

Its layer n is the residual stream after n decoder layers, as vLLM counts auxiliary hidden states and as our ``hidden``
signal does. The last of a file's layers must be the model's last: speculators applies the verifier's final norm and
output head to it. Our ``final`` signal is the state after that norm, and is of no use here.

``loss_mask`` is 1 at tokens to be learned, not at the rows that predict them.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from schemas.cache_config import HiddenCapture
from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.records import TokenSample
from tools.bridges.layout import Layout, Pairs, learned_tokens
from tools.bridges.lists import lists

if TYPE_CHECKING:
    from teacher_cache.signals.hidden.record import HiddenSample

SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int64())),
        pa.field("loss_mask", pa.list_(pa.int64())),
        pa.field("seq_len", pa.int64()),
    ]
)


class SpeculatorsLayout(Layout):
    """Writer of speculators' layout."""

    name = "speculators"
    signal = "hidden"
    title = "Hidden states of a verifier"

    def __init__(self, manifest: Manifest) -> None:
        """Raises UserError unless every row of the last decoder layer is stored, and without ``datasets``."""
        super().__init__(manifest)
        self._settings = _settings(manifest)
        self._layers = self._settings.layer_numbers(manifest.teacher.num_layers)
        try:
            import datasets  # noqa: F401
        except ImportError:
            raise UserError("--to speculators: saves a data set with `datasets`; run `pip install datasets`") from None

    @property
    def values_per_row(self) -> int:
        """Values of a row's hidden states."""
        return len(self._layers) * self.manifest.teacher.hidden_size

    def stored(self) -> dict[str, str]:
        """Layers and precision."""
        return {"hidden states in the cache": f"layers {_listed(self._layers)}, {self._settings.dtype}"}

    def write(self, batches: Iterable[Pairs], folder: Path, tokens_per_file: int) -> int:
        """Write the data set and one file of hidden states for each sequence."""
        import datasets

        states = folder / "hidden_states"
        states.mkdir()
        n_samples = 0
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            rows = str(Path(scratch, "rows.arrow"))
            with pa.OSFile(rows, "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
                for pairs in batches:
                    writer.write_batch(_rows([tokens for tokens, _ in pairs]))
                    for tokens, sample in pairs:
                        self._write_states(tokens, sample, states / f"hs_{n_samples}.safetensors")
                        n_samples += 1
            with _no_progress_bars():
                datasets.Dataset.from_file(rows).with_format("torch").save_to_disk(str(folder))
        return n_samples + len(list(folder.glob("*.arrow")))

    def _write_states(self, tokens: TokenSample, sample: "HiddenSample", path: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from teacher_cache.signals.hidden.capture import to_floats

        if not np.array_equal(sample.positions, np.arange(len(tokens.input_ids))):
            raise UserError(
                f"sample {tokens.key}: {len(sample.positions)} rows of hidden states, wanted one for each of its "
                f"{len(tokens.input_ids)} tokens; `cache-tools verify` the cache"
            )
        states_SCD = to_floats(sample, self._settings).to(getattr(torch, self.manifest.teacher.dtype))
        save_file({"hidden_states": states_SCD, "token_ids": torch.from_numpy(tokens.input_ids.astype(np.int64))}, path)

    def about(self) -> str:
        """The files, and the arguments of speculators' trainer."""
        draft = " ".join(map(str, self._layers[:-1]))
        return (
            "In the layout of speculators' prepared data and cached hidden states: a data set for `load_from_disk` of "
            "`datasets`, and a file for each row.\n\n"
            "- `input_ids`, `loss_mask` (1 at tokens to be learned), `seq_len`\n"
            "- `hidden_states/hs_N.safetensors`, of row N: `hidden_states` [tokens, layers, channels], the residual "
            f"stream after layers {_listed(self._layers)} in {self.manifest.teacher.dtype}, and `token_ids`\n\n"
            "```console\n$ python -m speculators.train --verifier-name-or-path TEACHER --data-path THIS_FOLDER "
            f"--on-missing raise" + (f" --target-layer-ids {draft}" if draft else "") + "\n```\n\n"
            "For a smaller vocabulary of the draft model, count its tokens first:\n\n"
            "```python\nfrom datasets import load_from_disk\n"
            "from speculators.train.vocab_mapping import save_token_frequency_distribution\n\n"
            'save_token_frequency_distribution(load_from_disk("THIS_FOLDER"), "THIS_FOLDER/token_freq.pt")\n```\n'
        )


def _settings(manifest: Manifest) -> HiddenCapture:
    """The settings of the hidden states. Raises UserError when they do not serve."""
    settings, last = manifest.capture.hidden, manifest.teacher.num_layers
    if settings is None:
        seen = "no hidden states"
    elif settings.layer_numbers(last)[-1] != last:
        seen = f"layers {_listed(settings.layer_numbers(last))}"
    elif settings.positions != "all":
        seen = f"positions: {settings.positions}"
    else:
        return settings
    raise UserError(
        f"--to speculators: the cache has {seen}, wanted all rows of some layers and of layer {last}, the last: cache "
        "the teacher with, say, capture.hidden: {layers: [0.1, 0.5, 0.9, 1.0], positions: all}"
    )


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def _rows(samples: list[TokenSample]) -> pa.RecordBatch:
    columns: list[Any] = [
        lists([tokens.input_ids.astype(np.int64) for tokens in samples]),
        lists([learned_tokens(tokens).astype(np.int64) for tokens in samples]),
        pa.array([len(tokens.input_ids) for tokens in samples], pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()
