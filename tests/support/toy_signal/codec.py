"""Norms as bytes. Sections: positions; float32 in byte planes."""

import numpy as np

from schemas.cache_config import CodecConfig
from support.toy_signal.record import NormsSample
from teacher_cache.codec import positions
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections, payload_frame, write_payload


class NormsCodec:
    def __init__(self, codec: CodecConfig) -> None:
        self._level = codec.zstd_level

    def encode(self, sample: NormsSample) -> bytes:
        planes = split_planes(sample.norms.view(np.uint32), 4)
        return write_payload([positions.encode_positions(sample.positions), planes], self._level)

    def decode(self, payload: bytes, num_tokens: int) -> NormsSample:
        sections = Sections(payload_frame(payload), 2, positions.most_bytes(num_tokens) + 8 * num_tokens)
        positions_P = positions.decode_positions(sections[0], num_tokens)
        return NormsSample(positions_P, sections.integers(1, (len(positions_P), 2), 4).view(np.float32))
