"""Save plots as small files."""

from pathlib import Path
from typing import Any


def save_picture(figure: Any, path: Path) -> None:
    """Save and close a figure of pyplot, as a PNG of 64 colours."""
    from matplotlib import pyplot
    from PIL import Image

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
