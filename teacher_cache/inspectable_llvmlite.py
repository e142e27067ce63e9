"""Make vLLM's CPU build loadable in a process that has imported numba."""

import sys


def make_inspectable() -> None:
    """Let ``vars`` succeed on what llvmlite has loaded, if it is.

    vLLM 0.32 calls ``vars`` on every attribute of every module, which fails for llvmlite's library wrapper: it resolves
    every attribute, ``__dict__`` too, as a function of the library.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None and not isinstance(getattr(ffi.lib, "__dict__", {}), dict):
        ffi.lib._fntab["__dict__"] = {}
