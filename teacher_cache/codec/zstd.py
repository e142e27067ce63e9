"""Call zstd from compiled loops.

The package ``zstandard`` binds the whole C library through cffi; only function addresses are taken from it.
"""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from zstandard.backend_cffi import ffi, lib

from schemas.errors import CorruptCacheError

_THREAD = threading.local()


class Decompressor(NamedTuple):
    """Decompression function and the context of one thread."""

    function: int  # address of ZSTD_decompressDCtx
    context: int  # address of its context


def decompressor() -> Decompressor:
    """Decompressor of this thread, valid for the thread's lifetime. Raises MemoryError."""
    if not hasattr(_THREAD, "context"):
        context = lib.ZSTD_createDCtx()
        if context == ffi.NULL:
            raise MemoryError("zstd: cannot allocate a decompression context")
        _THREAD.context = ffi.gc(context, lib.ZSTD_freeDCtx)
    return Decompressor(_address(ffi.addressof(lib, "ZSTD_decompressDCtx")), _address(_THREAD.context))


def addresses(frames: Sequence[memoryview]) -> np.ndarray:
    """Addresses of these buffers, int64 [N]; valid while the buffers are alive."""
    return np.array([_address(ffi.from_buffer(frame)) for frame in frames], np.int64)


def frame_size(data: bytes | memoryview) -> int:
    """Bytes of the zstd frame that ``data`` begins with. Raises CorruptCacheError if it begins with none."""
    size = lib.ZSTD_findFrameCompressedSize(ffi.from_buffer(data), len(data))
    if lib.ZSTD_isError(size):
        raise CorruptCacheError("broken zstd frame: it is cut off, or no frame")
    return int(size)


def _address(pointer: Any) -> int:
    return int(ffi.cast("intptr_t", pointer))


@intrinsic
def decompress_into(typing: Any, function: Any, context: Any, source: Any, n_bytes: Any, target: Any) -> Any:
    """Decompress a frame of ``n_bytes`` at the address ``source`` into the uint8 array ``target``, even if read-only.

    Returns the number of bytes written, or zstd's negative error code. Never writes beyond the array.
    """
    number, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(number, [pointer, pointer, number, pointer, number])

    def generate(generator: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call, state, start, size, array = arguments
        into = generator.make_array(signature.args[4])(generator, builder, array)
        return builder.call(
            builder.inttoptr(call, kind.as_pointer()),
            [
                builder.inttoptr(state, pointer),
                builder.bitcast(into.data, pointer),
                builder.extract_value(into.shape, 0),
                builder.inttoptr(start, pointer),
                size,
            ],
        )

    return types.int64(types.int64, types.int64, types.int64, types.int64, target), generate
