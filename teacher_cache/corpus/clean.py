"""Text cleaning: drop invisible characters, unify line ends, normalise Unicode to NFC.

Invisible means control characters other than newline and tab, zero-width and directional marks, soft hyphens, byte
order marks, tag characters, and lone surrogates (which UTF-8 cannot hold). The price of one simple rule: zero-width
joiners go too, so a joined emoji falls apart into its members and Persian or Indic text loses its joining hints;
``clean: false`` keeps everything. Variation selectors and marks that print something are kept.
"""

import re
import unicodedata

_LINE_ENDS = re.compile("\r\n?")
_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, newline and tab excepted
    "\u00ad\u061c\u180e"  # soft hyphen, Arabic letter mark, Mongolian vowel separator
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f"  # zero-width, joiners, directional marks, invisible operators
    "\ufeff\ufff9-\ufffb"  # byte order mark, interlinear annotation
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"  # shorthand, musical, tag characters
    "\ud800-\udfff"  # lone surrogates
    "]+"
)


def clean_text(text: str) -> str:
    """``text`` with line ends as newlines, without invisible characters, in NFC. Cleaning twice changes nothing."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))
