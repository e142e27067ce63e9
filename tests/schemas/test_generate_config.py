from typing import Any

import pytest

from schemas.errors import UserError
from schemas.generate_config import GenerateConfig
from schemas.generated_manifest import sampling_digest
from schemas.load import validate

SMALLEST: dict[str, Any] = {
    "generator": {"path": "models/teacher"},
    "prompts": {"sources": [{"path": "a.jsonl"}, {"path": "b.jsonl", "layer": "code"}]},
    "output": {"path": "runs/replies"},
}


def read(**changes: Any) -> GenerateConfig:
    return validate(GenerateConfig, {**SMALLEST, **changes}, "generate.yaml")


def test_defaults_draw_one_reply_from_the_own_distribution() -> None:
    config = read()
    sampling = config.sampling_of("base")
    assert (sampling.samples, sampling.temperature, sampling.top_p, sampling.top_k) == (1, 1.0, 1.0, 0)
    assert config.engine.kind == "vllm"


def test_a_layer_overrides_what_it_names() -> None:
    config = read(sampling={"temperature": 0.7, "top_k": 5}, layers={"code": {"temperature": 0.0, "samples": 4}})
    assert config.sampling_of("base") == config.sampling
    code = config.sampling_of("code")
    assert (code.temperature, code.samples, code.top_k) == (0.0, 4, 5)
    assert sampling_digest(code) != sampling_digest(config.sampling)
    assert sampling_digest(code) == sampling_digest(code.model_copy(update={"samples": 1}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": {"cod": {}}}, "layers.cod: no source has this layer; there are base, code"),
        ({"prompts": {"sources": [{"path": "x", "format": "generated"}]}}, "replies are no prompts"),
        ({"prompts": {"sources": []}}, "prompts.sources: "),
        ({"sampling": {"temperature": -1}}, "sampling.temperature: "),
        ({"sampling": {"temperature": 0.001}}, "sampling.temperature: 0 (greedy), or from 0.01 to 2.0; got 0.001"),
        ({"sampling": {"temperature": 2.5}}, "sampling.temperature: "),
        ({"sampling": {"top_p": 0}}, "sampling.top_p: "),
        ({"layers": {"code": {"max_new_tokens": 0}}}, "layers.code.max_new_tokens: "),
        ({"prompts": {**SMALLEST["prompts"], "chat_template_kwargs": {"messages": []}}}, "cannot be set here"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(**changes)
    assert message in str(caught.value)
