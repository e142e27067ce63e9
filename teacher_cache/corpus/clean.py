"""Text cleaning: newlines only, Unicode NFC, and no invisible characters where they have no effect.

What is removed, and where it is kept:

- control characters other than newline and tab, lone surrogates, byte order marks, soft hyphens, other invisible
  format characters (word joiner, invisible operators, annotations, …): always removed;
- zero-width space: one kept between letters of scripts without spaces (Thai, Lao, Khmer, Burmese, …);
- zero-width non-joiner: one kept between a letter of a joining or Indic script and a letter, mark or digit (Persian);
- zero-width joiner: one kept next to a letter of such a script, whose shape it changes, and between emoji;
- tag characters: kept in a flag sequence: black flag, tags, cancel tag (England, Scotland);
- directional marks, embeddings, isolates: kept in lines with right-to-left letters;
- Mongolian vowel separator: kept between Mongolian letters.

A run of them is reduced to its first joiner or space, if it has one. Variation selectors and visible marks are always
kept. Cleaning is idempotent: it repeats until nothing changes.
"""

import re
import unicodedata

_BLACK_FLAG = "\U0001f3f4"
_ZERO_WIDTH_SPACE, _NON_JOINER, _JOINER, _VOWEL_SEPARATOR = "\u200b", "\u200c", "\u200d", "\u180e"
_ALWAYS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, newline and tab excepted
    "\u00ad\u2060-\u2065\u206a-\u206f"  # soft hyphen, word joiner, invisible operators
    "\ufeff\ufff9-\ufffb"  # byte order mark, interlinear annotation
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # shorthand, musical
    "\ud800-\udfff"  # lone surrogates
)
_SOMETIMES = "\u180e\u200b-\u200d\U000e0000-\U000e007f"  # vowel separator, zero-width ones, tags
_DIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_ASCII_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_SUSPECT = re.compile(f"[{_ALWAYS}{_SOMETIMES}{_DIRECTIONAL}]")
_INVISIBLE_RUN = re.compile(f"[{_ALWAYS}{_SOMETIMES}]+")
_DIRECTIONAL_RUN = re.compile(f"[{_DIRECTIONAL}]+")
_FLAG_TAGS = re.compile("[\U000e0020-\U000e007e]+\U000e007f")

_joining = re.compile(  # letters that change shape with their neighbours: Hebrew to Arabic, N'Ko, …; Indic; Mongolian
    "[\u0591-\u05f4\u0600-\u061b\u061d-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u0900-\u0dff\u1000-\u109f\u1700-\u180d"
    "\u180f-\u1cff\ua840-\uaaff\uabc0-\uabff\U00010a00-\U00010bff\U00010d00-\U00010fff\U00011000-\U00011fff"
    "\U0001e900-\U0001e95f\U0001ee00-\U0001eeff]"
).match
_unspaced = re.compile(  # scripts written without spaces between words
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u1aaf\ua980-\ua9ff\uaa00-\uaadf]"
).match
_right_to_left = re.compile(
    "[\u0590-\u061b\u061d-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
).search
_mongolian = re.compile("[\u1800-\u180d\u180f-\u18af]").match
_word = re.compile(r"\w").match
_emoji = re.compile(
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u25aa-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
).match
_END_OF_EMOJI = "\ufe0f\u20e3\U000e007f"  # presentation selector, keycap, end of a flag


def clean_text(text: str) -> str:
    """Cleaned ``text``; the same object if there is nothing to clean. Idempotent."""
    if text.isascii():
        if text.isprintable() or not _ASCII_CONTROL.search(text):
            return text
    elif not _SUSPECT.search(text) and unicodedata.is_normalized("NFC", text):
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    while (cleaned := _cleaned_once(text)) != text:
        text = cleaned
    return text


def _cleaned_once(text: str) -> str:
    if _DIRECTIONAL_RUN.search(text):
        text = "\n".join(map(_without_needless_marks, text.split("\n")))
    return unicodedata.normalize("NFC", _INVISIBLE_RUN.sub(_kept, text))


def _without_needless_marks(line: str) -> str:
    return line if _right_to_left(line) else _DIRECTIONAL_RUN.sub("", line)


def _kept(found: re.Match[str]) -> str:
    """The characters kept of a run of invisible ones."""
    run, text, (start, end) = found[0], found.string, found.span()
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    flag = _FLAG_TAGS.match(run) if before == _BLACK_FLAG else None
    tags = flag[0] if flag else ""
    separator = next((character for character in run[len(tags) :] if character in _BETWEEN), None)
    stays = separator is not None and _BETWEEN[separator](tags[-1:] or before, after)
    return tags + separator if stays and separator else tags


def _between_unspaced(before: str, after: str) -> bool:
    return bool(_unspaced(before) and _unspaced(after))


def _between_word_and_joining(before: str, after: str) -> bool:
    joining = bool(_joining(before)), bool(_joining(after))
    return all(joining) or bool(joining[0] and _word(after)) or bool(joining[1] and _word(before))


def _changes_shape(before: str, after: str) -> bool:
    return bool(
        _joining(before)
        or _joining(after)
        or ((_emoji(before) or (before and before in _END_OF_EMOJI)) and _emoji(after))
    )


def _between_mongolian(before: str, after: str) -> bool:
    return bool(_mongolian(before) and _mongolian(after))


_BETWEEN = {
    _ZERO_WIDTH_SPACE: _between_unspaced,
    _NON_JOINER: _between_word_and_joining,
    _JOINER: _changes_shape,
    _VOWEL_SEPARATOR: _between_mongolian,
}
