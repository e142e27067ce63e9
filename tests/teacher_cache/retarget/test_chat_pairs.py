"""Chats between the templates of SmolLM2, Qwen3 and DeepSeek: what is aligned lies in the same reply on both sides.

The judge finds contents by rendering the chat again with a probe in place of each, and knows what the student reads
from a corpus that the student's own tokenizer reads.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from schemas.cache_config import CorpusConfig, SourceConfig, TeacherConfig
from schemas.chat_record import ChatRecord
from schemas.errors import UserError
from support.models import write_random_teacher
from teacher_cache.corpus import Corpus
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.retarget.retargeter import Retargeter
from teacher_cache.retarget.row_targets import TAUGHT, Kind
from teacher_cache.retarget.student_text import StudentText, StudentTokenizer
from teacher_cache.teacher_vocabulary import teacher_vocabulary

SMOLLM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}"
    "{% endif %}# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}"
    "{% for c in m.tool_calls %}{% if not loop.first or content %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEEPSEEK = (
    "{% set ns = namespace(system='', tool=false) %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ bos_token }}{{ ns.system }}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.tool = false %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{{ '<｜Assistant｜>' + (m.content or '') }}"
    "<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>"
    "{{ c.function.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    "{% elif m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1] %}"
    "{{ ('' if ns.tool else '<｜Assistant｜>') + content + '<｜end▁of▁sentence｜>' }}{% set ns.tool = false %}"
    "{% elif m.role == 'tool' %}{% set ns.tool = true %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"
    "{% endif %}{% endfor %}{% if add_generation_prompt and not ns.tool %}<｜Assistant｜>{% endif %}"
)
TEMPLATES = {"smollm": SMOLLM, "qwen": QWEN, "deepseek": DEEPSEEK}
SPECIAL = {
    "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "deepseek": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    + [f"<｜tool▁{name}｜>" for name in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end")]
    + [f"<｜tool▁output▁{name}｜>" for name in ("begin", "end")],
}
NOT_SPECIAL = {"smollm": [], "qwen": ["<think>", "</think>", "<tool_call>", "</tool_call>"], "deepseek": ["</think>"]}
EOS = {"smollm": "<|im_end|>", "qwen": "<|im_end|>", "deepseek": "<｜end▁of▁sentence｜>"}

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def turns(*said: str, **reply: Any) -> list[dict[str, Any]]:
    """A user and an assistant, one after the other; the last reply has other keys, too."""
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    messages[-1].update(reply)
    return messages


SHAPES: dict[str, list[dict[str, Any]]] = {
    "plain": turns("def f(x)?", "return x + 1"),
    "system": [{"role": "system", "content": "Be brief."}, *turns("2 + 2?", "It is 4.")],
    "many turns": turns("user", "assistant", "assistant", "user", "system", "yes"),
    "user at the end": turns("def f(x)?", "return x + 1", "thanks"),
    "reasoning": turns("2 + 2?", "4", reasoning_content="2 + 2 = 4"),
    "reasoning in an earlier turn": [*turns("2?", "yes", reasoning_content="yes, yes"), *turns("more?", "no")],
    "reasoning in the content": turns(
        "2 + 2?", "<think>\n2 + 2 is 4\n</think>\n\n4", "so?", "<think>\nso\n</think>\n\nso so"
    ),
    "blanks around it": turns("list", "\n\n    return x\n\n", "more", "  x  "),
    "empty": turns("say nothing", "", "and now?", "return"),
    "special texts": turns("how?", "write <|im_end|> or <｜end▁of▁sentence｜> or </s> or <｜User｜>x", "more", "end"),
    "scripts": turns("größer?", "Größe é 中文字符，😀👩‍👩‍👧 עברית", "?", "é"),
    "tags": turns("?", "<b>think</b> [1] think", "?", "think"),
    "tools": [
        *turns("1 + 2?", "I add.", tool_calls=[CALL]),
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ],
    "a call alone": [
        *turns("1 + 2?", "", tool_calls=[CALL]),
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ],
}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the family's special tokens and template; every family cuts words differently."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family != "deepseek")
    tokenizer.decoder = decoders.ByteLevel()
    size = {"smollm": 330, "qwen": 360, "deepseek": 300}[family]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = {
        "smollm": "return x + 1",
        "qwen": "It is 4.\n\n so think write or user Größe 中文",
        "deepseek": "\n\n    x yes",
    }
    tokenizer.train_from_iterator([texts[family]] * 5, trainer)
    tokenizer.add_special_tokens(SPECIAL[family])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL[family]])
    bos = {"bos_token": SPECIAL[family][0]} if family == "deepseek" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS[family], chat_template=TEMPLATES[family], **bos
    )


TOKENIZERS = {family: tokenizer_of(family) for family in TEMPLATES}


def read(family: str, messages: list[dict[str, Any]], tools: Any, place: Path, **settings: Any) -> TokenSample | None:
    """The chat as a corpus of this family's tokenizer reads it; None if it is left out."""
    (place / "chat.jsonl").write_text(json.dumps({"messages": messages, "tools": tools}) + "\n")
    source = SourceConfig(path=str(place / "chat.jsonl"), format="jsonl")
    config = CorpusConfig(**{"sources": [source], "max_tokens": 2000, "on_bad_record": "drop", **settings})
    with suppress(UserError):  # an empty corpus
        return next(iter(Corpus(config, TOKENIZERS[family])))
    return None


def render(family: str, messages: list[dict[str, Any]], tools: Any) -> str | None:
    document = Document("", "here", "", "", messages, tools)
    try:
        config = CorpusConfig(sources=[SourceConfig(path="unused")])
        return ChatRenderer(TOKENIZERS[family], config).render(document).text
    except BadRecord:
        return None


def contents(family: str, messages: list[dict[str, Any]], tools: Any) -> dict[tuple[int, str], tuple[int, int]]:
    """Byte span of the stripped text of each reply, by message and key, where a probe in its place finds one."""
    text, found = render(family, messages, tools), {}
    assert text is not None
    for number, message in enumerate(messages):
        for key in ("content", "reasoning_content"):
            said = message.get(key, "")
            core = said.strip()
            if "</think>" in core and core not in text:
                core = core.split("</think>")[-1].strip()
            if message["role"] != "assistant" or not core:
                continue
            if "</think>" in core:
                before, _, after = text.partition(core)
                assert core not in after
                found[number, key] = (len(before.encode()), len((before + core).encode()))
                continue
            probed = [dict(each) for each in messages]
            at = said.rindex(core)
            probed[number][key] = said[:at] + "\U0010abcd" + said[at + len(core) :]
            other = render(family, probed, tools)
            if other is None or "\U0010abcd" not in other:
                continue
            before, _, after = other.partition("\U0010abcd")
            assert text == before + core + after
            found[number, key] = (len(before.encode()), len((before + core).encode()))
    return found


def rows_of(sample: TokenSample) -> LogitsSample:
    """Every row is sure of the token that follows."""
    n = len(sample.input_ids)
    following = np.roll(sample.input_ids.astype(np.int32), -1)[:, None]
    nothing = np.zeros((n, 1), np.float32)
    return LogitsSample(
        n, np.arange(n, dtype=np.int32), np.ones(n, np.int32), following, nothing, nothing[:, 0], nothing
    )


@pytest.fixture(scope="module")
def retargeters(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Retargeter]:
    folder = write_random_teacher(tmp_path_factory.mktemp("teacher") / "model")
    corpus = CorpusConfig(sources=[SourceConfig(path="unused")])
    students = {family: StudentTokenizer(TOKENIZERS[family]) for family in TEMPLATES}
    spoken = {
        family: teacher_vocabulary(TeacherConfig(path=str(folder)), corpus, TOKENIZERS[family]) for family in TEMPLATES
    }
    return {(a, b): Retargeter(spoken[a], students[b]) for a in TEMPLATES for b in TEMPLATES}


def spelled(family: str, ids: np.ndarray) -> list[bytes]:
    """The bytes of tokens as the rendered text has them."""
    names = TOKENIZERS[family].convert_ids_to_tokens(ids.tolist())
    added = set(SPECIAL[family] + NOT_SPECIAL[family])
    decoder = TOKENIZERS[family].backend_tokenizer.decoder
    letters = {letter: byte for byte, letter in byte_letters()}
    assert decoder is not None
    return [name.encode() if name in added else bytes(letters[letter] for letter in name) for name in names]


def byte_letters() -> list[tuple[int, str]]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [(byte, chr(byte)) for byte in printable] + [(byte, chr(256 + n)) for n, byte in enumerate(others)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("student", TEMPLATES)
@pytest.mark.parametrize("teacher", TEMPLATES)
def test_what_is_aligned_lies_in_the_same_reply_on_both_sides(
    retargeters: dict[tuple[str, str], Retargeter], tmp_path: Path, teacher: str, student: str, shape: str
) -> None:
    messages, tools = SHAPES[shape], TOOLS if "call" in shape or "tool" in shape else None
    sample = read(teacher, messages, tools, tmp_path)
    if sample is None:
        assert (teacher, shape) == ("smollm", "a call alone")  # its template writes no calls
        return
    chat = ChatRecord.model_validate_json(sample.chat)
    data = sample.text.encode()
    restored = [message.restored(data) for message in chat.messages]
    if shape != "reasoning in the content" and shape != "blanks around it":
        assert restored == messages
    wanted = read(student, restored, tools, tmp_path)
    retarget = retargeters[teacher, student]
    if wanted is None:
        with pytest.raises(BadRecord):
            retarget.read(sample, chat)
        return
    found = retarget(sample, chat, rows_of(sample), 0, 1.0)
    assert found is not None
    check_student(found.text, wanted)
    check_aligned(
        found.text, student, data, contents(teacher, messages, tools), contents(student, restored, tools), shape
    )
    check_stops(found.text, sample, student, chat)
    learned = np.flatnonzero(found.text.loss_mask_J) + 1
    taught = learned[np.isin(found.targets.kind_J[learned], TAUGHT)]
    assert len(taught) or (shape == "empty" and len(learned) < 3)
    tokens = found.text.tokens
    assert ((tokens.start_J[taught] >= 0) & ((tokens.end_J > tokens.start_J) | tokens.is_stop_J)[taught]).all()
    for j in taught[found.targets.kind_J[taught] != Kind.INSIDE]:
        if not found.targets.crosses_J[j] and found.targets.kind_J[j] in (Kind.EQUAL, Kind.STOP):
            assert found.targets.ids_JE[j, 0] == tokens.ids_J[j]


def check_student(text: StudentText, wanted: TokenSample) -> None:
    np.testing.assert_array_equal(text.ids_J, wanted.input_ids)
    np.testing.assert_array_equal(text.loss_mask_J, wanted.loss_mask)


def check_aligned(
    text: StudentText,
    student: str,
    data: bytes,
    theirs: dict[tuple[int, str], tuple[int, int]],
    ours: dict[tuple[int, str], tuple[int, int]],
    shape: str,
) -> None:
    """Aligned tokens have the same bytes, in the same place of the same reply; no other token of a reply is left."""
    tokens = text.tokens
    said = spelled(student, text.ids_J)
    ends = np.cumsum([len(each) for each in said])
    special = set(SPECIAL[student])
    names = TOKENIZERS[student].convert_ids_to_tokens(text.ids_J.tolist())
    covered = 0
    for j, here in enumerate(said):
        start, end = int(ends[j]) - len(here), int(ends[j])
        own = [key for key, (first, last) in ours.items() if start < last and end > first]
        if tokens.start_J[j] < 0 or tokens.is_stop_J[j]:
            whole = [key for key in own if key in theirs and ours[key][0] <= start and end <= ours[key][1]]
            assert not whole or names[j] in special, (names[j], whole)
            continue
        assert data[tokens.start_J[j] : tokens.end_J[j]] == here
        covered += 1
        if own:
            (key,) = own
            assert key in theirs
            assert tokens.end_J[j] - theirs[key][1] == end - ours[key][1]
        else:
            assert here.isspace()
            assert shape == "blanks around it"
            assert any(abs(start - edge) < 8 for span in ours.values() for edge in span)
    assert covered


def check_stops(text: StudentText, sample: TokenSample, student: str, chat: ChatRecord) -> None:
    tokens, ids = text.tokens, sample.input_ids
    for j in np.flatnonzero(tokens.is_stop_J):
        assert TOKENIZERS[student].convert_ids_to_tokens(int(tokens.ids_J[j])) == EOS[student]
    assert tokens.is_stop_J.sum() <= sum(message.closed for message in chat.messages)
    assert len(ids)


@pytest.mark.parametrize("student", TEMPLATES)
@pytest.mark.parametrize("teacher", TEMPLATES)
def test_each_whole_reply_has_a_stop_and_a_truncated_one_has_none(
    retargeters: dict[tuple[str, str], Retargeter], tmp_path: Path, teacher: str, student: str
) -> None:
    messages = SHAPES["many turns"]
    whole = read(teacher, messages, None, tmp_path)
    assert whole is not None
    last = np.flatnonzero(whole.loss_mask)[-1]
    for room in range(last - 3, len(whole.input_ids) + 1):
        sample = read(teacher, messages, None, tmp_path, max_tokens=room, over_long_chat="truncate")
        assert sample is not None
        chat = ChatRecord.model_validate_json(sample.chat)
        found = retargeters[teacher, student](sample, chat, rows_of(sample), 0, 1.0)
        assert found is not None
        stops = np.flatnonzero(found.targets.kind_J == Kind.STOP)
        replies = 3 if room > last + 1 else 2
        assert len(stops) == replies == found.text.tokens.is_stop_J.sum(), room
        assert (found.targets.ids_JE[stops, 0] == found.text.ids_J[stops]).all()
