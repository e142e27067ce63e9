"""Let vLLM run the language model of a multimodal class where torchvision is not installed.

The modules of such classes import their image processors, which import torchvision; the CPU build of PyTorch has none
that fits. Text never reaches them, so placeholders that only have names stand in for it.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "torchvision"


class _Placeholder(type):
    """A class that has every attribute, each a placeholder again, and no instances."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(name, (), {})

    def __call__(cls, *_args: Any, **_kwargs: Any) -> Any:
        raise ImportError(f"{PACKAGE} is not installed: images cannot be processed")


class _PlaceholderModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == PACKAGE else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _PlaceholderModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A placeholder has nothing to run."""


def make_importable(architectures: list[str]) -> None:
    """Import the classes of vLLM that run ``architectures`` here, with placeholders where torchvision is missing.

    vLLM would import them in a process of its own first, which has no placeholders.
    """
    if not stand_in():
        return
    from vllm import ModelRegistry

    for architecture in architectures:
        known = ModelRegistry.models.get(architecture)
        load = getattr(known, "load_model_cls", None)
        if load is not None:
            ModelRegistry.register_model(architecture, load())


def stand_in() -> bool:
    """Put the placeholders in place where torchvision is missing; whether they are."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return True
    if importlib.util.find_spec(PACKAGE) is not None:
        return False
    # transformers asks once, at its import, whether there is a torchvision, and must go on believing that there is none
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    sys.meta_path.append(_Finder())
    return True
