"""Row numbers that a payload of an untrusted cache claims to be about."""

import numpy as np

from schemas.errors import CorruptCacheError


def check_positions(positions: np.ndarray, num_tokens: int) -> np.ndarray:
    """``positions`` as int32 [P]. Raises CorruptCacheError unless they rise within a sequence of ``num_tokens``."""
    if len(positions) and (positions[-1] >= num_tokens or (positions[1:] <= positions[:-1]).any()):
        raise CorruptCacheError(f"column positions does not rise within a sequence of {num_tokens} tokens")
    return positions.astype(np.int32)
