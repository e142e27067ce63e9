import pytest

from schemas.cache_config import BEST_TARGET, CacheConfig, CaptureConfig, DrawsCapture, LogitsCapture
from schemas.errors import UserError
from schemas.load import validate

SMALLEST = {
    "teacher": {"path": "models/teacher"},
    "corpus": {"sources": [{"path": "data.jsonl", "format": "jsonl"}]},
    "output": {"path": "runs/cache"},
}


def read(changes=None):
    return validate(CacheConfig, {**SMALLEST, **(changes or {})}, "cache.yaml")


def complaint(changes):
    with pytest.raises(UserError) as caught:
        read(changes)
    return str(caught.value)


def test_the_smallest_configuration_has_the_documented_defaults():
    config = read()
    assert config.engine.kind == "vllm"
    assert config.capture == BEST_TARGET
    assert (config.capture.logits.policy, config.capture.logits.k) == ("top_k", 16)
    assert config.capture.draws == DrawsCapture(n=16, region="tail", temperatures=[1.0])
    assert config.capture.logits.temperatures == [1.0, 3.0]
    assert config.capture.logits.positions == "loss_mask"
    assert (config.codec.logprobs, config.codec.logprob_steps_per_nat) == ("steps", 16)
    assert (config.corpus.over_long, config.corpus.over_long_chat) == ("split", "truncate")


@pytest.mark.parametrize("key", ["teacher", "corpus", "output"])
def test_teacher_corpus_and_output_are_required(key):
    tree = {name: value for name, value in SMALLEST.items() if name != key}
    with pytest.raises(UserError, match=rf"cache.yaml: {key}: this key is required and missing"):
        validate(CacheConfig, tree, "cache.yaml")


def test_a_corpus_has_at_least_one_source():
    assert complaint({"corpus": {"sources": []}}).startswith("cache.yaml: corpus.sources: ")


@pytest.mark.parametrize("temperatures", [[1.0], [1], [3.0, 1.0, 0.5], [1.0, 999.0]])
def test_temperatures_are_kept_as_given(temperatures):
    config = read({"capture": {"logits": {"temperatures": temperatures}}})
    assert config.capture.logits.temperatures == temperatures


@pytest.mark.parametrize(
    ("temperatures", "wanted"),
    [
        ([], "at least 1 item"),
        ([2.0, 3.0], "must contain 1.0"),
        ([1.0, 0.0], "at least 0.001 and below 1000"),
        ([1.0, -1.0], "at least 0.001 and below 1000"),
        ([1.0, 1000.0], "at least 0.001 and below 1000"),
        ([1.0, float("inf")], "finite number"),
        ([1.0, float("nan")], "finite number"),
        ([1.0, 3.0, 3.0], "must be distinct"),
    ],
)
def test_temperatures_that_cannot_be_used_are_refused(temperatures, wanted):
    message = complaint({"capture": {"logits": {"temperatures": temperatures}}})
    assert "capture.logits" in message
    assert wanted in message


@pytest.mark.parametrize(
    ("capture", "wanted"),
    [
        ({"draws": {"temperatures": [1.0, 2.0]}}, "draws.temperatures [1.0, 2.0] must be among logits.temperatures"),
        ({"logits": {"policy": "nucleus"}, "draws": {}}, "draws.region: tail needs logits.policy: top_k"),
    ],
)
def test_draws_that_do_not_fit_the_logits_are_refused(capture, wanted):
    message = complaint({"capture": capture})
    assert "capture" in message
    assert wanted in message


@pytest.mark.parametrize(
    ("capture", "k", "n"),
    [
        ({}, 16, 16),
        ({"hidden": {}}, 16, 16),
        ({"logits": {"k": 40}}, 40, 16),
        ({"draws": {"temperatures": [3.0]}}, 16, 16),
        ({"draws": {"n": 5}}, 16, 5),
        ({"draws": {"region": "all"}}, 16, 50),
        ({"draws": None}, 64, None),
        ({"draws": None, "logits": {"k": 8}}, 8, None),
        ({"logits": {"policy": "nucleus"}}, 64, None),
        ({"logits": {"policy": "nucleus"}, "draws": {"region": "all"}}, 64, 50),
        ({"final": {}}, 16, None),
        ({"final": {}, "draws": {}}, 16, 16),
        ({"final": None}, 16, 16),
    ],
)
def test_capture_defaults_are_the_best_measured_target(capture, k, n):
    found = read({"capture": capture}).capture
    assert found.logits.k == k
    assert (None if found.draws is None else found.draws.n) == n


def test_a_configuration_that_states_its_capture_keeps_it():
    stated = CaptureConfig(logits=LogitsCapture(k=64))
    assert read({"capture": stated.model_dump(mode="json")}).capture == stated
    assert CacheConfig.model_validate({**SMALLEST, "capture": stated}).capture == stated


@pytest.mark.parametrize("capture", [None, 3, {"logits": None}, {"logits": []}, {"draws": 3}, {"draws": []}])
def test_a_capture_of_the_wrong_type_is_named(capture):
    assert "capture" in complaint({"capture": capture})


def test_a_cache_may_hold_several_targets():
    capture = read({"capture": {"draws": {}, "final": {}}}).capture
    assert capture.signals == ["logits", "draws", "final"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"capture": {"logits": {"k": 0}}}, "capture.logits.k"),
        ({"capture": {"logits": {"k": 65536}}}, "capture.logits.k"),
        ({"capture": {"logits": {"mass": 0}}}, "capture.logits.mass"),
        ({"capture": {"logits": {"mass": 1.01}}}, "capture.logits.mass"),
        ({"capture": {"logits": {"policy": "topk"}}}, "capture.logits.policy"),
        ({"capture": {"draws": {"n": 0}}}, "capture.draws.n"),
        ({"capture": {"draws": {"region": "head"}}}, "capture.draws.region"),
        ({"capture": {"logits": {"positions": "keywords"}}}, "capture.logits.positions"),
        ({"capture": {"draws": {"positions": "all"}}}, "capture.draws.positions"),
        ({"capture": {"final": {"dtype": "float32"}}}, "capture.final.dtype"),
        ({"engine": {"kind": "tgi"}}, "engine.kind"),
        ({"engine": {"max_batch_tokens": "many"}}, "engine.max_batch_tokens"),
        ({"engine": {"gpu_memory_utilization": 1.0}}, "engine.gpu_memory_utilization"),
        ({"codec": {"logprobs": "int8"}}, "codec.logprobs"),
        ({"codec": {"logprob_steps_per_nat": 0}}, "codec.logprob_steps_per_nat"),
        ({"codec": {"zstd_level": 20}}, "codec.zstd_level"),
        ({"output": {"path": "x", "tokens_per_shard": 0}}, "output.tokens_per_shard"),
        ({"teacher": {"path": "x", "dtype": "int8"}}, "teacher.dtype"),
        ({"corpus": {**SMALLEST["corpus"], "over_long": "cut"}}, "corpus.over_long"),
        ({"corpus": {**SMALLEST["corpus"], "max_tokens": 1}}, "corpus.max_tokens"),
    ],
)
def test_a_value_out_of_range_is_named(changes, key):
    assert complaint(changes).startswith(f"cache.yaml: {key}: ")


def test_only_chats_cannot_be_split():
    assert read({"corpus": {**SMALLEST["corpus"], "over_long": "split"}}).corpus.over_long == "split"
    assert "corpus.over_long_chat" in complaint({"corpus": {**SMALLEST["corpus"], "over_long_chat": "split"}})
