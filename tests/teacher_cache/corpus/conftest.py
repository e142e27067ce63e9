"""Tiny tokenizers of the types that teachers use, trained on a few lines of text."""

import itertools
import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from schemas.cache_config import CorpusConfig, SourceConfig
from teacher_cache.corpus import Corpus

TEXT = [
    "def add(a, b):\n    return a + b\n",
    "for word in the quick brown fox jumps over the lazy dog: print(word)\n",
    "日本語のテキスト、これは文です。日本語のテキスト。",
    "smile 😀😃 and é à ü",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def byte_level():
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def new_tokenizer():
    """Factory of tokenizers like ``byte_level`` that a test may modify."""
    return byte_level_tokenizer


@pytest.fixture(scope="session")
def sentencepiece():
    """SentencePiece-like BPE: Metaspace, byte fallback, BOS and EOS around a text; knows no CJK and no emoji."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT[:2], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][: len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def lower_case():
    """Byte-level BPE behind a lower-casing normaliser: the tokens' bytes do not spell the text."""
    fast = byte_level_tokenizer()
    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    return fast


@pytest.fixture
def make_corpus(tmp_path, byte_level):
    """Write records as JSON lines (strings are plain texts, lists are chats) and open them as a Corpus."""

    numbers = itertools.count()

    def make(records, tokenizer=None, source=None, **settings):
        path = tmp_path / f"corpus-{next(numbers)}" / "data.jsonl"
        path.parent.mkdir()
        lines = [json.dumps({"text" if isinstance(record, str) else "messages": record}) for record in records]
        path.write_text("".join(line + "\n" for line in lines))
        config = CorpusConfig(sources=[SourceConfig(path=str(path), format="jsonl", **(source or {}))], **settings)
        return Corpus(config, byte_level if tokenizer is None else tokenizer)

    return make
