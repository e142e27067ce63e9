"""Measured statistics of a cache, as key figures, plots and a table for the report."""

import math
from functools import partial
from typing import Any

from rich.filesize import decimal

from teacher_cache.pages.svg_parts import Figure
from tools.looking.figures import perplexity
from tools.looking.stats import POSITION_BINS, Figures, Stats
from tools.report import plots

SHOWN_GROUPS = 20


def key_figures(stats: Stats) -> list[dict[str, str]]:
    """The headline figures of the page, with their labels."""
    totals, overall = stats.manifest.totals, stats.overall
    size = sum(stats.manifest.sizes().values())
    about = "mean entropy, nats" if stats.entropy_is_exact else "mean entropy, nats, at least"
    pairs = [
        (f"{totals.samples:,}", "samples"),
        (f"{totals.tokens:,}", "tokens"),
        (decimal(size), "stored"),
        (f"{size / max(1, totals.tokens):,.0f}", "bytes a token"),
        (f"{overall.rows['entropy'].mean:.2f}", about),
        (f"{perplexity(overall.rows['surprise'].mean):,.2f}", "perplexity of the text"),
    ]
    return [{"value": value, "what": what} for value, what in pairs]


def reading(stats: Stats) -> str:
    """What was measured, and definitions of the terms."""
    n, total = stats.overall.samples, stats.samples_in_cache
    part = f"All {total:,} samples" if n == total else f"{n:,} of {total:,} samples, spread evenly over the cache"
    kind = (
        "exact, as stored with the draws"
        if stats.entropy_is_exact
        else "of the stored entries and one bucket for all other tokens, a lower bound of the full distribution’s"
    )
    return (
        f"{part}; only rows in the loss mask. Entropy is in nats at temperature 1, {kind}. Support is exp(entropy), "
        "the number of equally likely tokens with that entropy. Stored is the probability mass of the entries in the "
        "cache. Decorative tokens are Markdown markup, emoji and the like."
    )


def figures(stats: Stats) -> list[Figure]:
    """The plots."""
    entropy, coverage = stats.overall.rows["entropy"], stats.overall.rows["coverage"]
    high = max(0.5, math.ceil(2 * entropy.quantile(0.995)) / 2)
    low = min(0.9, math.floor(10 * coverage.quantile(0.02)) / 10)
    bound = "" if stats.entropy_is_exact else ", at least"
    entropy_caption = f"mean {{:.2f}}, median {{:.2f}}, 95 % of rows below {{:.2f}}{bound and ': lower bounds'}".format
    coverage_caption = "mean {:.3f}, median {:.4f}, 95 % of rows above {:.3f}".format
    sizes = sorted(stats.manifest.bytes_per_token().items(), key=lambda item: -item[1])
    plotted = [
        Figure(
            f"Entropy of rows{bound}",
            plots.histogram(
                "Histogram of entropy", plots.rebinned(entropy.counts, entropy.high, 0, high, 36), 0, high, "nats"
            ),
            entropy_caption(entropy.mean, entropy.quantile(0.5), entropy.quantile(0.95)),
        ),
        Figure(
            "Stored probability mass",
            plots.histogram(
                "Histogram of the stored mass",
                plots.rebinned(coverage.counts, 1, low, 1, 36),
                low,
                1,
                "of a row’s mass",
            ),
            coverage_caption(coverage.mean, coverage.quantile(0.5), coverage.quantile(0.05)),
        ),
    ]
    rows, sums = stats.entropy_by_position
    longest = stats.manifest.corpus.settings.max_tokens
    filled = rows > 0
    middles = (filled.nonzero()[0] + 0.5) * longest / POSITION_BINS
    if filled.sum() > 1:
        last_position = float((filled.nonzero()[0][-1] + 1) * longest / POSITION_BINS)
        means = sums[filled] / rows[filled]
        plotted.append(
            Figure(
                f"Entropy along the sequence{bound}",
                plots.line("Mean entropy by position", middles, means, last_position, "position, tokens", "mean, nats"),
                f"{means[0]:.2f} nats at the start, {means[-1]:.2f} at the end",
            )
        )
    plotted.append(
        Figure(
            "Size by kind of file",
            plots.bars("Bytes a token by signal", sizes, "B"),
            f"{sum(size for _, size in sizes):,.1f} bytes a token in all",
        )
    )
    return plotted


def groups(stats: Stats) -> list[list[dict[str, Any]]]:
    """The table's rows: all samples, layers of the data mix, sources."""
    by_size = sorted(stats.mix_layers.by_name.items(), key=lambda item: (-item[1].rows["entropy"].n, item[0]))
    high = max(0.5, stats.overall.rows["entropy"].quantile(0.99))
    group = partial(_group, high=high, at_least="" if stats.entropy_is_exact else "≥ ")
    return [
        [group("", "all", stats.overall)],
        [group("layer", name, figures) for name, figures in by_size[:SHOWN_GROUPS]],
        [group("source", name, figures) for name, figures in stats.largest_sources(SHOWN_GROUPS).items()],
    ]


def _group(kind: str, name: str, figures: Figures, high: float, at_least: str) -> dict[str, Any]:
    found = figures.summary()
    entropy = found["entropy"]
    named = ", ".join(f"{key[1:]} %: {entropy[key]:.2f}" for key in ("p05", "p25", "p50", "p75", "p95"))
    return {
        "kind": kind,
        "name": name,
        "strip": plots.strip(f"Entropy, {named}", entropy, high),
        "before": [f"{found['samples']:,}", f"{found['rows']:,}", f"{at_least}{entropy['mean']:.3f}"],
        "after": [
            f"{at_least}{found['effective_support']['mean']:,.1f}",
            f"{found['top1_mass']['mean']:.3f}",
            f"{found['coverage']['mean']:.3f}",
            f"{found['response_length']['mean']:,.1f}",
            f"{found['perplexity']:,.2f}",
            f"{100 * found['decorative_share']:.2f} %",
        ],
    }
