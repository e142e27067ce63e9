"""Arithmetic statements in a text, ``a op b = c``, checked with exact fractions; nothing is evaluated by Python.

A statement is what stands around an equals sign, as far as it consists of numbers, + - × ÷ ^ and parentheses, with an
operator on one side at least. Where that is not certain, because a variable, a unit, a function or the like touches
it, it is no statement: what is found is checked, but not all that is there is found. Fenced code is not looked at.
"""

import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

MAX_CHARACTERS = 200  # of one side; longer ones are no statement
MAX_DIGITS = 60  # of a number, and of what powers come to
MAX_POWER = 128
MAX_WORD = 64  # letters that are looked at beside an expression

_FENCED = re.compile(r"^(`{3,}|~{3,}).*?(?:^\1|\Z)", re.MULTILINE | re.DOTALL)
_EVERY_LINE = re.MULTILINE | re.IGNORECASE
_PLAIN = [  # what is rewritten before statements are looked for, in this order
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·∗⋅]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|[÷∕⁄]"), "/"),
    (re.compile(r"\\(?:left|right|quad|[,;:! ])|\\?\$|[€£¥`]|\\[()\[\]]"), " "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^(\1)"),
    (re.compile(r"&="), "="),
    (re.compile(r"\.\.\."), "…"),
    (re.compile("−|(?<=[\\d)])\\s*–(?=\\s*[\\d(])"), "-"),
    (re.compile(r"(?<=[\d)])\*\*(?=[\d(-])|(?<=[\d)]) \*\* (?=[\d(-])"), "^"),
    (re.compile(r"\*\*|__"), " "),
    (re.compile(r"²"), "^2"),
    (re.compile(r"³"), "^3"),
    (re.compile(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])(?<!0x)(?<!0X)"), "*"),
    (
        re.compile(
            r"^[ \t]*(?:[-*•>][ \t]+|\(?\d+[.)][ \t]+(?![+*/^=])|(?:step|part) \d+ ?[-.:)][ \t]*)+", _EVERY_LINE
        ),
        "",
    ),
    (re.compile(r"(?<!\d)\d+(?::\d+)+|\b\d{1,4}-\d{1,2}-\d{1,4}\b|\b0[xX][0-9a-fA-F]+"), "\ufffc"),  # times, dates, hex
]
_EQUALS = re.compile(r"(?<![=<>!:~+*/^-])=(?![=>~<])")
_SIDE = r"[\d.,%+*/^() \t…-]"
_LAST, _FIRST = re.compile(rf"{_SIDE}*$"), re.compile(rf"{_SIDE}*")
_BREAK = re.compile(r"[.,](?=\s|$)")
_TOKEN = re.compile(r"\s*(?:((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(…?)(%?)|([-+*/^()]))")
_MAY_PRECEDE = frozenset(":;,.\"'([{!?<>|→⇒“”‘’=≈~\n")
_MAY_FOLLOW = frozenset(":;,.\"')]}?<>|→⇒“”‘’=≈~\n")
_OPERATIONS = frozenset(("of", "mod", "modulo", "plus", "minus", "times", "over"))  # in words
_NOT_BEFORE = _OPERATIONS | {"than", "from", "by", "log", "ln", "sin", "cos", "tan", "sqrt", "root"}
_NOT_AFTER = _OPERATIONS | {"remainder", "rem", "r", "percent", "pi"}


class Statement(NamedTuple):
    """A statement as it stands in the text, more or less, and whether it is right."""

    left: str
    right: str
    holds: bool


class _Side(NamedTuple):
    text: str
    value: Fraction | None  # None: a division by zero
    operators: int
    places: int  # decimal places of a number on its own
    percent: bool  # a number on its own, with a percent sign
    goes_on: bool  # a number on its own, followed by an ellipsis


def statements(text: str) -> list[Statement]:
    """The arithmetic statements of a text, in order."""
    plain = _FENCED.sub("\n", text)
    for pattern, replacement in _PLAIN:
        plain = pattern.sub(replacement, plain)
    found = []
    for line in plain.split("\n"):
        parts = _EQUALS.split(line)
        for before, after in pairwise(parts):
            left, right = _ending(before), _beginning(after)
            if left and right and (left.operators or right.operators):
                found.append(Statement(left.text, right.text, _equal(left, right)))
    return found


def _equal(left: _Side, right: _Side) -> bool:
    if left.value is None or right.value is None:
        return False
    return left.value == right.value or _is_written(left.value, right) or _is_written(right.value, left)


def _is_written(exact: Fraction, side: _Side) -> bool:
    """Whether a side is a number that is written for ``exact``: in percent, or rounded since its decimals never end."""
    if side.operators or side.value is None:
        return False
    shown = side.value * 100 if side.percent else side.value
    if side.percent and shown == exact:  # 5 / 20 × 100 = 25%
        return True
    unit = Fraction(1, 10**side.places)
    for value in (exact, exact * 100) if side.percent else (exact,):
        rounded = side.places > 0 and abs(value - shown) <= unit / 2
        cut = side.goes_on and 0 <= (value - shown if value > 0 else shown - value) < unit
        if _never_ends(value) and (rounded or cut):
            return True
    return False


def _never_ends(value: Fraction) -> bool:
    """Whether its decimals go on for ever, so that whoever writes them rounds."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1


def _ending(text: str) -> _Side | None:
    """The expression at the end of a text."""
    match = _LAST.search(text[-MAX_CHARACTERS - 1 :])
    run = match[0] if match else ""
    if len(run) > MAX_CHARACTERS:
        return None
    head = text[: len(text) - len(run)]
    *cut, piece = _BREAK.split(run)
    expression = piece.strip()
    opened = _unopened(expression)
    if opened:
        cut, expression = [expression[:opened]], expression[opened:].strip()
    if not cut and head:
        last, apart = head[-1], piece[:1].isspace()
        word = re.search(r"[^\W\d_]+$", head[-MAX_WORD:])
        if word:
            if not apart or word[0].lower() in _NOT_BEFORE:
                return None
            of_variable = len(word[0]) == 1 and expression[:1] in ("(", "-")  # x (3 + 4), x -3
            if of_variable or (expression[:1] == "-" and expression[1:2].isspace()):
                return None
        elif last not in _MAY_PRECEDE:
            return None
    return _read(expression)


def _beginning(text: str) -> _Side | None:
    """The expression at the beginning of a text."""
    match = _FIRST.match(text[: MAX_CHARACTERS + 1])
    run = match[0] if match else ""
    if len(run) > MAX_CHARACTERS:
        return None
    piece, *cut = _BREAK.split(run)
    expression = piece.strip()
    closed = _unclosed(expression)
    if closed is not None:
        cut, expression = [expression[closed:]], expression[:closed].strip()
    tail = text[len(run) :]
    if not cut and tail:
        apart = piece[-1:].isspace()
        word = re.match(r"[^\W\d_]+", tail[:MAX_WORD])
        if word:
            if word[0].lower() in _NOT_AFTER or (not apart and len(word[0]) == 1):
                return None
        elif tail[0] not in _MAY_FOLLOW:
            return None
    return _read(expression)


def _unopened(expression: str) -> int:
    """Where the expression goes on after the last parenthesis that was opened before it; or, not closed, in it."""
    depth = 0
    for place in range(len(expression) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(expression[place], 0)
        if depth < 0:
            return place + 1
    return 0


def _unclosed(expression: str) -> int | None:
    """Where the expression ends: at a parenthesis that closes none of its own, or one that is not closed in it."""
    opened: list[int] = []
    for place, character in enumerate(expression):
        if character == "(":
            opened.append(place)
        elif character == ")":
            if not opened:
                return place
            opened.pop()
    if not opened:
        return None
    before = expression[: opened[0]]
    return opened[0] if before[-1:].isspace() else 0  # 7(x + 1): a product


def _read(expression: str) -> _Side | None:
    """Parse and compute an expression; None if it is none, or too large."""
    tokens: list[tuple[str, str, str, str]] = []
    place = 0
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None:
            return None
        tokens.append((match[1] or "", match[2] or "", match[3] or "", match[4] or ""))
        place = match.end()
    numbers = [token for token in tokens if token[0]]
    if not numbers or any(len(number[0]) > MAX_DIGITS for number in numbers):
        return None
    percents = sum(bool(number[2]) for number in numbers)
    if percents not in (0, len(numbers)) and any(token[3] in ("+", "-") for token in tokens if token[3]):
        return None  # 50 + 10 % is 55 to some
    parser = _Parser(tokens)
    try:
        value: Fraction | None = parser.whole()
    except ZeroDivisionError:
        value = None
    except _NotArithmetic:
        return None
    alone = len(numbers) == 1 and not parser.operators
    return _Side(
        expression,
        value,
        parser.operators,
        len(numbers[0][0].partition(".")[2]) if alone else 0,
        alone and bool(percents),
        alone and bool(numbers[0][1]),
    )


class _NotArithmetic(Exception):
    """It is no expression, or one that is too large to compute."""


class _Parser:
    """Recursive descent; powers before products before sums."""

    def __init__(self, tokens: list[tuple[str, str, str, str]]) -> None:
        self._tokens, self._place = tokens, 0
        self.operators = 0

    def whole(self) -> Fraction:
        value = self._sum()
        if self._place < len(self._tokens):
            raise _NotArithmetic
        return value

    def _next(self, operators: str) -> str:
        """The next token if it is one of these operators."""
        if self._place < len(self._tokens) and (found := self._tokens[self._place][3]) and found in operators:
            self._place += 1
            return found
        return ""

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._next("+-"):
            self.operators += 1
            term = self._product()
            value = value + term if operator == "+" else value - term
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while operator := self._next("*/"):
            self.operators += 1
            factor = self._signed()
            value = value * factor if operator == "*" else value / factor
        return value

    def _signed(self) -> Fraction:
        return -self._power() if self._next("-") else self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._next("^"):
            return base
        self.operators += 1
        exponent = self._signed()
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or abs(exponent) > MAX_POWER or bits * abs(exponent) > 4 * MAX_DIGITS:
            raise _NotArithmetic
        return base ** int(exponent)

    def _atom(self) -> Fraction:
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise _NotArithmetic
            return value
        if self._place == len(self._tokens) or not self._tokens[self._place][0]:
            raise _NotArithmetic
        number, _, percent, _ = self._tokens[self._place]
        self._place += 1
        return Fraction(number.replace(",", "")) / (100 if percent else 1)
