"""Save plots, and parts of pages, as small files."""

from pathlib import Path
from typing import Any


def save_picture(figure: Any, path: Path) -> None:
    """Save and close a figure of pyplot, as a PNG of 64 colours."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    shrink(path, 64)


def save_part(page: Any, path: Path, top: float, bottom: float) -> None:
    """Capture a page of a browser between two heights, over its whole width, and close it."""
    clip = {"x": 0, "y": top, "width": page.viewport_size["width"], "height": bottom - top}
    page.screenshot(path=path, full_page=True, clip=clip, animations="disabled")
    page.close()
    shrink(path)


def shrink(path: Path, colours: int = 256) -> None:
    """Rewrite a PNG with so many colours."""
    from PIL import Image

    Image.open(path).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
