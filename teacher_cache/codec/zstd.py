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
from teacher_cache.codec.compiled import compiled

_THREAD = threading.local()
FLUSH, END = int(lib.ZSTD_e_flush), int(lib.ZSTD_e_end)
BLOCK_BYTES = 32  # of overhead that a block may have, at most


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


def compress_blocks(content: np.ndarray, ends: np.ndarray, level: int) -> bytes:
    """Compress uint8 [N] into a frame in which a block ends at each of ``ends`` (ascending, the last N).

    One call without the GIL. The context is new: frames of levels from 5 on depend on what a context did before.
    """
    context = lib.ZSTD_createCCtx()
    if context == ffi.NULL:
        raise MemoryError("zstd: cannot allocate a compression context")
    try:
        lib.ZSTD_CCtx_setParameter(context, lib.ZSTD_c_compressionLevel, level)
        lib.ZSTD_CCtx_setPledgedSrcSize(context, len(content))
        frame = np.empty(lib.ZSTD_compressBound(len(content)) + BLOCK_BYTES * (len(ends) + 1), np.uint8)
        function = _address(ffi.addressof(lib, "ZSTD_compressStream2"))
        n = _compress_stream(function, _address(context), np.ascontiguousarray(content), ends, frame)
    finally:
        lib.ZSTD_freeCCtx(context)
    if n < 0:
        raise RuntimeError(f"zstd: error {-n} while compressing {len(content)} bytes")
    return frame[:n].tobytes()


@compiled
def _compress_stream(function: int, context: int, content: np.ndarray, ends: np.ndarray, frame: np.ndarray) -> int:
    """Write the frame; returns its size, or zstd's negative error code."""
    source, target = np.zeros(3, np.int64), np.zeros(3, np.int64)  # ZSTD_inBuffer, ZSTD_outBuffer: address, size, used
    source[0], target[0], target[1] = content.ctypes.data, frame.ctypes.data, len(frame)
    for end in ends:
        source[1] = end
        left = np.int64(1)
        while left != 0 or source[2] < end:
            left = call_stream(function, context, target.ctypes.data, source.ctypes.data, FLUSH)
            if left < 0 or target[2] == target[1]:
                return min(left, -1)
    while call_stream(function, context, target.ctypes.data, source.ctypes.data, END) != 0:
        if target[2] == target[1]:
            return -1
    return target[2]


@intrinsic
def call_stream(typing: Any, function: Any, context: Any, target: Any, source: Any, mode: Any) -> Any:
    """Call ZSTD_compressStream2 with the addresses of its buffers: bytes left to flush, or a negative error code."""
    number, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(number, [pointer, pointer, pointer, ir.IntType(32)])

    def generate(generator: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call, *pointers, operation = arguments
        return builder.call(
            builder.inttoptr(call, kind.as_pointer()),
            [*(builder.inttoptr(one, pointer) for one in pointers), builder.trunc(operation, ir.IntType(32))],
        )

    return types.int64(types.int64, types.int64, types.int64, types.int64, types.int64), generate


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
