import json

import numpy as np
import pytest
import xxhash
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerBase

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus import Corpus, sequences

LONG = "the quick brown fox 日本語😀 jumps over the lazy dog\n" * 20


def chat(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(turns)]


def check(sample, tokenizer):
    """Invariants of every sample: dtypes, shapes, spans within the text, no loss in the last row."""
    length = len(sample.input_ids)
    types = [sample.input_ids.dtype, sample.loss_mask.dtype, sample.byte_start.dtype, sample.byte_end.dtype]
    assert types == [np.uint32, bool, np.uint32, np.uint32]
    assert len(sample.loss_mask) == len(sample.byte_start) == len(sample.byte_end) == length
    assert not sample.loss_mask[-1]
    assert sample.loss_mask.any()
    data = sample.text.encode()
    assert b"".join(data[a:b] for a, b in zip(sample.byte_start, sample.byte_end, strict=True)) == data
    assert tokenizer.decode(sample.input_ids.tolist(), skip_special_tokens=False) == sample.text


def test_plain_text(make_corpus, byte_level):
    corpus = make_corpus(["def add(a, b):\n", "日本語 😀"], source={"layer": "code"})
    samples = list(corpus)
    for sample in samples:
        check(sample, byte_level)
        assert sample.loss_mask[:-1].all()
    assert [sample.text for sample in samples] == ["def add(a, b):\n", "日本語 😀"]
    assert [sample.source_id for sample in samples] == ["data.jsonl#1", "data.jsonl#2"]
    assert {sample.layer for sample in samples} == {"code"}
    assert samples[0].input_ids.tolist() == byte_level("def add(a, b):\n")["input_ids"]
    counts = corpus.counts
    assert (counts.documents, counts.samples) == (2, 2)
    assert counts.tokens == sum(len(sample.input_ids) for sample in samples)
    assert counts.loss_tokens == counts.tokens - 2


def test_counts_before_a_pass(make_corpus):
    with pytest.raises(RuntimeError, match="after a full pass"):
        _ = make_corpus(["some text"]).counts


def test_passes_are_equal(make_corpus):
    corpus = make_corpus([LONG, "text one", chat("q", "a"), "text two"], max_tokens=50)
    first = [(sample.key, sample.source_id) for sample in corpus]
    counts = corpus.counts
    assert [(sample.key, sample.source_id) for sample in corpus] == first
    assert corpus.counts == counts


def test_batch_size_changes_nothing(make_corpus, monkeypatch):
    corpus = make_corpus([LONG, "text one", chat("q", "a"), "text two"], max_tokens=50)
    keys = [sample.key for sample in corpus]
    monkeypatch.setattr(sequences, "_BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(sequences, "_BATCH_CHARACTERS", 10)
    assert [sample.key for sample in corpus] == keys


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize("tokenizer", ["byte_level", "sentencepiece"])
def test_short_texts_in_one_pass_are_those_of_one_by_one(make_corpus, monkeypatch, request, tokenizer, deduplicate):
    texts = ["the fox", "x", "日本 😀 the", "the fox", "the quick brown fox jumps", " the  fox ", "é"]
    corpus = make_corpus(
        texts, tokenizer=request.getfixturevalue(tokenizer), max_tokens=64, min_tokens=3, deduplicate=deduplicate
    )
    at_once, counts = list(corpus), corpus.counts
    monkeypatch.setattr(sequences, "_is_plain", lambda item: False)
    monkeypatch.setattr(Corpus, "_whole", None)
    one_by_one = list(corpus)
    assert corpus.counts == counts
    assert counts.duplicates == deduplicate
    assert len(at_once) == len(one_by_one) >= 3
    for sample, other in zip(at_once, one_by_one, strict=True):
        for name, value in vars(other).items():
            np.testing.assert_array_equal(getattr(sample, name), value, err_msg=name)
            assert getattr(getattr(sample, name), "dtype", None) == getattr(value, "dtype", None)


def test_reading_is_streamed(make_corpus, monkeypatch):
    monkeypatch.setattr(sequences, "_BATCH_DOCUMENTS", 2)
    corpus = make_corpus(["text one", "text two", "text three", chat("q", "a")])
    corpus_file = corpus._config.sources[0].path
    with open(corpus_file, "a") as file:
        file.write("broken\n")
    samples = iter(corpus)
    assert next(samples).text == "text one"  # the broken line at the end has not been read yet
    with pytest.raises(UserError, match=r"data\.jsonl:5"):
        list(samples)


def test_keys_are_the_content_hash(make_corpus):
    (sample,) = make_corpus(["some text"])
    content = sample.input_ids.astype("<u4").tobytes() + sample.loss_mask.tobytes()
    assert sample.key == xxhash.xxh3_128_hexdigest(content)


def test_cleaning_applies_to_texts_and_messages(make_corpus):
    records = ["\ufeffone\u200b\r\ntwo", chat("q\u200b", "e\u0301\u200b")]
    plain, conversation = make_corpus(records)
    assert plain.text == "one\ntwo"
    assert conversation.text.endswith("user\nq<|im_end|>\n<|im_start|>assistant\né<|im_end|>\n")
    plain, conversation = make_corpus(records, clean=False)
    assert plain.text == records[0]
    assert "e\u0301\u200b" in conversation.text


def test_empty_documents_are_counted(make_corpus):
    corpus = make_corpus(["text", "", " \n", "\u200b", [], chat("q", "\u200b"), chat("", ""), chat("q", "", "r", "a")])
    assert len(list(corpus)) == 2
    assert corpus.counts.empty == 6


def test_duplicates_after_cleaning_are_dropped(make_corpus):
    corpus = make_corpus(["same text", "same\u200b text", chat("q", "a"), chat("q", "a\u200b"), chat("q", "b")])
    assert [sample.source_id for sample in corpus] == ["data.jsonl#1", "data.jsonl#3", "data.jsonl#5"]
    assert corpus.counts.duplicates == 2


def test_a_repeated_piece_is_a_duplicate(make_corpus, byte_level):
    line = "the quick brown fox\n"
    size = len(byte_level(line)["input_ids"])
    corpus = make_corpus([line * 3 + "the lazy"], max_tokens=size)
    assert [sample.text for sample in corpus] == [line, "the lazy"]
    assert (corpus.counts.duplicates, corpus.counts.split) == (2, 1)


def test_without_deduplication_repeats_have_keys_of_their_own(make_corpus):
    corpus = make_corpus(["same text"] * 3, deduplicate=False)
    samples = list(corpus)
    assert len({sample.key for sample in samples}) == 3
    assert (corpus.counts.duplicates, corpus.counts.samples) == (0, 3)
    assert samples[0].key == next(iter(make_corpus(["same text"]))).key
    assert [sample.key for sample in corpus] == [sample.key for sample in samples]


@pytest.mark.parametrize("max_tokens", [5, 6, 7, 33])
def test_split_pieces_tile_the_text(make_corpus, byte_level, max_tokens):
    corpus = make_corpus([LONG, "short"], max_tokens=max_tokens, deduplicate=False)
    samples = list(corpus)
    pieces = [sample for sample in samples if sample.source_id.startswith("data.jsonl#1.")]
    for sample in samples:
        check(sample, byte_level)
        assert len(sample.input_ids) <= max_tokens
    assert LONG.startswith("".join(sample.text for sample in pieces[:-1]))
    assert sum(len(sample.text) for sample in pieces) >= len(LONG) - 1  # a last piece of one token is too short
    assert [sample.source_id for sample in pieces] == [f"data.jsonl#1.{n + 1}" for n in range(len(pieces))]
    assert samples[-1].source_id == "data.jsonl#2"
    assert (corpus.counts.split, corpus.counts.truncated, corpus.counts.dropped_over_long) == (1, 0, 0)


def test_truncate(make_corpus, byte_level):
    corpus = make_corpus([LONG, "short"], max_tokens=8, over_long="truncate")
    samples = list(corpus)
    assert len(samples) == 2
    check(samples[0], byte_level)
    assert samples[0].input_ids.tolist() == byte_level(LONG)["input_ids"][: len(samples[0].input_ids)]
    assert LONG.startswith(samples[0].text)
    assert samples[0].source_id == "data.jsonl#1"
    assert (corpus.counts.truncated, corpus.counts.split) == (1, 0)


def test_drop(make_corpus):
    corpus = make_corpus([LONG, "short"], max_tokens=8, over_long="drop")
    assert [sample.text for sample in corpus] == ["short"]
    assert corpus.counts.dropped_over_long == 1


def test_a_text_of_exactly_max_tokens_is_whole(make_corpus, byte_level):
    size = len(byte_level(LONG)["input_ids"])
    for policy in ("split", "truncate", "drop"):
        corpus = make_corpus([LONG], max_tokens=size, over_long=policy)
        assert [sample.text for sample in corpus] == [LONG]
        assert corpus.counts.split + corpus.counts.truncated + corpus.counts.dropped_over_long == 0


def test_too_short(make_corpus):
    corpus = make_corpus(["a", "some longer text here", "bb cc"], min_tokens=6)
    assert [sample.text for sample in corpus] == ["some longer text here"]
    assert corpus.counts.too_short == 2


def test_a_character_that_does_not_fit_is_left_out(make_corpus, byte_level):
    text = "ab𝄞cd"
    assert len(byte_level("𝄞")["input_ids"]) > 2
    corpus = make_corpus([text], max_tokens=2)
    assert [sample.text for sample in corpus] == ["ab", "cd"]
    assert corpus.counts.too_short == 1


@pytest.mark.parametrize("policy", ["split", "truncate", "drop"])
def test_huge_text_is_read_in_segments(make_corpus, byte_level, monkeypatch, policy):
    monkeypatch.setattr(sequences, "_SEGMENT_CHARACTERS", 100)
    corpus = make_corpus([LONG, "short"], max_tokens=16, over_long=policy, deduplicate=False)
    encoded = []
    encode = corpus._tokenizer.encode_batch
    monkeypatch.setattr(corpus._tokenizer, "encode_batch", lambda texts: encoded.extend(texts) or encode(texts))
    samples = list(corpus)
    for sample in samples:
        check(sample, byte_level)
    texts = [sample.text for sample in samples[:-1]]
    if policy == "split":
        assert "".join(texts) == LONG
        assert [sample.source_id for sample in samples[:2]] == ["data.jsonl#1.1", "data.jsonl#1.2"]
        assert len({sample.source_id for sample in samples}) == len(samples)
    else:
        assert texts == ([LONG[: len(texts[0])]] if policy == "truncate" else [])
    assert max(map(len, encoded)) <= 256
    counts = corpus.counts
    assert (counts.split, counts.truncated, counts.dropped_over_long) == tuple(
        int(policy == p) for p in ("split", "truncate", "drop")
    )


def test_a_huge_text_of_few_tokens_is_not_over_long(make_corpus, byte_level, monkeypatch):
    tokens = len(byte_level(LONG)["input_ids"])
    corpus = make_corpus([LONG], max_tokens=tokens, over_long="drop")
    corpus._segment_characters = 100
    assert [sample.text for sample in corpus] == [LONG]
    assert corpus.counts.dropped_over_long == 0


def test_leading_special_tokens_start_every_piece(make_corpus, sentencepiece):
    text = "the quick brown fox jumps over the lazy dog"
    corpus = make_corpus([text], tokenizer=sentencepiece, max_tokens=8)
    samples = list(corpus)
    assert len(samples) > 1
    assert "".join(sample.text for sample in samples) == text
    for sample in samples:
        assert len(sample.input_ids) <= 8
        assert sample.input_ids[0] == sentencepiece.bos_token_id
        assert (sample.byte_start[0], sample.byte_end[0]) == (0, 0)
        assert sample.loss_mask[0]  # the first real token is predicted from BOS
    ids = [sample.input_ids.tolist() for sample in samples]
    assert [sentencepiece.eos_token_id in piece for piece in ids] == [False] * (len(ids) - 1) + [True]
    assert samples[-1].byte_start[-1] == len(samples[-1].text.encode())
    assert [i for piece in ids for i in piece[1:]] == sentencepiece(text)["input_ids"][1:]


def test_segments_of_a_huge_text_get_the_special_tokens_once(make_corpus, sentencepiece):
    corpus = make_corpus([" the fox\n" * 50], tokenizer=sentencepiece, max_tokens=64, deduplicate=False)
    corpus._segment_characters = 100
    ids = [sample.input_ids.tolist() for sample in corpus]
    assert len(ids) > 3
    assert all(piece.count(sentencepiece.bos_token_id) == 1 for piece in ids)
    assert [piece.count(sentencepiece.eos_token_id) for piece in ids] == [0] * (len(ids) - 1) + [1]


def test_a_piece_of_special_tokens_only_is_too_short(make_corpus, sentencepiece):
    text = "the quick brown fox"
    corpus = make_corpus([text], tokenizer=sentencepiece, max_tokens=len(sentencepiece(text)["input_ids"]) - 1)
    assert [sample.text for sample in corpus] == [text]  # what is left is BOS and EOS
    assert corpus.counts.too_short == 1


def test_max_tokens_must_exceed_the_leading_special_tokens(make_corpus, sentencepiece, monkeypatch):
    monkeypatch.setattr(sequences, "added_around", lambda tokenizer: ([1, 1, 1], []))
    with pytest.raises(UserError, match=r"corpus\.max_tokens: 3 leaves no room .* 3 leading special tokens"):
        make_corpus(["text"], tokenizer=sentencepiece, max_tokens=3)


def counted_text(sample, tokenizer):
    """Text of the trained tokens: those that follow a True in the loss mask."""
    return tokenizer.decode(sample.input_ids[1:][sample.loss_mask[:-1]].tolist(), skip_special_tokens=False)


def test_chat_mask_counts_exactly_the_replies(make_corpus, byte_level):
    turns = chat("what is 日?", "it is\n日本 😀!", "and then?", " done ")
    (sample,) = make_corpus([turns])
    check(sample, byte_level)
    assert counted_text(sample, byte_level) == "it is\n日本 😀!<|im_end|> done <|im_end|>"
    assert sample.text == byte_level.apply_chat_template(turns, tokenize=False)
    assert sample.input_ids.tolist() == byte_level(sample.text, add_special_tokens=False)["input_ids"]


def test_over_long_chat_is_truncated(make_corpus, byte_level):
    whole = next(iter(make_corpus([chat("q", LONG)])))
    corpus = make_corpus([chat("q", LONG)], max_tokens=60)
    (sample,) = corpus
    check(sample, byte_level)
    assert 55 < len(sample.input_ids) <= 60
    assert whole.text.startswith(sample.text)
    assert LONG.startswith(counted_text(sample, byte_level))
    assert corpus.counts.truncated == 1


def test_over_long_chat_is_dropped(make_corpus):
    corpus = make_corpus([chat("q", LONG), "text"], max_tokens=60, over_long_chat="drop")
    assert [sample.text for sample in corpus] == ["text"]
    assert corpus.counts.dropped_over_long == 1


def test_chat_without_a_reply_left_is_too_short(make_corpus):
    corpus = make_corpus([chat(LONG, "reply"), chat("question only"), "text"], max_tokens=60)
    assert [sample.text for sample in corpus] == ["text"]
    assert (corpus.counts.too_short, corpus.counts.truncated, corpus.counts.no_reply) == (1, 1, 1)


def test_chat_without_template(make_corpus, sentencepiece):
    with pytest.raises(UserError, match=r"data\.jsonl:2: .*no chat template"):
        list(make_corpus(["text", chat("q", "a")], tokenizer=sentencepiece))


@pytest.mark.parametrize("record", ["lone \ud800", chat("q", "lone \ud800")])
def test_lone_surrogate_needs_cleaning(make_corpus, record):
    with pytest.raises(UserError, match=r"data\.jsonl:1: .*lone surrogate \\ud800.*corpus\.clean"):
        list(make_corpus([record], clean=False))
    (sample,) = make_corpus([record])
    assert "lone" in sample.text


def test_empty_corpus_is_one_error_with_the_counts(make_corpus):
    corpus = make_corpus(["", "text one", "text one", "a"], min_tokens=100)
    with pytest.raises(UserError, match=r"corpus is empty: 4 documents read: 1 empty, 1 dupl.*2 too short"):
        list(corpus)
    with pytest.raises(UserError, match=r"corpus is empty: 0 documents read"):
        list(make_corpus([]))


def test_sources_are_read_in_order_and_deduplicated_across(tmp_path, byte_level):
    (tmp_path / "a.txt").write_text("text one")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "text two"}) + "\n" + json.dumps({"text": "text one"}) + "\n")
    sources = [
        SourceConfig(path=str(tmp_path / "b.jsonl"), format="jsonl", layer="base"),
        SourceConfig(path=str(tmp_path), pattern="*.txt", format="text", layer="code"),
    ]
    corpus = Corpus(CorpusConfig(sources=sources), byte_level)
    assert [(sample.source_id, sample.layer) for sample in corpus] == [("b.jsonl#1", "base"), ("b.jsonl#2", "base")]
    assert corpus.counts.duplicates == 1


def test_slow_tokenizer_is_refused(make_corpus):
    class Slow(PreTrainedTokenizerBase):
        is_fast = False

    with pytest.raises(UserError, match=r"teacher\.path: somewhere: Slow is a slow tokenizer"):
        make_corpus(["text"], tokenizer=Slow(name_or_path="somewhere"))


@pytest.fixture
def corpus_of(tmp_path):
    """A corpus of JSON lines with these records."""

    def make(records, tokenizer, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return Corpus(CorpusConfig(sources=[SourceConfig(path=str(path))], **settings), tokenizer)

    return make


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
def test_of_a_prompt_and_its_completion_only_the_completion_counts(corpus_of, request, name):
    tokenizer = request.getfixturevalue(name)
    (sample,) = corpus_of([{"prompt": "for word in the dog:\n", "completion": "print(word)\n"}], tokenizer)
    assert sample.text == "for word in the dog:\nprint(word)\n"
    assert sample.input_ids.tolist() == tokenizer(sample.text)["input_ids"]
    learned = np.flatnonzero(sample.loss_mask) + 1
    spelt = [sample.text.encode()[sample.byte_start[i] : sample.byte_end[i]].decode() for i in learned]
    assert "".join(spelt) == "print(word)\n"
    assert learned[-1] == len(sample.input_ids) - 1  # EOS, if the tokenizer adds one


def test_a_token_that_is_partly_prompt_does_not_count(corpus_of, byte_level):
    assert byte_level.tokenize("the fox jumps") == ["the", "Ġfox", "Ġjumps"]
    (sample,) = corpus_of([{"prompt": "the ", "completion": "fox jumps"}], byte_level)
    assert counted_text(sample, byte_level) == " jumps"


def test_prompts_are_cleaned_apart_from_their_completions(corpus_of, byte_level):
    (sample,) = corpus_of([{"prompt": "\ufeffq\r\n", "completion": "a b c\u200b"}], byte_level)
    assert (sample.text, counted_text(sample, byte_level)) == ("q\na b c", "a b c")


def test_an_over_long_completion_is_truncated_as_chats_are(corpus_of, byte_level):
    records = [{"prompt": "the fox\n", "completion": LONG}]
    corpus = corpus_of(records, byte_level, max_tokens=40)
    (sample,) = corpus
    assert sample.text.startswith("the fox\nthe quick")
    assert corpus.counts.truncated == 1
    with pytest.raises(UserError, match="1 dropped as over-long"):
        list(corpus_of(records, byte_level, max_tokens=40, over_long_chat="drop"))


def test_texts_that_differ_in_what_is_learned_are_no_duplicates(corpus_of, byte_level):
    records = [{"prompt": "the", "completion": " fox jumps"}, {"prompt": "the fox", "completion": " jumps"}]
    assert len(list(corpus_of([*records, records[0]], byte_level))) == 2


def test_a_bad_record_stops_the_corpus(corpus_of, byte_level):
    with pytest.raises(UserError, match=r"data\.jsonl:2: text is int 5"):
        list(corpus_of([{"text": "one two"}, {"text": 5}], byte_level))


def test_a_header_that_takes_in_the_blanks_of_a_reply_does_not_count(make_corpus, new_tokenizer):
    tokenizer = new_tokenizer()
    for content, side in (("<|assistant|>", "rstrip"), ("<|user|>", "lstrip")):
        tokenizer.add_tokens([AddedToken(content, special=True, **{side: True})], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    (sample,) = make_corpus([chat("q", " \n one ", "q", "two")], tokenizer=tokenizer)
    text = sample.text.encode()
    tokens = [text[a:b].decode() for a, b in zip(sample.byte_start, sample.byte_end, strict=True)]
    assert "<|assistant|> \n " in tokens  # one token, blanks included
    learned = [token for token, counts in zip(tokens[1:], sample.loss_mask[:-1], strict=True) if counts]
    assert "".join(learned) == "onetwo"


def test_a_text_that_begins_with_bos_has_one(make_corpus, sentencepiece):
    texts = ["<s>the quick brown fox", "the lazy dog", "<s>"]
    corpus = make_corpus(texts, tokenizer=sentencepiece)
    samples = list(corpus)
    assert [sample.input_ids.tolist().count(sentencepiece.bos_token_id) for sample in samples] == [1, 1]
    assert [sample.text for sample in samples] == ["the quick brown fox", "the lazy dog"]
    assert corpus.counts.documents == 3


def test_a_text_that_becomes_no_token_is_empty(make_corpus, new_tokenizer):
    tokenizer = new_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    corpus = make_corpus(["xxx", "text"], tokenizer=tokenizer)
    assert len(list(corpus)) == 1
    assert (corpus.counts.documents, corpus.counts.empty, corpus.counts.samples) == (2, 1, 1)


def test_chats_without_a_role_to_train_on_are_counted_as_that(make_corpus):
    unknown = [{"role": "Human", "content": "q"}, {"role": "AI", "content": "a"}]
    silent = [*chat("q"), {"role": "assistant", "content": "a", "weight": 0}]
    corpus = make_corpus([unknown, silent, chat("q", "a")])
    assert len(list(corpus)) == 1
    assert (corpus.counts.no_reply, corpus.counts.too_short) == (2, 0)
    with pytest.raises(UserError, match=r"corpus is empty: 1 documents .* 1 without a message by assistant"):
        list(make_corpus([unknown]))
    (sample,) = make_corpus([unknown], roles_to_train=["AI"])
    assert sample.loss_mask.any()


STRICT_TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + m.role) }}"
    "{% endif %}"
    "{{ '<' + m.role + '>' + m.content }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def test_bad_records_stop_or_are_dropped_and_counted(make_corpus, new_tokenizer, caplog):
    tokenizer = new_tokenizer()
    tokenizer.chat_template = STRICT_TEMPLATE
    bad_weight = [*chat("q"), {"role": "assistant", "content": "a", "weight": 2}]
    refused = [[{"role": "system", "content": text}, *chat("q", "a")] for text in ("one", "two")]
    lost = [*chat("q"), {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
    records = [chat("q", "good"), bad_weight, *refused, lost, 5, "a text"]
    for place, reason in ((2, "weight is 2"), (3, "rejects this chat: no system"), (5, "does not render this reply")):
        with pytest.raises(UserError, match=rf"data\.jsonl:2: .*{reason}"):
            list(make_corpus([records[0], records[place - 1]], tokenizer=tokenizer))
    corpus = make_corpus(records, tokenizer=tokenizer, on_bad_record="drop")
    assert [sample.source_id for sample in corpus] == ["data.jsonl#1", "data.jsonl#7"]
    counts = corpus.counts
    assert (counts.malformed, counts.refused, counts.reply_lost, counts.not_located) == (2, 2, 1, 0)
    assert counts.documents == 7
    assert sum("dropped (refused;" in record.getMessage() for record in caplog.records) == 1


def test_every_document_is_in_one_count(make_corpus):
    records = ["text", "text", "", "a", chat("q"), chat("q", "a"), chat("q", ""), LONG, 5]
    corpus = make_corpus(records, max_tokens=100, over_long="drop", on_bad_record="drop")
    samples = len(list(corpus))
    counts = corpus.counts.model_dump()
    outcomes = ("empty", "duplicates", "too_short", "dropped_over_long", "no_reply", "malformed", "refused")
    assert samples + sum(counts.get(name, 0) for name in outcomes) == counts["documents"] == len(records)


def test_tools_make_a_chat_another(make_corpus, new_tokenizer, tmp_path):
    path = tmp_path / "data.jsonl"
    record = {"messages": chat("q", "a")}
    tools = [{"type": "function", "function": {"name": "f"}}]
    path.write_text("".join(json.dumps(each) + "\n" for each in (record, {**record, "tools": tools}, record)))
    tokenizer = new_tokenizer()
    tokenizer.chat_template = "{{ tools | tojson if tools else '' }}" + tokenizer.chat_template
    config = CorpusConfig(sources=[SourceConfig(path=str(path), format="jsonl")])
    corpus = Corpus(config, tokenizer)
    assert [sample.text.startswith('[{"type"') for sample in corpus] == [False, True]
    assert corpus.counts.duplicates == 1
