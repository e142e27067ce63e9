"""DistillKit's encoding: packed bits, floats, polynomials, residuals, and their settings."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml

from schemas.errors import UserError
from tools.bridges.compression import Compression, decode_logprobs, pack_bits, read_compression, unpack_bits


@pytest.mark.parametrize("bits", [1, 7, 9, 16, 17, 24])
def test_bits_are_packed_from_the_highest(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.bridges.compression.BITS_AT_A_TIME", 2 * bits * 5)  # two rows at a time
    values = np.random.default_rng(0).integers(0, 2**bits, (7, 5))
    packed = pack_bits(values, bits)
    for row, wanted in zip(packed, values, strict=True):
        text = "".join(f"{byte:08b}" for byte in row.tolist())
        assert text[: 5 * bits] == "".join(f"{value:0{bits}b}" for value in wanted.tolist())
    np.testing.assert_array_equal(unpack_bits(packed, bits, 5), values)


def test_polynomials_residuals_and_differences_are_decoded() -> None:
    """One row by hand, k = 6: two bfloat16 values; 1 + 2t - √t, the first two with 4-bit residuals of scale 0.5."""
    settings = Compression(
        d=300, k=6, exact_k=2, exact_dtype="bfloat16", polynomial_terms=[0, 1, "sqrt"],
        residual_bins=[{"scale_dtype": "float16", "element_bits": 4, "num_elements": 2}], delta_encoding=False,
    )  # fmt: skip
    half = [struct.pack("<f", value)[2:] for value in (-0.5, -1.5)]
    row = b"".join([*half, struct.pack("<3f", 1, 2, -1), struct.pack("<e", 0.5), bytes([0b1011_0000])])
    assert len(row) == settings.logprob_bytes
    bytes_1B = np.frombuffer(row, np.uint8)[None]
    wanted = [-0.5, -1.5, 1 + 3 * 0.5, 1 + 2 - 1 - 8 * 0.5, 1 + 4 - math.sqrt(2), 1 + 6 - math.sqrt(3)]
    np.testing.assert_allclose(decode_logprobs(bytes_1B, settings), [wanted], rtol=1e-6)
    deltas = settings.model_copy(update={"delta_encoding": True})
    np.testing.assert_allclose(decode_logprobs(bytes_1B, deltas), [np.cumsum(wanted)], rtol=1e-6)
    one_bit = Compression(
        d=300, k=3, exact_k=0, delta_encoding=False,
        residual_bins=[{"scale_dtype": "float32", "element_bits": 1, "num_elements": 3}],
    )  # fmt: skip
    row = struct.pack("<f", 0.25) + bytes([0b101_00000])
    np.testing.assert_array_equal(decode_logprobs(np.frombuffer(row, np.uint8)[None], one_bit), [[0.25, -0.25, 0.25]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: 4", "d: Field required"),
        ("{d: 300, k: 4, exact_k: 5, residual_bins: []}", "exact_k must be at most k"),
        ("{d: 300, k: 4, exact_k: 0, residual_bins: [{scale_dtype: int8}]}", "scale_dtype"),
        ("{d: 300, k: 4, exact_k: 1, polynomial_terms: [log]}", "polynomial_terms"),
        ("- 1", "valid dictionary"),
        ("{", "not valid YAML"),
        ("x" * 70000, "bytes"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_compression(tmp_path / "c.yaml")
    assert "c.yaml" in str(error.value)


def test_settings_may_stand_in_a_training_configuration(tmp_path: Path) -> None:
    tree = {"teacher": {"kind": "dataset", "logprob_compressor": {"d": 300, "k": 4, "exact_k": 4}}, "model": "m"}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(tree))
    assert read_compression(tmp_path / "train.yaml").k == 4
    with pytest.raises(UserError, match="--compression-config"):
        read_compression(tmp_path / "other.yaml")
