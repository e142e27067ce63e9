"""Properties of all schema models."""

import inspect

import pytest
from pydantic import BaseModel, ValidationError

from schemas import cache_config, manifest, train_config
from schemas.cache_config import CodecConfig
from schemas.strict import Extended, Strict, added

MODELS = {
    model
    for module in (cache_config, train_config, manifest)
    for _, model in inspect.getmembers(module, inspect.isclass)
    if issubclass(model, BaseModel) and model not in (Strict, Extended)
}


@pytest.mark.parametrize("model", sorted(MODELS, key=lambda model: model.__name__))
def test_every_model_refuses_unknown_keys(model):
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"no_such_key": 1})
    assert ("extra_forbidden", ("no_such_key",)) in [(e["type"], e["loc"]) for e in caught.value.errors()]


def test_a_validated_model_cannot_be_changed():
    codec = CodecConfig()
    with pytest.raises(ValidationError, match="frozen"):
        codec.zstd_level = 5


class First(Strict):
    kept: int = 1


class Second(Extended):
    kept: int = 1
    more: int = added(0, "What came later.", ge=0)
    lists: list[str] = added([], "And later still.")


def test_added_fields_are_written_only_if_not_at_their_default():
    assert Second().model_dump_json() == First().model_dump_json() == '{"kept":1}'
    assert Second(more=2).model_dump(mode="json") == {"kept": 1, "more": 2}
    assert Second(lists=["a"]).model_dump_json() == '{"kept":1,"lists":["a"]}'


def test_added_fields_are_optional_when_read():
    assert Second.model_validate_json('{"kept": 3}') == Second(kept=3)
    assert Second.model_validate_json('{"kept": 3, "more": 4}').more == 4
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Second(more=-1)


def test_added_fields_at_their_default_are_left_out_of_nested_models():
    class Outer(Strict):
        inner: Second = Second()

    assert Outer().model_dump_json(indent=1) == '{\n "inner": {\n  "kept": 1\n }\n}'
