"""Let vLLM run the language model of a multimodal class without torchvision.

Such classes import image processors, which import torchvision, and no build of it fits the CPU build of PyTorch. Text
inputs never use it, so a placeholder module is imported in its place.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "torchvision"


class _Placeholder(type):
    """A class whose attributes are all placeholders, and which cannot be instantiated."""

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
        """Nothing to execute."""


def make_importable(architectures: list[str]) -> None:
    """If torchvision is missing, import vLLM's classes of ``architectures`` in this process, with placeholders.

    vLLM would otherwise inspect them in a subprocess first, where there are no placeholders.
    """
    if not install_placeholders():
        return
    from vllm import ModelRegistry

    for architecture in architectures:
        known = ModelRegistry.models.get(architecture)
        load = getattr(known, "load_model_cls", None)
        if load is not None:
            ModelRegistry.register_model(architecture, load())


def install_placeholders() -> bool:
    """Install the placeholders if torchvision is missing. Returns whether they are installed."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return True
    if importlib.util.find_spec(PACKAGE) is not None:
        return False
    # transformers caches its answer: it must be given before the placeholders make torchvision importable
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    sys.meta_path.append(_Finder())
    return True
