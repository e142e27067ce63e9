"""Row targets by the definition, one student token at a time, in float64, without tables or shortcuts."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

MIN_MASS = 1e-6


@dataclass(frozen=True)
class Walk:
    """Two vocabularies, and a text that the teacher has read: its tokens are ``(id, start, end)``."""

    teacher: list[bytes]
    student: list[bytes]
    stops: frozenset[int]  # of the teacher
    student_stop: int
    text: bytes
    tokens: list[tuple[int, int, int]]
    rows: dict[int, dict[int, float]]  # by the token that the row predicts: weights
    realised: dict[int, float] = field(default_factory=dict)  # by the same: probability of that token

    def prefix(self, data: bytes) -> int:
        """The longest student token that ``data`` begins with; -1 if there is none."""
        found = [(len(token), -i) for i, token in enumerate(self.student) if token and data.startswith(token)]
        return -max(found)[1] if found else -1

    def target(self, token: int, x: int, y: int, is_stop: bool = False) -> tuple[dict[int, float], float] | None:
        """Weights by student id, and the rest; None where the token is not taught."""
        row = self.going_on(x, y, is_stop)
        if row is None:
            return None
        k, read, given = row
        weights = self.by_student(read, given, lambda s: s)
        taken, _, end = self.tokens[k]
        if not is_stop and y > end:
            source = self.prefix(self.teacher[taken][len(read) :]) if self.rows[k].get(taken, 0) > 0 else None
            mass = sum(self.rows[k][v] for v in given) if read else 1.0
            chain = self.realised[k] / mass * self.chain(k, y)
            if source is None or source < 0:
                chain = min(chain, max(0.0, 1 - sum(weights.values())))
            else:
                chain = min(chain, weights[source])
                weights[source] -= chain
            weights[token] += chain
        return {s: w for s, w in weights.items() if w > 0}, 1 - sum(weights.values())

    def going_on(self, x: int, y: int, is_stop: bool) -> tuple[int, bytes, dict[int, float]] | None:
        """The teacher token that is read, its bytes before ``x``, and weights of tokens that go on after these.

        None where no row says anything of the student's token, or it is blank.
        """
        k = self.covering(x, is_stop)
        if k is None or k not in self.rows or (not is_stop and not self.text[x:y].strip(b" \t")):
            return None
        taken, _, end = self.tokens[k]
        spelled = self.teacher[taken]
        read = b"" if is_stop else spelled[: len(spelled) - (end - x)]
        found = {v: p for v, p in self.rows[k].items() if self.goes_on(v, read)}
        mass = sum(found.values()) if read else 1.0
        return None if mass < MIN_MASS else (k, read, {v: p / mass for v, p in found.items()})

    def by_student(self, read: bytes, given: dict[int, float], name: Callable[[int], int]) -> dict[int, float]:
        """The weights by ``name`` of the student token that what is left of each teacher token stands for."""
        weights: dict[int, float] = defaultdict(float)
        for v, p in given.items():
            s = self.student_stop if v in self.stops else self.prefix(self.teacher[v][len(read) :])
            if s >= 0:
                weights[s if v in self.stops else name(s)] += p
        return weights

    def common(self, s: int) -> int:
        """The common token of student token ``s``, step by step; itself where there is none."""
        at, data = s, self.student[s]
        while data:
            known = [token for token in self.teacher if token and data.startswith(token)]
            if not known:
                return s
            longest = max(known, key=len)
            at = self.prefix(longest)
            if at < 0:
                return s
            data = self.student[at]
            if data == longest:
                return at
        return s

    def class_target(self, token: int, x: int, y: int, is_stop: bool = False) -> tuple[dict[int, float], float] | None:
        """Weights by common token, and the rest; None where the token is not taught."""
        row = self.going_on(x, y, is_stop)
        if row is None:
            return None
        k, read, given = row
        if not is_stop:
            follows = self.prefix(self.teacher[self.tokens[k][0]][len(read) :])
            if follows < 0 or self.common(follows) != self.common(token):
                return {self.common(token): 1.0}, 0.0
        weights = self.by_student(read, given, self.common)
        return dict(weights), 1 - sum(weights.values())

    def goes_on(self, v: int, read: bytes) -> bool:
        if v in self.stops:
            return not read
        return self.teacher[v].startswith(read) and len(self.teacher[v]) > len(read)

    def covering(self, x: int, is_stop: bool) -> int | None:
        for k, (token, start, end) in enumerate(self.tokens):
            if (is_stop and start == x and token in self.stops) or (not is_stop and start <= x < end):
                return k
        return None

    def chain(self, k: int, y: int) -> float:
        probability, at = 1.0, self.tokens[k][2]
        while at < y:
            k += 1
            if k not in self.rows:
                return 0.0
            end = self.tokens[k][2]
            if end <= y:
                probability *= self.realised[k]
            else:
                begun = self.text[at:y]
                probability *= sum(p for v, p in self.rows[k].items() if self.teacher[v].startswith(begun))
            at = end
        return probability
