"""Contrast of all text on a page against its background, computed from styles as WCAG 2 defines it."""

from playwright.sync_api import Page

_RATIOS = """
() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  const luminance = rgb => {
    const [r, g, b] = rgb.map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(numbers(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const ignored = element.closest("script, style, noscript, option:not([role])");
    if (!own || ignored || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const below = background(element);
    for (const name of ["", "::before", "::after"]) {
      const part = getComputedStyle(element, name || null);
      if (name && (part.content === "none" || part.content === "normal")) continue;
      const ink = over(numbers(element instanceof SVGElement ? style.fill : part.color), below);
      const [high, low] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
      found.push([(high + 0.05) / (low + 0.05), element.tagName + "." + element.className + name]);
    }
  }
  return found;
}
"""


def contrasts(page: Page) -> list[tuple[float, str]]:
    """Ratio of every element that shows text of its own, and of what a style sheet adds to it, with its name."""
    return [(ratio, what) for ratio, what in page.evaluate(_RATIOS)]
