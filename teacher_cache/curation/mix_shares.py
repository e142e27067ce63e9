"""Layers of the data mix, cut to shares of tokens that count: records are chosen by a hash of their content."""

from collections.abc import Sequence

import numpy as np
import xxhash

from schemas.curate_steps import MixStep
from schemas.errors import UserError
from teacher_cache.corpus.documents import Document
from teacher_cache.corpus.prepare import digest
from teacher_cache.curation.curation_step import Decision, GlobalStep, StepPlace, Table
from teacher_cache.curation.record import Record


class Mix(GlobalStep):
    """Chooses records of each layer until its share is reached."""

    reasons = ("over_share",)

    def __init__(self, settings: MixStep, place: StepPlace) -> None:
        self._settings, self._key = settings, place.key
        layers, shares = {*place.layers}, {*settings.shares}
        if layers != shares:
            missing, unknown = sorted(layers - shares), sorted(shares - layers)
            problem = f"no share for {', '.join(missing)}" if missing else f"no source has {', '.join(unknown)}"
            raise UserError(
                f"{place.key}.shares: {problem}; the layers of the sources are {', '.join(sorted(layers))}, each "
                "needs a share (0 leaves it out)"
            )

    def sketch(self, records: Sequence[Record]) -> np.ndarray:
        """A random number of each record, from its content and the seed: uint64 [N]."""
        seed = self._settings.seed
        return np.fromiter(
            (xxhash.xxh3_64_intdigest(_key(record), seed) for record in records), np.uint64, len(records)
        )

    def decide(self, sketch_N: np.ndarray, table: Table) -> Decision:
        """Fill each layer's share. Raises UserError, naming the layer and what it lacks, unless it may shrink."""
        present = np.bincount(table.layer_N, weights=table.n_tokens_N, minlength=len(table.layers)).astype(np.int64)
        available = dict(zip(table.layers, present.tolist(), strict=True))
        wanted = self._wanted(available)
        code_N = np.ones(len(table), np.uint8)
        kept = {}
        for index, layer in enumerate(table.layers):
            at_M = np.flatnonzero(table.layer_N == index)
            chosen = at_M[_chosen(np.array(sketch_N[at_M]), np.array(table.n_tokens_N[at_M]), wanted[layer])]
            code_N[chosen] = 0
            kept[layer] = int(table.n_tokens_N[chosen].sum())
        notes = {
            layer: {
                "tokens": kept[layer],
                "percent": round(100 * kept[layer] / max(1, sum(kept.values())), 3),
                "available": available[layer],
            }
            for layer in table.layers
        }
        return Decision(code_N, {"layers": notes, "limited_by": self._limited_by(available)})

    def _limited_by(self, available: dict[str, int]) -> str:
        """What keeps the result from being larger: ``tokens`` or a layer."""
        limits = self._limits(available)
        scarcest = min(limits, key=lambda layer: (limits[layer], layer))
        tokens = self._settings.tokens
        return "tokens" if tokens is not None and tokens <= limits[scarcest] else scarcest

    def _limits(self, available: dict[str, int]) -> dict[str, float]:
        """By layer, the tokens of a whole mix in which it is used up."""
        shares = self._settings.shares
        return {layer: available[layer] / share * sum(shares.values()) for layer, share in shares.items() if share}

    def _wanted(self, available: dict[str, int]) -> dict[str, int]:
        """Tokens of each layer."""
        shares, tokens = self._settings.shares, self._settings.tokens
        whole = sum(shares.values())
        if self._settings.on_deficit == "shrink":
            most = min(self._limits(available).values())
            tokens = int(most if tokens is None else min(most, tokens))
        assert tokens is not None  # the schema wants it
        wanted = {layer: round(tokens * share / whole) for layer, share in shares.items()}
        lacking = [
            f"{layer} has {available[layer]} of {wanted[layer]} tokens, {wanted[layer] - available[layer]} are missing"
            for layer in sorted(shares)
            if available[layer] < wanted[layer]
        ]
        if lacking:
            raise UserError(
                f"{self._key}.tokens: {tokens}: {'; '.join(lacking)}; add data, lower tokens or the share, or set "
                "on_deficit: shrink"
            )
        if not tokens:
            empty = sorted(layer for layer, share in shares.items() if share and not available[layer])
            raise UserError(
                f"{self._key}.shares: no token of layer {', '.join(empty)} is left to mix; set its share to 0, or look "
                "at the steps before"
            )
        return wanted


def _key(record: Record) -> bytes:
    """What a record is chosen by: its content, so that neither order nor file names matter."""
    if isinstance(record.content, Document):
        return digest(record.content)
    prompt, reply, _ = record.content
    return prompt.key.encode() + prompt.prompt_ids.tobytes() + b"/" + reply.reply_ids.tobytes()


def _chosen(random_M: np.ndarray, n_tokens_M: np.ndarray, wanted: int) -> np.ndarray:
    """Places of records, by rising random number (equal ones by place), whose tokens are nearest to ``wanted``."""
    if not wanted:
        return np.empty(0, np.int64)
    order_M = np.argsort(random_M, kind="stable")
    sums_M = np.cumsum(n_tokens_M[order_M])
    count = int(np.searchsorted(sums_M, wanted))  # the first with which it is reached
    if count == len(sums_M):
        return order_M
    before = int(sums_M[count - 1]) if count else 0
    return order_M[: count + 1] if sums_M[count] - wanted <= wanted - before else order_M[:count]
