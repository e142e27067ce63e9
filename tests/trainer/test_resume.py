"""The table of what may change at resume, against the configuration and against runs."""

from collections import Counter

from schemas.train_config import TrainConfig
from trainer.resume import RULES, rule_of


def test_every_key_of_the_configuration_is_in_the_table_once() -> None:
    groups = {name: field.annotation for name, field in TrainConfig.model_fields.items() if name != "output"}
    keys = {f"{group}.{key}" for group, model in groups.items() for key in model.model_fields}
    listed = Counter(key for rule in RULES for key in rule.keys)
    assert listed == Counter({"output": 1, **dict.fromkeys(keys, 1)})


def test_what_is_not_a_key_has_no_rule() -> None:
    assert rule_of("rows per step") is None
    assert rule_of("losses.tla.temperature") is None
