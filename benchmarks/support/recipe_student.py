"""``python -m benchmarks.support.recipe_student``: the student of `make recipe` that has another tokenizer.

Its weights are those of the other students at their start; its tokenizer is Qwen3.6's, cut to what the recipe's texts
need (``transplant``). A team that has a model with a tokenizer of its own needs none of this.
"""

import shutil
import sys

from benchmarks.support import tokenizers
from benchmarks.support.recipe_data import FOLDER
from teacher_cache.api import open_cache

OWN, OTHER = FOLDER / "students/student-init", FOLDER / "other-tokenizer"
CACHES = (FOLDER / "heavy/cache", FOLDER / "held-out/cache")


def main() -> int:
    """Write the student unless it exists; returns the exit status."""
    if OTHER.exists():
        return 0
    problem = tokenizers.install()
    if problem is not None:
        print(f"error: the tokenizer cannot be installed: {problem}", file=sys.stderr)
        return 1
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.support.transplant import cut_tokenizer, transplant

    texts = [sample.text for place in CACHES for sample in open_cache(str(place))]
    own = AutoTokenizer.from_pretrained(OWN)
    other = cut_tokenizer(tokenizers.qwen(), texts)
    other.chat_template = own.chat_template  # both write turns between <|im_start|> and <|im_end|>
    model = AutoModelForCausalLM.from_pretrained(OWN, dtype=torch.float32)
    transplant(model, own, other)
    unfinished = OTHER.with_name(f"{OTHER.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    other.save_pretrained(unfinished)
    unfinished.rename(OTHER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
