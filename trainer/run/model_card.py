"""The final model's card: teacher, caches (with digests), training, losses, validation."""

from collections.abc import Sequence
from typing import Any

from schemas.manifest import Manifest, TeacherInfo
from schemas.train_config import AdapterConfig, QuantizationConfig, TrainConfig, WeightSchedule
from teacher_cache.text import code_span
from trainer.losses.objective import Objective
from trainer.measured_pruning import PrunedFfns


def model_card(
    config: TrainConfig,
    objective: Objective,
    manifests: Sequence[Manifest],
    summary: dict[str, Any],
    pruned: PrunedFfns | None = None,
    base: str = "",
) -> str:
    """Render ``README.md``: Markdown with a YAML header.

    manifests: of the caches trained on. summary: as in ``summary.json``. pruned: what ``student.ffn`` removed. base:
    fingerprint of an adapter's frozen model.
    """
    student = config.student
    if student.config is not None:
        start = f"random weights for the configuration `{student.config}`"
    elif student.from_layers is not None:
        start = f"layers {student.from_layers} of `{student.teacher}`"
    else:
        start = f"the model `{student.checkpoint or student.teacher}`"
    if pruned is not None:
        start += ", without the least active channels of its FFNs"
    terms = [f"- {loss.title()}: {_weight(loss.settings.weight)}" for loss in objective.losses.values()]
    lines = [
        "---",
        f"library_name: {'transformers' if student.adapter is None else 'peft'}",
        "pipeline_tag: text-generation",
        "tags: [distillation]",
        "---",
        f"# Student of {' and '.join(dict.fromkeys(code_span(manifest.teacher.name) for manifest in manifests))}",
        "",
        f"Distilled from a cache of the teacher's next-token distributions; the student started from {start}.",
        "",
        *dict.fromkeys(_teacher(manifest.teacher) for manifest in manifests),
        *dict.fromkeys(_cache(manifest) for manifest in manifests),
        *(
            [f"- rows turned into weights on this student's own tokens (align: {summary['align']})"]
            * bool(summary["align"])
        ),
        *([] if pruned is None else _pruning(pruned)),
        *([] if student.adapter is None else [_adapter(student.adapter, base)]),
        *([] if config.quantization is None else _quantization(config.quantization)),
        f"- training: {summary['steps']} steps of {summary['rows_per_step']} rows, {summary['tokens']} tokens, "
        f"AdamW, learning rate {config.optimizer.lr}, seed {config.loop.seed}",
        f"- weights are those of step {summary['final_step']}",
        "",
        "## Losses",
        "",
        *terms,
        "",
    ]
    if summary["validation"]:
        lines += ["## Validation", "", "| measure | value |", "|---|---|"]
        is_bound = not summary["validation_kl_is_exact"]
        names = {"kl": "kl (lower bound: tokens not stored count as one)" if is_bound else "kl"}
        lines += [f"| {names.get(name, name)} | {value:.6g} |" for name, value in summary["validation"].items()]
        lines.append("")
    for licence in dict.fromkeys(manifest.provenance.licence for manifest in manifests):
        lines += [f"Licence of the cache: {code_span(licence)}", ""] if licence else []
    return "\n".join(lines)


def _teacher(teacher: TeacherInfo) -> str:
    revision = f", revision {code_span(teacher.revision)}" if teacher.revision else ""
    return (
        f"- teacher: {code_span(teacher.name)}{revision} ({code_span(teacher.architecture)}), "
        f"fingerprint `{teacher.fingerprint}`"
    )


def _cache(manifest: Manifest) -> str:
    totals = manifest.totals
    return f"- cache: manifest digest `{manifest.digest()}`, {totals.samples} samples, {totals.tokens} tokens"


def _pruning(pruned: PrunedFfns) -> list[str]:
    widths = [f"{code_span(key)} {_change(*width)}" for key, width in pruned.widths.items()]
    return [
        f"- FFN channels removed before training: {', '.join(widths)}; those with the smallest sum of absolute "
        f"activations over {pruned.tokens} tokens of {pruned.samples} samples of the cache with manifest digest "
        f"`{pruned.cache}`",
        f"- parameters of the model that was cut, all layers: {_change(*pruned.parameters)}",
    ]


def _adapter(settings: AdapterConfig, base: str) -> str:
    layers = "attention and FFN" if settings.targets is None else ", ".join(settings.targets)
    frozen = "" if settings.base_bits is None else f", whose linear layers were held in {settings.base_bits} bits (NF4)"
    return (
        f"- trained as a LoRA adapter of rank {settings.r}, alpha {settings.alpha}, on the linear layers of {layers} "
        f"of the frozen model that it started from, fingerprint `{base}`{frozen}"
    )


def _quantization(settings: QuantizationConfig) -> list[str]:
    layers = "attention and FFN" if settings.targets is None else ", ".join(settings.targets)
    lines = [
        f"- weights of the linear layers of {layers} lie on a grid of {settings.bits} bits with a signed "
        f"scale ({settings.scale}) for each group of {settings.group_size} inputs; trained that way from the start"
    ]
    rounding = settings.activations
    if rounding is not None and rounding.bits is not None:
        lines.append(f"- in training, their inputs were rounded to {rounding.bits} bits, token by token")
    elif rounding is not None:
        levels = "" if rounding.levels is None else f" and rounded to {rounding.levels} values"
        lines.append(f"- in training, their inputs were clipped at percentile {rounding.clip} of a calibration{levels}")
    return lines


def _change(before: int, after: int) -> str:
    return f"{before:,} → {after:,} (−{100 * (1 - after / before):.1f} %)"


def _weight(weight: WeightSchedule) -> str:
    if weight.start == weight.end:
        return f"weight {weight.start}"
    held = f" after {weight.hold:.0%} of training" if weight.hold else ""
    return f"weight {weight.start} → {weight.end}, linear{held}"
