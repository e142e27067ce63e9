"""Common pieces by the definition: borders of both sides as sets of bytes, then each stretch between two of them."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Read:
    """A text as both sides have read it: tokens are ``(start, end)``."""

    text: bytes
    teacher: list[tuple[int, int]]
    spelled: list[bytes]  # bytes of each teacher token
    logprobs: list[float | None]  # of each teacher token; None: not known
    teacher_stops: set[int]  # which teacher tokens stop
    student: list[tuple[int, int]]  # start -1: outside
    student_stops: set[int]

    def pieces(self) -> dict[int, tuple[int, float]]:
        """By the last student token: how many student tokens, and the teacher's log-probability."""
        found = {}
        for run in self.runs():
            borders = {byte for j in run for byte in self.student[j]} & self.teacher_borders()
            for x, y in pairwise(sorted(borders)):
                inside = [j for j in run if x <= self.student[j][0] < y]
                logprob = self.logprob(x, y)
                if logprob is not None and inside[0] > 0:
                    found[inside[-1]] = (len(inside), logprob)
        for j in self.student_stops - {0}:
            stops = [k for k in sorted(self.teacher_stops) if self.teacher[k][0] == self.student[j][0]]
            logprob = self.logprobs[stops[0]] if stops else None
            if logprob is not None:
                found[j] = (1, logprob)
        return found

    def runs(self) -> list[list[int]]:
        """Student tokens that follow each other without a gap."""
        runs: list[list[int]] = []
        for j, (x, y) in enumerate(self.student):
            if j in self.student_stops or x < 0 or y <= x:
                continue
            if runs and runs[-1][-1] == j - 1 and self.student[j - 1][1] == x:
                runs[-1].append(j)
            else:
                runs.append([j])
        return runs

    def teacher_borders(self) -> set[int]:
        wide = [span for span in self.teacher if span[0] < span[1]]
        return {byte for span in wide for byte in span if not any(start < byte < end for start, end in wide)}

    def logprob(self, x: int, y: int) -> float | None:
        """Of the teacher tokens that cover exactly these bytes; None if they do not, or one is not known."""
        touching = [k for k, (start, end) in enumerate(self.teacher) if (start < y and end > x) or x < start == end < y]
        at, total = x, 0.0
        for k in touching:
            start, end = self.teacher[k]
            logprob = self.logprobs[k]
            text = self.text[start:end]
            is_spelled = self.spelled[k] == text or (start == 0 and self.spelled[k][1:] == text)
            if start != at or end <= start or not is_spelled or logprob is None:
                return None
            at, total = end, total + logprob
        return total if at == y else None
