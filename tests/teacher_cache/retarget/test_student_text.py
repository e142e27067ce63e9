"""What a student reads of a cached sample, and where it lies in the teacher's text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from schemas.cache_config import CorpusConfig, SourceConfig, TeacherConfig
from schemas.chat_record import ChatRecord
from schemas.errors import CorruptCacheError, UserError
from support.models import tiny_tokenizer, write_random_teacher
from teacher_cache.corpus import Corpus
from teacher_cache.corpus.documents import BadRecord
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.retarget.retargeter import Retargeted, Retargeter, teacher_tokens
from teacher_cache.retarget.row_targets import Kind
from teacher_cache.retarget.student_text import StudentText, StudentTokenizer
from teacher_cache.teacher_vocabulary import teacher_vocabulary
from teacher_cache.token_table import Vocabulary

PLAIN_TEMPLATE = (
    "<s>{% for m in messages %}{{ m.role | upper }}: {{ m.content | trim }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}"
    "\n{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
CHAT = [
    {"role": "user", "content": "def f(x)?"},
    {"role": "assistant", "content": " return x + 1, Größe 😀 "},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "return"},
]


@pytest.fixture(scope="module")
def teacher() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(teacher: Any, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:

    folder = write_random_teacher(tmp_path_factory.mktemp("teacher") / "model")
    return teacher_vocabulary(TeacherConfig(path=str(folder)), config(), teacher)


def config(**changes: Any) -> CorpusConfig:
    return CorpusConfig(sources=[SourceConfig(path="unused")], **changes)


def sentencepiece(template: str | None = PLAIN_TEMPLATE, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """Byte fallback, a blank before the text, BOS before it: nothing like the teacher's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["return x + 1 def f user assistant Größe " * 3], trainer)
    tree = json.loads(tokenizer.to_str())  # bytes are ordinary tokens, as in real models
    tree["added_tokens"] = [token for token in tree["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def cached(
    tokenizer: Any, tmp_path: Path, document: dict[str, Any], **settings: Any
) -> tuple[TokenSample, ChatRecord | None]:
    (tmp_path / "corpus.jsonl").write_text(json.dumps(document) + "\n")
    source = SourceConfig(path=str(tmp_path / "corpus.jsonl"), format="jsonl")
    (sample,) = Corpus(CorpusConfig(sources=[source], max_tokens=200, **settings), tokenizer)
    return sample, ChatRecord.model_validate_json(sample.chat) if sample.chat else None


def pieces(sample: TokenSample, text: StudentText, tokenizer: Any) -> list[tuple[str, bytes]]:
    """Of the tokens that lie on the teacher's text: what they say, and what is there."""
    data, tokens = sample.text.encode(), text.tokens
    return [
        (tokenizer.convert_ids_to_tokens(int(i)), data[start:end])
        for i, start, end, stop in zip(*tokens, strict=True)
        if start >= 0 and not stop
    ]


def test_a_plain_text_is_covered_byte_by_byte(teacher: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    sample, _ = cached(teacher, tmp_path, {"text": "return x + 1, Größe 😀"})
    student = StudentTokenizer(sentencepiece())
    text = student.read(sample, None, vocabulary)
    assert text is not None
    tokens = text.tokens
    assert text.ids_J[0] == 1  # BOS, which lies nowhere
    assert tokens.start_J[0] == -1
    assert tokens.start_J[1] == 0
    assert tokens.end_J[-1] == len(sample.text.encode())
    np.testing.assert_array_equal(tokens.start_J[2:], tokens.end_J[1:-1])
    assert text.loss_mask_J.tolist() == [True] * (len(text.ids_J) - 1) + [False]
    data = sample.text.encode()
    for j in range(1, len(text.ids_J)):
        said = student.table.token(int(text.ids_J[j]))
        assert said.removeprefix(b" " if j == 1 else b"") == data[tokens.start_J[j] : tokens.end_J[j]]


def test_only_what_follows_a_prompt_is_learned(teacher: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    sample, _ = cached(teacher, tmp_path, {"prompt": "def f(x)? ", "completion": "return x"})
    text = StudentTokenizer(sentencepiece()).read(sample, None, vocabulary)
    assert text is not None
    learned = np.flatnonzero(text.loss_mask_J) + 1
    assert min(text.tokens.start_J[learned]) >= len("def f(x)?")
    assert max(text.tokens.end_J[learned]) == len(sample.text)


def test_contents_of_a_chat_lie_on_each_other_and_templates_on_nothing(
    teacher: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    sample, chat = cached(teacher, tmp_path, {"messages": CHAT})
    tokenizer = sentencepiece()
    text = StudentTokenizer(tokenizer).read(sample, chat, vocabulary)
    assert text is not None
    found = b"".join(there for _, there in pieces(sample, text, tokenizer)).decode()
    assert found.split() == ["return", "x", "+", "1,", "Größe", "😀"]  # the other is one token with a blank before it
    for said, there in pieces(sample, text, tokenizer):
        assert said.startswith("<0x") or said.replace("▁", " ").encode() == there
    stops = np.flatnonzero(text.tokens.is_stop_J)
    assert [tokenizer.convert_ids_to_tokens(int(text.ids_J[j])) for j in stops] == ["</s>", "</s>"]
    data = sample.text.encode()
    assert all(data[text.tokens.start_J[j] :].startswith((b"<|im_end|>", b" <|im_end|>")) for j in stops)
    said = tokenizer.decode(text.ids_J[1:][text.loss_mask_J[:-1]])
    assert said.replace(" ", "") == "returnx+1,Größe😀</s>return</s>"


def test_a_truncated_reply_has_no_stop(teacher: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    whole, _ = cached(teacher, tmp_path, {"messages": CHAT})
    room = len(whole.input_ids) - 3
    source = SourceConfig(path=str(tmp_path / "corpus.jsonl"), format="jsonl")
    (sample,) = Corpus(CorpusConfig(sources=[source], max_tokens=room, over_long_chat="truncate"), teacher)
    chat = ChatRecord.model_validate_json(sample.chat)
    text = StudentTokenizer(sentencepiece()).read(sample, chat, vocabulary)
    assert text is not None
    assert int(text.tokens.is_stop_J.sum()) == 1  # of the first reply


def test_a_piece_from_the_middle_of_a_chat_is_left_out(teacher: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    sample, _ = cached(teacher, tmp_path, {"messages": CHAT})
    assert StudentTokenizer(sentencepiece()).read(sample, ChatRecord(messages=[]), vocabulary) is None


def test_where_a_normaliser_changed_bytes_nothing_is_aligned(
    teacher: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    sample, _ = cached(teacher, tmp_path, {"text": "return X + return"})
    tokenizer = sentencepiece(normalizer=normalizers.Lowercase())
    text = StudentTokenizer(tokenizer).read(sample, None, vocabulary)
    assert text is not None
    found = b"".join(there for _, there in pieces(sample, text, tokenizer))
    assert found == b"return + return"


def test_a_chat_that_the_students_template_refuses_is_named(
    teacher: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    sample, chat = cached(teacher, tmp_path, {"messages": CHAT})
    student = StudentTokenizer(sentencepiece("{{ raise_exception('no such chats') }}"))
    with pytest.raises(BadRecord, match=f"sample {sample.key}.*no such chats"):
        student.read(sample, chat, vocabulary)


@pytest.mark.parametrize(
    "fields",
    [{"content": 5}, {"content": [{"type": "image"}]}, {"tool_calls": 5}, {"tool_calls": [{"function": {"name": 5}}]}],
)
def test_messages_of_an_untrusted_cache_that_are_none_are_refused(
    teacher: Any, vocabulary: Vocabulary, tmp_path: Path, fields: dict[str, Any]
) -> None:
    sample, chat = cached(teacher, tmp_path, {"messages": CHAT})
    assert chat is not None
    wrong = chat.messages[2].model_copy(update={"spans": {}, "fields": fields})
    chat = chat.model_copy(update={"messages": [*chat.messages[:2], wrong, chat.messages[3]]})
    with pytest.raises(BadRecord, match=f"sample {sample.key}: message 2.(content|tool_calls)"):
        StudentTokenizer(sentencepiece()).read(sample, chat, vocabulary)


@pytest.mark.parametrize("template", [None, "{% if %}"])
def test_a_student_without_a_template_that_renders_is_named(
    teacher: Any, vocabulary: Vocabulary, tmp_path: Path, template: str | None
) -> None:
    sample, chat = cached(teacher, tmp_path, {"messages": CHAT})
    tokenizer = sentencepiece(template)
    tokenizer.name_or_path = "models/base"
    student = StudentTokenizer(tokenizer)
    wanted = "has no chat template; add a chat_template" if template is None else "line 1: Expected an expression"
    with pytest.raises(UserError, match=rf"of the student \(models/base\).*{wanted}") as refused:
        student.read(sample, chat, vocabulary)
    assert not isinstance(refused.value, BadRecord)


def test_a_text_without_tokens_is_left_out(teacher: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    sample, _ = cached(teacher, tmp_path, {"text": "return x"})
    tokenizer = sentencepiece(normalizer=normalizers.Replace(Regex("."), ""))
    tokenizer.backend_tokenizer.post_processor = None
    assert StudentTokenizer(tokenizer).read(sample, None, vocabulary) is None


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast, name_or_path = False, "here"

    with pytest.raises(UserError, match="Slow is a slow tokenizer without offsets"):
        StudentTokenizer(Slow())  # type: ignore[arg-type]


def rows_of(sample: TokenSample) -> LogitsSample:
    """At every row the next token has 3/4, the one after it in the vocabulary 1/8."""
    ids = sample.input_ids.astype(np.int32)
    n = len(ids)
    following = np.roll(ids, -1)
    logprobs = np.log(np.tile(np.array([0.75, 0.125], np.float32), (n, 1)))
    following_logprob = np.full(n, np.log(0.75), np.float32)
    following_logprob[-1] = np.nan
    positions = np.arange(n, dtype=np.int32)
    counts, partition = np.full(n, 2, np.int32), np.zeros((n, 1), np.float32)
    return LogitsSample(
        n, positions, counts, np.stack([following, (following + 1) % 384], 1), logprobs, following_logprob, partition
    )


def test_the_same_tokenizer_on_both_sides_gives_the_teachers_rows(
    teacher: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for document in ({"text": "def f5(x): return x + 5"}, {"messages": CHAT}):
        sample, chat = cached(teacher, tmp_path, document)
        found = Retargeter(vocabulary, StudentTokenizer(teacher))(sample, chat, rows_of(sample), 0, 1.0)
        assert found is not None
        learned = np.flatnonzero(found.text.loss_mask_J)
        np.testing.assert_array_equal(found.text.ids_J, sample.input_ids)
        np.testing.assert_array_equal(found.text.loss_mask_J, sample.loss_mask)
        kinds = found.targets.kind_J[learned + 1]
        assert set(kinds.tolist()) <= {Kind.EQUAL, Kind.STOP, Kind.BLANK}
        for j in learned[kinds != Kind.BLANK] + 1:
            assert found.targets.ids_JE[j, 0] == sample.input_ids[j]
            assert found.targets.weights_JE[j, 0] >= 0.75 - 1e-6


def test_weights_are_softened_and_never_above_one(teacher: Any, tmp_path: Path) -> None:
    sample, _ = cached(teacher, tmp_path, {"text": "return x"})
    rows = rows_of(sample)
    rows.log_partition[:] = np.log(0.75**0.5 + 0.125**0.5 + 0.125**0.5)
    found = teacher_tokens(sample, rows, 0, 2.0)
    wanted = np.array([0.75, 0.125]) ** 0.5 / (0.75**0.5 + 2 * 0.125**0.5)
    np.testing.assert_allclose(found.weights_PE[0], wanted, rtol=1e-6)
    np.testing.assert_allclose(found.realised_P[0], wanted[0], rtol=1e-6)
    assert found.realised_P[-1] == 0  # no token follows the last one
    assert found.row_S.tolist() == [-1, *range(len(sample.input_ids) - 1)]
    rows.log_partition[:] = -1.0
    assert teacher_tokens(sample, rows, 0, 2.0).weights_PE.sum(axis=1).max() == pytest.approx(1.0)


def test_spans_that_go_back_are_corrupt(teacher: Any, tmp_path: Path) -> None:
    sample, _ = cached(teacher, tmp_path, {"text": "return x"})
    sample.byte_start[1:] = 0
    teacher_tokens(sample, rows_of(sample), 0, 1.0)
    sample.byte_end[:] = np.sort(sample.byte_end)[::-1]
    with pytest.raises(CorruptCacheError, match=f"sample {sample.key}: byte spans of tokens go back in the text"):
        teacher_tokens(sample, rows_of(sample), 0, 1.0)


def words(found: Retargeted, tokenizer: Any) -> list[dict[str, float]]:
    """What each student token's row learns, by name."""
    return [
        {tokenizer.convert_ids_to_tokens(int(i)): float(w) for i, w in zip(ids, weights, strict=True) if w > 0}
        for ids, weights in zip(found.targets.ids_JE, found.targets.weights_JE, strict=True)
    ]


def test_byte_tokens_stand_only_for_what_the_vocabulary_lacks(
    teacher: Any, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """A SentencePiece student has both ``x`` and ``<0x78>``; text becomes the first."""
    sample, _ = cached(teacher, tmp_path, {"text": "(x)y"})
    tokenizer = sentencepiece()
    found = Retargeter(vocabulary, StudentTokenizer(tokenizer))(sample, None, rows_of(sample), 0, 1.0)
    assert found is not None
    assert tokenizer.convert_ids_to_tokens(found.text.ids_J.tolist())[2:] == ["<0x28>", "x", "<0x29>", "<0x79>"]
    taught = words(found, tokenizer)
    assert [max(each, key=lambda name: each[name]) for each in taught[3:]] == ["x", "<0x29>", "<0x79>"]


def with_bos(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return tokenizer


def test_a_blank_before_the_text_on_one_side_alone_is_not_taught(
    vocabulary: Vocabulary, teacher: Any, tmp_path: Path
) -> None:
    """The teacher's BOS row predicts ``return``; the student says it with a blank, which is another token."""
    tokenizer, bos = sentencepiece(), with_bos(tiny_tokenizer())
    sample, _ = cached(bos, tmp_path, {"text": "return x"})
    assert sample.input_ids[0] == 1
    found = Retargeter(vocabulary, StudentTokenizer(tokenizer))(sample, None, rows_of(sample), 0, 1.0)
    assert found is not None
    assert found.text.loss_mask_J[0]
    assert found.targets.kind_J[:3].tolist() == [Kind.NO_ROW, Kind.UNCLEAR, Kind.EQUAL]


def test_a_blank_before_the_text_on_both_sides_is_part_of_the_tokens(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    sample, _ = cached(tokenizer, tmp_path, {"text": "return x"})
    write_random_teacher(tmp_path / "teacher")
    spoken = teacher_vocabulary(TeacherConfig(path=str(tmp_path / "teacher")), config(), tokenizer)
    rows = rows_of(sample)
    found = Retargeter(spoken, StudentTokenizer(tokenizer))(sample, None, rows, 0, 1.0)
    assert found is not None
    np.testing.assert_array_equal(found.text.ids_J[:-1], sample.input_ids[: len(found.text.ids_J) - 1])
    taught = words(found, tokenizer)
    assert [taught[1]["\u2581return"], taught[2]["\u2581x"]] == pytest.approx([0.75, 0.75], rel=1e-6)
