"""Python and English that every installation holds: passages of standard library modules and of Python's manual.

A file is one module or one chapter; every ``HOLD_OUT_EVERY``-th is held out as a whole, so no part of it is trained on.
A passage begins a quarter of the way into its file, as files begin much alike.
"""

from pathlib import Path

from benchmarks.support.corpus import hold_out, standard_library

KINDS = ("Python", "English")


def texts() -> dict[str, dict[str, str]]:
    """Of each kind the files' names and texts, in order."""
    from pydoc_data.topics import topics

    code = {path.name: path.read_text(encoding="utf-8", errors="ignore") for path in standard_library()}
    return {"Python": code, "English": {f"{name}.txt": text for name, text in sorted(topics.items())}}


def passage(text: str, max_characters: int) -> str:
    """Whole lines from a quarter of the way into ``text``, at most ``max_characters``."""
    start = text.find("\n", len(text) // 4) + 1 if len(text) > max_characters else 0
    if len(text) - start <= max_characters:
        return text[start:]
    return text[start : text.rfind("\n", start, start + max_characters) + 1]


def write_kinds(
    folder: Path, characters: dict[str, int], held_out_characters: dict[str, int], every: int
) -> dict[str, int]:
    """Write ``folder/corpus/KIND`` and ``folder/held-out/KIND``; returns the bytes to train on by kind.

    characters, held_out_characters: of one passage, at most. every: of the files to train on, one in so many is.
    """
    totals = {}
    for kind, files in texts().items():
        training, held_out = hold_out(list(files))
        for place, names, limit in (
            ("corpus", training[::every], characters[kind]),
            ("held-out", held_out, held_out_characters[kind]),
        ):
            target = folder / place / kind
            target.mkdir(parents=True, exist_ok=True)
            for name in names:
                (target / name).write_text(passage(files[name], limit), encoding="utf-8")
        totals[kind] = sum(file.stat().st_size for file in (folder / "corpus" / kind).iterdir())
    return totals


def held_out_texts(folder: Path, kind: str) -> list[str]:
    """The held-out passages of a kind that ``write_kinds`` wrote."""
    return [file.read_text(encoding="utf-8") for file in sorted((folder / "held-out" / kind).iterdir())]


def texts_of(folder: Path) -> list[str]:
    """All passages that ``write_kinds`` wrote, to train on and held out."""
    files = sorted(file for place in ("corpus", "held-out") for file in (folder / place).glob("*/*"))
    return [file.read_text(encoding="utf-8") for file in files]
