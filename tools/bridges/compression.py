"""DistillKit's compression of a teacher's rows: settings and byte layout; sources are listed in ``distillkit``.

Shape letters: R or P rows, K entries each, B bytes of a row, C polynomial terms.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.bounded_yaml import parse_yaml
from schemas.errors import UserError
from schemas.regular_files import read_file
from teacher_cache.codec.logprobs import from_bits

MAX_CONFIG_BYTES = 1 << 16
BITS_AT_A_TIME = 1 << 22
Dtype = Literal["float16", "bfloat16", "float32", "float64"]
Term = Literal["sqrt", "exp"] | int


class Bin(BaseModel):
    """A run of residuals with one scale."""

    scale_dtype: Dtype
    element_bits: int = Field(ge=1, le=32)
    num_elements: int = Field(ge=1, le=65535)


class Compression(BaseModel):
    """DistillKit's ``compression_config.yaml``, or ``teacher.logprob_compressor`` of a training configuration."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    d: int = Field(ge=2, lt=2**24)
    k: int = Field(ge=1, le=65535)
    exact_k: int = Field(ge=0)
    exact_dtype: Dtype = "float32"
    polynomial_terms: list[Term] | None = None
    term_dtype: Dtype = "float32"
    residual_bins: list[Bin] = []
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Compression":
        if self.exact_k > self.k or self.k > self.d:
            raise ValueError("exact_k must be at most k, and k at most d")
        if sum(each.num_elements for each in self.residual_bins) > self.k - self.exact_k:
            raise ValueError("residual_bins hold more elements than k - exact_k")
        if any(isinstance(term, int) and not 0 <= term <= 64 for term in self.polynomial_terms or []):
            raise ValueError("powers must be from 0 to 64")
        return self

    @property
    def is_exact(self) -> bool:
        """Whether every log-probability is a float of its own."""
        return self.exact_k == self.k

    @property
    def id_bits(self) -> int:
        """Bits per token id."""
        return max(1, int(np.ceil(np.log2(np.float32(self.d)))))  # float32, as DistillKit computes it

    @property
    def id_bytes(self) -> int:
        """Bytes of the ids of a row."""
        return -(-self.k * self.id_bits // 8)

    @cached_property
    def logprob_bytes(self) -> int:
        """Bytes of the log-probabilities of a row."""
        bins = sum(_WIDTH[each.scale_dtype] + _packed_bytes(each) for each in self.residual_bins)
        terms = len(self.polynomial_terms or []) * _WIDTH[self.term_dtype]
        return self.exact_k * _WIDTH[self.exact_dtype] + terms + bins


_WIDTH = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def _packed_bytes(each: Bin) -> int:
    return -(-each.num_elements * each.element_bits // 8)


def read_compression(path: Path) -> Compression:
    """Read the settings from ``compression_config.yaml`` or a training configuration. Raises UserError."""
    if not path.exists():
        raise UserError(
            f"{path}: not found; DistillKit's bytes can only be decoded with the settings that wrote them: give these "
            "with --compression-config"
        )
    tree = parse_yaml(read_file(path, MAX_CONFIG_BYTES), f"{path}:")
    if isinstance(tree, dict) and isinstance(tree.get("teacher"), dict):
        tree = tree["teacher"].get("logprob_compressor")
    try:
        return Compression.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: {key + ': ' if key else ''}{first['msg']}; got {str(first['input'])[:80]!r}"
        ) from None


def pack_bits(values_PN: np.ndarray, bits: int) -> np.ndarray:
    """Pack ``bits`` bits per value, most significant first, rows padded to whole bytes: uint8 [P, B]."""
    n_rows, n = values_PN.shape
    packed_PB = np.empty((n_rows, -(-n * bits // 8)), np.uint8)
    for rows in _few_rows(n_rows, n * bits):
        bits_XNB = (values_PN[rows, :, None] >> np.arange(bits - 1, -1, -1, dtype=np.int32)) & 1
        packed_PB[rows] = np.packbits(bits_XNB.astype(np.uint8).reshape(len(bits_XNB), n * bits), axis=1)
    return packed_PB


def unpack_bits(bytes_PB: np.ndarray, bits: int, n: int) -> np.ndarray:
    """Inverse of ``pack_bits``: int64 [P, n]."""
    values_PN = np.zeros((len(bytes_PB), n), np.int64)
    for rows in _few_rows(len(bytes_PB), n * bits):
        bits_XNB = np.unpackbits(bytes_PB[rows], axis=1, count=n * bits).reshape(-1, n, bits)
        for bit in range(bits):
            values_PN[rows] = values_PN[rows] << 1 | bits_XNB[:, :, bit]
    return values_PN


def _few_rows(n_rows: int, bits_of_row: int) -> Iterator[slice]:
    """Slices of rows, so that unpacked bits (a byte each) take little memory."""
    step = max(1, BITS_AT_A_TIME // bits_of_row)
    return (slice(start, start + step) for start in range(0, n_rows, step))


def decode_logprobs(bytes_RB: np.ndarray, settings: Compression) -> np.ndarray:
    """Decode the bytes of R rows to float32 [R, k]. DistillKit itself rounds the result to ``exact_dtype``."""
    cursor = _Cursor(np.ascontiguousarray(bytes_RB))
    exact = cursor.floats(settings.exact_k, settings.exact_dtype)
    n_others = settings.k - settings.exact_k
    others = np.zeros((len(bytes_RB), n_others), np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # the caller refuses hostile floats
        if settings.polynomial_terms:
            coefficients_RC = cursor.floats(len(settings.polynomial_terms), settings.term_dtype)
            others += _polynomial(coefficients_RC, settings, n_others)
        start = 0
        for each in settings.residual_bins:
            scale_R1 = cursor.floats(1, each.scale_dtype)
            integers = unpack_bits(cursor.read(_packed_bytes(each)), each.element_bits, each.num_elements)
            signed = 2 * integers - 1 if each.element_bits == 1 else integers - 2 ** (each.element_bits - 1)
            others[:, start : start + each.num_elements] += signed * scale_R1
            start += each.num_elements
        logprobs_RK = np.concatenate([exact, others], axis=1)
        if settings.delta_encoding:
            logprobs_RK = np.cumsum(logprobs_RK, axis=1)
        return logprobs_RK.astype(np.float32)


def _polynomial(coefficients_RC: np.ndarray, settings: Compression, n: int) -> np.ndarray:
    """Evaluate each row's polynomial at n points: float64 [R, n], rounded to ``term_dtype`` as DistillKit does."""
    import torch

    dtype = getattr(torch, settings.term_dtype)
    points = torch.linspace(0, 1, n, dtype=dtype) if settings.normalize_t else torch.arange(n, dtype=dtype)
    coefficients = torch.from_numpy(coefficients_RC).to(dtype)
    total = torch.zeros((len(coefficients_RC), n), dtype=torch.promote_types(dtype, torch.float32))
    for column, term in enumerate(settings.polynomial_terms or []):
        values = points**term if isinstance(term, int) else getattr(torch, term)(points)
        total += coefficients[:, [column]] * values
    return total.to(dtype).double().numpy()


class _Cursor:
    """Sequential reader over the bytes of all rows at once."""

    def __init__(self, bytes_RB: np.ndarray) -> None:
        self._bytes_RB = bytes_RB
        self._at = 0

    def read(self, n: int) -> np.ndarray:
        """The next ``n`` bytes of every row, uint8 [R, n]."""
        self._at += n
        return np.ascontiguousarray(self._bytes_RB[:, self._at - n : self._at])

    def floats(self, n: int, dtype: Dtype) -> np.ndarray:
        """The next ``n`` floats of every row, float64 [R, n]."""
        part = self.read(n * _WIDTH[dtype])
        if dtype == "bfloat16":
            return from_bits(part.view("<u2"), "bfloat16").astype(np.float64)
        return part.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]).astype(np.float64)
