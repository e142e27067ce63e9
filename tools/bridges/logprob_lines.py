"""Dumps of log-probabilities as serving engines and APIs return them: one JSON object a line.

Recognised, in one line or in its ``response`` (``response.body`` of a batch):

- vLLM: ``prompt_token_ids`` with ``prompt_logprobs``, of `LLM.generate` or of the server's completions and chat
  completions (vllm/entrypoints/openai/*/protocol.py, vllm/outputs.py). Each position has the k likeliest tokens and,
  where it is not among them, the token of the prompt itself.
- OpenAI's completions: ``choices[].logprobs`` with ``tokens``, ``token_logprobs`` and ``top_logprobs``; with ``echo``
  also of the prompt.
- OpenAI's chat completions: ``choices[].logprobs.content[]`` with ``token``, ``bytes``, ``logprob``, ``top_logprobs``.

What was generated needs what it follows: ``prompt_token_ids``, ``prompt`` or ``messages``, beside it or in ``request``
(``request.body``). ``labels``, one a token, leaves out the rows that predict tokens with a negative label.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import UserError
from schemas.failures import failure
from schemas.regular_files import open_regular

MAX_LINE_BYTES = 1 << 28
Name = int | str | bytes  # of a token: its id, its text, or its bytes


class Entries(NamedTuple):
    """The tokens that a line names at one position."""

    names: list[Name]
    logprobs: list[float]
    ranks: list[int] | None = None  # from 1; None: not said

    @property
    def top(self) -> int:
        """How many of them are the likeliest ones: all but a token that was added because the text has it."""
        if self.ranks is None:
            return len(self.names)
        return sum(rank <= place for place, rank in enumerate(sorted(self.ranks), start=1))


class Line(NamedTuple):
    """A sequence of a dump."""

    before: list[int] | str | list[Any]  # ids, text or messages of a prompt without log-probabilities
    tokens: list[Name]  # those after it
    rows: list[Entries | None]  # one a token of ``tokens``: what predicted it
    own_logprobs: list[float | None]  # one a token of ``tokens``: its own, where the line says it
    labels: list[int] | None  # one a token, with those of ``before``


def read_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the parsed JSON of every line that is not empty. Raises UserError."""
    try:
        with open_regular(file) as raw, io.BufferedReader(raw) as opened:
            number = 0
            while line := opened.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(f"{file}: line {number}: more than {MAX_LINE_BYTES} bytes; split the record")
                if line.strip():
                    yield number, _parsed(line, f"{file}: line {number}")
    except OSError as error:
        raise failure(error, f"{file}: cannot be read") from None


def _parsed(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object: {error}") from None


def sequences(record: Any, where: str) -> Iterator[Line]:
    """The sequences of one record; none of a choice without log-probabilities. Raises UserError."""
    try:
        yield from _sequences(record, where)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(
            f"{where}: not a response with log-probabilities ({type(error).__name__}: {str(error)[:100]}); wanted "
            "vLLM's prompt_logprobs, or OpenAI's choices with logprobs"
        ) from None


def _sequences(record: dict[str, Any], where: str) -> Iterator[Line]:
    response = _inner(record, "response")
    request = _inner(record, "request")
    choices = response.get("choices", response.get("outputs")) or [{}]
    for choice in choices:
        known = [choice, response, request, record]
        ids, logprobs = _first(known, "prompt_token_ids"), _first(known, "prompt_logprobs")
        labels = _first(known, "labels")
        if logprobs is not None and ids is None:
            raise UserError(f"{where}: prompt_logprobs without prompt_token_ids; ask for return_token_ids, or add them")
        if logprobs is not None and len(logprobs) != len(ids):
            raise UserError(f"{where}: {len(logprobs)} prompt_logprobs of {len(ids)} prompt_token_ids")
        before: Any = _first(known, "prompt", "messages") if ids is None else ids
        generated = _generated(choice, where)
        if logprobs is not None:
            rows = [None if each is None else _by_id(each) for each in logprobs]
            line = Line([], [int(each) for each in ids], rows, [None] * len(rows), labels)
            if generated is not None:
                line = Line([], line.tokens + generated.tokens, line.rows + generated.rows,
                            line.own_logprobs + generated.own_logprobs, labels)  # fmt: skip
            yield line
        elif generated is not None:
            if generated.rows and generated.rows[0] is None:  # an echo of the prompt, whose first token has no row
                before = []
            if before is None:
                raise UserError(
                    f"{where}: log-probabilities of generated tokens alone; add the request's prompt or messages, or "
                    "prompt_token_ids"
                )
            yield generated._replace(before=before, labels=labels)


def _inner(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name, record if name == "response" else {})
    return found.get("body", found)


def _first(places: list[dict[str, Any]], *names: str) -> Any:
    return next((place[name] for name in names for place in places if place.get(name) is not None), None)


def _by_id(entries: dict[str, Any]) -> Entries:
    """vLLM's entries: by token id, a number or an object with ``logprob`` and ``rank``."""
    names: list[Name] = [int(each) for each in entries]
    values = list(entries.values())
    if values and isinstance(values[0], dict):
        ranks = [each.get("rank") for each in values]
        known = None if None in ranks else [int(each) for each in ranks]
        return Entries(names, [float(each["logprob"]) for each in values], known)
    return Entries(names, [float(each) for each in values])


def _generated(choice: dict[str, Any], where: str) -> Line | None:
    """The tokens that a choice generated; None if it says no log-probabilities of them."""
    found, ids = choice.get("logprobs"), choice.get("token_ids")
    if not found:
        return None
    if isinstance(found, list):  # of `LLM.generate`
        tokens: list[Name] = [int(each) for each in ids or []]
        rows: list[Entries | None] = [_by_id(each) for each in found]
        own: list[float | None] = [None] * len(rows)
    elif found.get("content") is not None:
        content = found["content"]
        tokens = [_name(each) for each in content]
        rows = [_by_name(each["top_logprobs"]) for each in content]
        own = [float(each["logprob"]) for each in content]
    else:
        tokens = [str(each) for each in found["tokens"]]
        own = [None if each is None else float(each) for each in found["token_logprobs"]]
        rows = [_by_text(each) for each in found["top_logprobs"]]
    if ids is not None and len(ids) == len(rows):
        tokens = [int(each) for each in ids]
    if not len(tokens) == len(rows) == len(own):
        raise UserError(f"{where}: {len(tokens)} tokens, {len(own)} log-probabilities and {len(rows)} top_logprobs")
    return Line([], tokens, rows, own, None)


def _by_text(entries: dict[str, Any] | None) -> Entries | None:
    return None if not entries else Entries([*entries], [float(each) for each in entries.values()])


def _by_name(entries: list[dict[str, Any]]) -> Entries | None:
    return (
        None
        if not entries
        else Entries([_name(each) for each in entries], [float(each["logprob"]) for each in entries])
    )


def _name(entry: dict[str, Any]) -> Name:
    found = entry.get("bytes")
    text = str(entry["token"])
    return text if found is None or text.startswith("token_id:") else bytes(found)
