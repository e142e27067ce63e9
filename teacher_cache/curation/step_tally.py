"""What a step did to some records: counts that add up, and the first few records that it removed."""

from collections.abc import Iterable, Mapping, Sequence

from schemas.curated_manifest import Amount, StepCounts
from schemas.strict import Strict
from teacher_cache.curation.record import Record

SAMPLES = 5  # of each reason
SAMPLE_CHARACTERS = 600
MOST_VALUES = 64  # of a flag

Counts = Mapping[str, Mapping[str, int]]


class RemovedSample(Strict):
    """A record that left, its texts cut."""

    reason: str
    source_id: str
    layer: str
    prompt: str
    reply: str


class StepTally(Strict):
    """Counts of a step, and samples of what it removed."""

    counts: StepCounts
    samples: list[RemovedSample]


def tally_of(
    step: str,
    key: str,
    entered: Amount,
    stayed: Sequence[Record],
    left: Sequence[tuple[Record, str]],
    flagged: Iterable[tuple[str, str]] = (),
) -> StepTally:
    """The tally of one step over some records; left: with reasons; flagged: (flag, value) that the step set."""
    removed: dict[str, Amount] = {}
    by_source: dict[str, dict[str, int]] = {}
    by_layer: dict[str, dict[str, int]] = {}
    flags: dict[str, dict[str, int]] = {}
    samples: list[RemovedSample] = []
    for record, reason in left:
        before = removed.get(reason, Amount())
        removed[reason] = Amount(records=before.records + 1, tokens=before.tokens + record.n_tokens)
        _count(by_source, str(record.source), reason)
        _count(by_layer, record.layer, reason)
        if before.records < SAMPLES:
            prompt, reply = _cut(record.prompt), _cut(record.reply or str(record.flags.get("problem", "")))
            samples.append(
                RemovedSample(
                    reason=reason, source_id=_cut(record.source_id), layer=record.layer, prompt=prompt, reply=reply
                )
            )
    for flag, value in flagged:
        _count(flags, flag, value)
    return StepTally(
        counts=StepCounts(
            step=step,
            key=key,
            entered=entered,
            stayed=amount_of(stayed),
            removed=removed,
            by_source=by_source,
            by_layer=by_layer,
            flags=flags,
        ),
        samples=samples,
    )


def amount_of(records: Sequence[Record]) -> Amount:
    """Number and tokens of records."""
    return Amount(records=len(records), tokens=sum(record.n_tokens for record in records))


def total(amounts: Iterable[Amount]) -> Amount:
    """Their sum."""
    each = list(amounts)
    return Amount(records=sum(one.records for one in each), tokens=sum(one.tokens for one in each))


def merged(tallies: Sequence[StepTally]) -> StepTally:
    """The tally of a step over all records, from those of consecutive parts, keys sorted."""
    counts = [tally.counts for tally in tallies]
    reasons = sorted({reason for each in counts for reason in each.removed})
    samples = [sample for tally in tallies for sample in tally.samples]
    return StepTally(
        counts=StepCounts(
            step=counts[0].step,
            key=counts[0].key,
            entered=total(each.entered for each in counts),
            stayed=total(each.stayed for each in counts),
            removed={reason: total(each.removed.get(reason, Amount()) for each in counts) for reason in reasons},
            by_source=_sum([each.by_source for each in counts]),
            by_layer=_sum([each.by_layer for each in counts]),
            flags={flag: _fewest(values) for flag, values in _sum([each.flags for each in counts]).items()},
        ),
        samples=[each for reason in reasons for each in [s for s in samples if s.reason == reason][:SAMPLES]],
    )


def flags_set(before: Record, after: Record) -> list[tuple[str, str]]:
    """(flag, value) of the flags with few values, true, false or a word, that ``after`` has and ``before`` lacks."""
    if after.flags is before.flags:
        return []
    return [
        (name, str(value).lower())
        for name, value in after.flags.items()
        if isinstance(value, bool | str) and before.flags.get(name) != value
    ]


def _cut(text: str) -> str:
    kept = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"
    return kept.encode(errors="replace").decode()  # lone surrogates


def _count(counts: dict[str, dict[str, int]], group: str, name: str) -> None:
    inside = counts.setdefault(group, {})
    inside[name] = inside.get(name, 0) + 1


def _sum(parts: Sequence[Counts]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for part in parts:
        for group, counts in part.items():
            for name, count in counts.items():
                inside = found.setdefault(group, {})
                inside[name] = inside.get(name, 0) + count
    return {group: dict(sorted(found[group].items())) for group in sorted(found)}


def _fewest(values: Mapping[str, int]) -> dict[str, int]:
    """The most frequent values; the others together."""
    ranked = sorted(values, key=lambda value: (-values[value], value))
    kept = {value: values[value] for value in sorted(ranked[:MOST_VALUES])}
    others = sum(values[value] for value in ranked[MOST_VALUES:])
    return {**kept, "(others)": others} if others else kept
