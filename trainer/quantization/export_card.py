"""The model card of an exported folder."""

from typing import Any

from teacher_cache.text import code_span
from trainer.quantization.model_folders import FORMATS, MIN_READER

RUNS_IN = {
    "dense": (
        f"Needs compressed-tensors {MIN_READER} or later, the first that packs integers densely. vLLM has kernels for "
        "it on GPUs; on CPUs it needs the plugin of the project that made the file."
    ),
    "container": "The same integers as the dense file, in a wider type that more kernels run.",
    "folded": "The same weights as the quantised files, in bfloat16: loads in every program, and saves no space.",
}


def export_card(model: str, form: str, summary: dict[str, Any]) -> str:
    """Render ``README.md``; model: the source's name; form: of ``FORMATS``; summary: of the export."""
    assert form in FORMATS
    calibration, differences = summary["calibration"], summary["largest_difference"]
    checks = [
        f"- in {engine}, log-probabilities differ from those of the folded bfloat16 copy by at most {by_form[form]:.2g}"
        for engine, by_form in differences.items()
        if form in by_form
    ]
    before = " before training" if summary["trained"] else ""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [compressed-tensors, {summary['bits']}-bit, awq]",
        "---",
        f"# {code_span(model)} with {summary['bits']}-bit weights",
        "",
        f"The weights of {summary['layers']} linear layers are {summary['bits']}-bit integers, symmetric, with a "
        f"signed scale for each group of {summary['group_size']} inputs. Activation-aware scales (AWQ) are folded into "
        "norms and neighbouring layers. "
        + "The model was trained with these weights, to which its own were rounded in every step. " * summary["trained"]
        + "Embeddings, output head and norms keep 16 bits.",
        "",
        RUNS_IN[form],
        "",
        f"- {summary['bits_per_weight'][form]:.3g} bits a weight of these layers",
        f"- calibration: {calibration['samples']} sequences, {calibration['tokens']} tokens",
        f"- relative error of these layers' outputs{before}: {summary['output_error']:.3g} "
        f"(without activation-aware scales: {summary['output_error_without_scales']:.3g})",
        *checks,
        "",
    ]
    return "\n".join(lines)
