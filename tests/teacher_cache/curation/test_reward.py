"""The reward step: what the model reads, its scores by both engines, and what stays. One vLLM engine for all tests."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from schemas.curate_filters import RewardStep
from schemas.errors import UserError
from support.models import CHAT_TEMPLATE, tiny_tokenizer, write_random_reward_model, write_random_teacher
from support.records_to_judge import chat_record, opened, reply_record, text_record
from teacher_cache.curation.curation_step import Table
from teacher_cache.curation.record import Record
from teacher_cache.curation.reward import LEFT_ALONE, REFUSED, SCORED, TRUNCATED, Reward
from teacher_cache.curation.reward_inputs import RewardInput, RewardInputs, batches
from teacher_cache.curation.transformers_scorer import TransformersScorer
from teacher_cache.curation.vllm_scorer import VllmScorer

LONGEST = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return write_random_reward_model(tmp_path_factory.mktemp("reward"), **heads)


def settings(model: Path, **changes: Any) -> dict[str, Any]:
    engine = {"batch_tokens": 256, "cpu_kv_cache_gib": 1, "eager": True}
    given = {"step": "reward", "model": {"path": str(model), "dtype": "float32"}, "engine": engine}
    return {**given, "max_tokens": LONGEST, **changes}


def reward(model: Path, **changes: Any) -> Reward:
    step = opened(settings(model, **changes))
    assert isinstance(step, Reward)
    return step


def records(count: int) -> list[Record]:
    """Chats and texts of very different lengths."""
    rng = np.random.default_rng(0)
    words = [" ".join(f"x{n}" for n in rng.integers(0, 50, size)) for size in rng.integers(1, 40, count)]
    return [
        (chat_record(f"user {number}", said) if number % 3 else text_record(said)) for number, said in enumerate(words)
    ]


def one_by_one(model: Path, inputs: list[RewardInput]) -> np.ndarray:
    """Outputs in float32 at the last token, whichever it is; an input at a time, without padding."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    loaded.config.pad_token_id = None
    with torch.inference_mode():
        return np.array([loaded(torch.from_numpy(one.ids)[None]).logits[0].numpy() for one in inputs])


def inputs_of(given: list[Record], longest: int = LONGEST) -> list[RewardInput]:
    encoded = RewardInputs(tiny_tokenizer(), longest).encode(given)
    return [one for one in encoded if one is not None]


@pytest.fixture(scope="module")
def vllm_scorer(model: Path) -> Iterator[VllmScorer]:
    scorer = VllmScorer(RewardStep.model_validate(settings(model)), "steps.0", LONGEST)
    yield scorer
    scorer.close()


def test_vllm_and_transformers_give_the_scores_of_the_model(model: Path, vllm_scorer: VllmScorer) -> None:
    """Also where an input ends with, or consists of, the token that pads."""
    inputs = inputs_of(records(40))
    pads = np.zeros(3, np.int64)
    inputs += [replace_ids(inputs[0], np.concatenate([inputs[1].ids, pads])), replace_ids(inputs[0], pads)]
    wanted = one_by_one(model, inputs)
    assert wanted.shape == (42, 1)
    assert wanted.std() > 0.1
    padded = TransformersScorer(RewardStep.model_validate(settings(model)), "steps.0").score(inputs)
    assert np.abs(padded - wanted).max() < 1e-5
    scores = vllm_scorer.score(inputs)
    assert scores.shape == wanted.shape
    assert np.abs(scores - padded).max() < 1e-3


def test_vllm_refuses_inputs_that_need_token_types(vllm_scorer: VllmScorer) -> None:
    one = RewardInput(np.arange(3), np.array([0, 0, 1]), False)
    with pytest.raises(UserError, match=r"steps\.0\.engine\.kind: vllm: .* token types"):
        vllm_scorer.score([one])


def test_the_step_scores_with_vllm(model: Path, vllm_scorer: VllmScorer) -> None:
    given = records(12)
    engine = {**settings(model)["engine"], "kind": "vllm"}
    with mock.patch("teacher_cache.curation.vllm_scorer.VllmScorer", return_value=vllm_scorer) as opened_scorer:
        found = reward(model, engine=engine).sketch(given)
    assert opened_scorer.call_args.args[2] == LONGEST
    assert np.abs(found - reward(model).sketch(given)).max() < 1e-3


def replace_ids(one: RewardInput, ids: np.ndarray) -> RewardInput:
    return one._replace(ids=ids, types=np.zeros_like(ids))


def test_a_score_hardly_depends_on_what_is_scored_beside_it(model: Path) -> None:
    given = records(30)
    together = reward(model).sketch(given)
    assert together.dtype == np.float32
    assert together.shape == (30, 2)
    apart = np.concatenate([reward(model).sketch(given[at : at + 5]) for at in range(0, 30, 5)])
    assert np.abs(together - apart).max() < 1e-5


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_encoders_are_padded_as_they_expect(tmp_path: Path, kind: str) -> None:
    """Positions of RoBERTa are counted from the padding token's id."""
    shape = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        **shape, intermediate_size=64, max_position_embeddings=300, pad_token_id=1, num_labels=1
    )
    encoder = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    encoder.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 100, 20)
    inputs = [RewardInput(rng.integers(2, 384, n), (np.arange(n) > n // 2).astype(np.int64), False) for n in lengths]
    if kind == "Roberta":  # it has one type only
        inputs = [replace_ids(one, one.ids) for one in inputs]
    with torch.inference_mode():
        wanted = [
            encoder(torch.from_numpy(one.ids)[None], token_type_ids=torch.from_numpy(one.types)[None]).logits[0].numpy()
            for one in inputs
        ]
    found = TransformersScorer(RewardStep.model_validate(settings(tmp_path)), "steps.0").score(inputs)
    assert np.abs(found - np.array(wanted)).max() < 1e-5
    assert np.std(wanted) > 1e-3


def test_what_the_model_reads() -> None:
    tokenizer = tiny_tokenizer()
    chat, plain, reply = chat_record("Why?", "So."), text_record("So."), reply_record("Why? ", "So.")
    said = [tokenizer.decode(one.ids) for one in inputs_of([chat, plain, reply])]
    asked = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    assert said == [asked, "So.", "Why? So."]
    tokenizer.chat_template = None
    (pair,) = RewardInputs(tokenizer, 99).encode([chat])
    assert pair is not None
    assert tokenizer.decode(pair.ids) == "Why?So."


def test_pairs_of_texts_have_types_and_special_tokens_also_when_they_are_cut() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    marks = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    pair = "<|im_start|>:0 $A:0 <|im_end|>:0 $B:1 <|im_end|>:1"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", pair=pair, special_tokens=marks
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    whole, cut = RewardInputs(tokenizer, 12).encode([chat_record("ab", "cd"), chat_record("q" * 30, "a" * 30 + "z")])
    assert whole is not None
    assert cut is not None
    assert (whole.ids[0], whole.ids[-1], whole.types.max(), whole.truncated) == (1, 2, 1, False)
    assert (cut.ids[0], cut.ids[-1], len(cut.ids), cut.truncated) == (1, 2, 12, True)
    assert tokenizer.decode(cut.ids[-2:-1]) == "z", "the beginning is left out, not the end"


def test_long_inputs_lose_their_beginning_and_are_counted(model: Path) -> None:
    given = [chat_record("x " * 300, "the end"), chat_record("x", "the end")]
    whole, cut = (inputs_of(given, longest) for longest in (10_000, LONGEST))
    assert [one.truncated for one in cut] == [True, False]
    assert cut[0].ids.tolist() == whole[0].ids[-LONGEST:].tolist()
    assert reward(model).sketch(given)[:, 1].tolist() == [TRUNCATED, SCORED]


def test_the_model_limits_the_length(model: Path) -> None:
    step = reward(model, max_tokens=4096)
    assert step._longest == 512
    assert reward(model)._longest == LONGEST


def test_a_chat_that_the_template_refuses_is_not_scored(tmp_path: Path) -> None:
    folder = write_random_reward_model(tmp_path)
    refusing = "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = refusing
    tokenizer.save_pretrained(folder)
    given = [chat_record("bad", "a"), chat_record("good", "a"), chat_record("good", "b", layer="code")]
    step = reward(folder, layers=["base"])
    sketch = step.sketch(given)
    assert sketch[:, 1].tolist() == [REFUSED, SCORED, LEFT_ALONE]
    decision = step.decide(sketch, table_of([1, 1, 1]))
    assert [(0, *step.reasons).index(reason) if reason else 0 for reason in ("not_scored", 0, 0)] == [2, 0, 0]
    assert decision.code_N.tolist() == [2, 0, 0]


def table_of(n_tokens: list[int], source: list[int] | None = None) -> Table:
    count = len(n_tokens)
    sources = np.array(source or [0] * count, np.int32)
    return Table(np.arange(count), sources, np.zeros(count, np.int32), np.array(n_tokens), ("base", "code"))


def test_the_best_share_of_each_source_and_length_stays() -> None:
    step = reward(Path("unused"), share=0.3, bins=[100, 200])
    rng = np.random.default_rng(1)
    n_tokens, source = rng.integers(1, 300, 5000), rng.integers(0, 2, 5000)
    n_tokens[:4] = [99, 100, 199, 200]
    score_N = n_tokens / 100 + rng.normal(0, 0.1, 5000)  # a model that likes length
    sketch = np.stack([score_N, np.where(rng.random(5000) < 0.1, TRUNCATED, SCORED)], axis=1).astype(np.float32)
    decision = step.decide(sketch, table_of(n_tokens.tolist(), source.tolist()))
    for one in (0, 1):
        for low, high in ((0, 100), (100, 200), (200, 300)):
            of_group = (source == one) & (low <= n_tokens) & (n_tokens < high)
            kept = of_group & (decision.code_N == 0)
            assert kept.sum() == math.ceil(0.3 * of_group.sum())
            assert score_N[kept].min() >= score_N[of_group & ~kept].max() - 1e-6
    assert decision.notes["truncated"] == (sketch[:, 1] == TRUNCATED).sum()
    groups = decision.notes["groups"]
    assert [(group["source"], group["tokens"]) for group in groups] == [
        (one, tokens) for one in (0, 1) for tokens in ("0–99", "100–199", "≥ 200")
    ]
    assert sum(group["kept"] for group in groups) == (decision.code_N == 0).sum()


@pytest.mark.parametrize(("label", "message"), [(None, "the model has 3 outputs"), (3, "3: the model has 3 outputs")])
def test_the_output_that_is_the_score(tmp_path: Path, label: int | None, message: str) -> None:
    folder = write_random_reward_model(tmp_path, num_labels=3)
    given = records(3)
    for use in (Reward.fingerprint, lambda step: step.sketch(given)):
        with pytest.raises(UserError, match=rf"steps\.0\.label: .*{message}"):
            use(reward(folder, label=label))
    wanted = one_by_one(folder, inputs_of(given))
    assert np.abs(reward(folder, label=2).sketch(given)[:, 0] - wanted[:, 2]).max() < 1e-5


def test_scores_that_are_not_finite_are_refused(model: Path) -> None:
    step = reward(model)
    with pytest.raises(UserError, match=r"1 of 2 scores are not finite; set `model\.dtype: float32`"):
        step._chosen(np.array([[1.0], [np.nan]]))


def test_models_that_score_nothing_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"steps\.0\.model\.path: .*no such folder"):
        reward(tmp_path / "none").fingerprint()
    with pytest.raises(UserError, match=r"steps\.0\.model\.path: .*LlamaForCausalLM is no sequence-classification"):
        reward(write_random_teacher(tmp_path / "teacher")).fingerprint()
    headless = shutil.copytree(model, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights of score\.weight, which would be random"):
        reward(headless).sketch(records(2))


def test_a_record_with_nothing_to_read_is_not_scored(model: Path) -> None:
    assert reward(model).sketch([text_record(""), text_record("x")])[:, 1].tolist() == [REFUSED, SCORED]


def test_batches_hold_similar_lengths_and_no_more_tokens_than_allowed() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    inputs = [RewardInput(np.zeros(n, np.int64), np.zeros(n, np.int64), False) for n in [*lengths, 500]]
    found = batches(inputs, 256)
    assert sorted(place for batch in found for place in batch) == list(range(201))
    sizes = [[len(inputs[place].ids) for place in batch] for batch in found]
    assert sizes[0] == [500]
    assert all(len(batch) * batch[0] <= 256 for batch in sizes[1:])
    assert [n for batch in sizes for n in batch] == sorted([*lengths.tolist(), 500], reverse=True)
    assert sum(len(batch) * batch[0] for batch in sizes[1:]) <= 1.2 * lengths.sum()
    assert batches([], 256) == []


def test_a_record_of_another_layer_is_not_read(model: Path) -> None:
    with mock.patch.object(RewardInputs, "encode", return_value=[]) as encode:
        sketch = reward(model, layers=["code"]).sketch([replace(records(1)[0])])
    assert sketch.tolist() == [[0, LEFT_ALONE]]
    encode.assert_called_once_with([])
