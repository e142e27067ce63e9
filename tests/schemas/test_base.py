"""What holds for every model of the contract."""

import inspect

import pytest
from pydantic import BaseModel, ValidationError

from schemas import cache_config, manifest, train_config
from schemas.base import Strict
from schemas.cache_config import CodecConfig

MODELS = {
    model
    for module in (cache_config, train_config, manifest)
    for _, model in inspect.getmembers(module, inspect.isclass)
    if issubclass(model, BaseModel) and model is not Strict
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
