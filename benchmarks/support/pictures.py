"""Save plots as small files."""

from pathlib import Path
from typing import Any


def save_picture(figure: Any, path: Path) -> None:
    """Save and close a figure of pyplot, as a PNG of 64 colours."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    shrink(path, 64)


def shrink(path: Path, colours: int = 256) -> None:
    """Rewrite a PNG with so many colours."""
    from PIL import Image

    Image.open(path).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
