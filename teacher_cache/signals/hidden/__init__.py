"""The ``hidden`` signal: the residual stream after chosen decoder layers."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from schemas.cache_config import HiddenCapture, Quantised
from schemas.manifest import Manifest
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.signals.alternatives import Alternative, other_values
from teacher_cache.signals.hidden.codec import HiddenCodec
from teacher_cache.signals.hidden.record import HiddenBatch, HiddenSample, HiddenStates
from teacher_cache.signals.layer_checks import check_hidden_layers, check_width
from teacher_cache.signals.side_signal import SideSignal, listed_numbers, rows_in_words

if TYPE_CHECKING:
    from teacher_cache.signals.tap import Tap

NOT_FINITE = {
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
    "float8_e4m3": 0x7F,
}  # exponent bits: all set in infinities and NaN
Settings = TypeVar("Settings", bound=Quantised)


class StatesSignal(SideSignal[Settings, HiddenSample, HiddenBatch]):
    """Base of the signals that store hidden states."""

    batch = HiddenBatch

    def check_teacher(self, name: str, settings: Settings, text_config: Any, max_tokens: int) -> None:
        """Check that the hidden size can be stored in this dtype."""
        check_width(name, settings, text_config)

    def alternatives(self, settings: Settings, channels: int) -> Iterator[Alternative]:
        """Other dtypes."""
        for dtype in other_values(Quantised, "dtype", settings.dtype):
            if dtype != "int4" or channels % 2 == 0:
                other = settings.model_copy(update={"dtype": dtype})
                yield Alternative(f"dtype={dtype}", other, partial(_requantised, settings, other))

    def codec(self, settings: Settings, manifest: Manifest, table: CodeTable | None) -> HiddenCodec:
        """Codec of all stored layers."""
        raise NotImplementedError

    def empty(self, settings: Settings, manifest: Manifest) -> HiddenSample:
        """No rows, in the shapes and dtypes of the codec."""
        return self.codec(settings, manifest, None).empty()

    def labels(self, settings: Settings, num_layers: int) -> list[str]:
        """Description of each stored layer."""
        raise NotImplementedError

    def problem(self, sample: HiddenSample, settings: Settings, manifest: Manifest) -> str:
        """Report values that are not finite."""
        for name, bits in (("scales", sample.scales), ("outliers", sample.outliers), ("values", sample.values)):
            mask = NOT_FINITE.get(settings.dtype if name == "values" else "bfloat16")
            if mask is not None and ((bits & mask) == mask).any():  # integers are finite
                return f"the {name} of its hidden states are not all finite"
        return ""


class HiddenSignal(StatesSignal[HiddenCapture]):
    """The ``hidden`` signal."""

    title = "hidden states"

    def check_teacher(self, name: str, settings: HiddenCapture, text_config: Any, max_tokens: int) -> None:
        """Check the hidden size and that the teacher has the layers."""
        super().check_teacher(name, settings, text_config, max_tokens)
        check_hidden_layers(name, settings, text_config)

    def labels(self, settings: HiddenCapture, num_layers: int) -> list[str]:
        """Labels with layer numbers, ascending."""
        return [f"hidden states, layer {number}" for number in settings.layer_numbers(num_layers)]

    def in_words(self, settings: HiddenCapture, num_layers: int) -> str:
        """Layers, dtype, rows."""
        layers = listed_numbers(settings.layer_numbers(num_layers))
        return f"layers {layers}; {settings.dtype}; rows: {rows_in_words(settings.positions)}"

    def codec(self, settings: HiddenCapture, manifest: Manifest, table: CodeTable | None) -> HiddenCodec:
        """Codec of all stored layers."""
        return HiddenCodec(settings, manifest.codec, len(settings.layers), manifest.teacher.hidden_size)

    def tap(self, settings: HiddenCapture, num_layers: int) -> "Tap":
        """Tap on the layers' outputs."""
        from teacher_cache.signals.hidden.capture import HiddenTap

        return HiddenTap(settings, num_layers)

    def arrays(self, batch: HiddenBatch, settings: HiddenCapture) -> dict[str, np.ndarray]:
        """float32 [N, C, D]. Loads torch."""
        return {"": floats(batch, settings)}

    def shown(self, sample: HiddenSample, settings: HiddenCapture, num_layers: int) -> HiddenStates:
        """float32 [P, C, D]. Loads torch."""
        return HiddenStates(sample.positions, floats(sample, settings), tuple(settings.layer_numbers(num_layers)))

    def figures(self, sample: HiddenSample, settings: HiddenCapture) -> dict[str, dict[int, Any]]:
        """Norms of each layer, by row."""
        return {"hidden_norms": norms(sample, settings)}


def floats(stored: HiddenSample | HiddenBatch, settings: Quantised) -> np.ndarray:
    """Dequantise stored hidden states to float32 [..., C, D]. Loads torch."""
    from teacher_cache.signals.hidden.capture import to_floats

    return to_floats(stored, settings).numpy()


def _requantised(before: Quantised, after: Quantised, sample: HiddenSample) -> HiddenSample:
    from teacher_cache.signals.hidden.capture import quantise, to_floats, to_hidden_sample

    layers = [quantise(layer, after) for layer in to_floats(sample, before).unbind(dim=1)]
    return to_hidden_sample(sample.positions, layers)


def norms(sample: HiddenSample, settings: Quantised) -> dict[int, list[float]]:
    """Euclidean norm of each layer's hidden state, by row. Loads torch."""
    from teacher_cache.signals.hidden.capture import to_floats

    norms_PC = to_floats(sample, settings).norm(dim=2).tolist()
    return {
        row: [round(norm, 3) for norm in layers]
        for row, layers in zip(sample.positions.tolist(), norms_PC, strict=True)
    }
