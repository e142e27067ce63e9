import pytest

from schemas.errors import UserError
from schemas.load import validate
from schemas.train_config import LossConfig, TrainConfig

SMALLEST = {"data": {"cache": "runs/cache"}, "student": {"checkpoint": "models/student"}, "output": "runs/student"}


def read(changes=None):
    return validate(TrainConfig, {**SMALLEST, **(changes or {})}, "train.yaml")


def complaint(changes):
    with pytest.raises(UserError) as caught:
        read(changes)
    return str(caught.value)


def test_the_smallest_configuration_has_tla_only():
    losses = read().losses
    assert (losses.tla.weight.start, losses.tla.weight.end, losses.tla.temperature) == (1.0, 1.0, 1.0)
    assert (losses.cross_entropy.weight.start, losses.cross_entropy.weight.end) == (0.0, 0.0)


NOTHING = {"weight": {"start": 0, "end": 0}}


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        ({}, 1.0),
        ({"tla": {"temperature": 3.0}, "cross_entropy": {"weight": {"start": 0.1, "end": 0.1}}}, 1.0),
        ({"asr": {}}, 1.0),
        ({"lhsm": NOTHING, "apc": None}, 1.0),
        ({"lhsm": {}}, 0.3),
        ({"tla": {"temperature": 3.0}, "apc": {}, "lhsm": NOTHING}, 0.3),
        ({"tla": {"weight": {"start": 0.5, "end": 0.5}}, "lhsm": {}}, 0.5),
        ({"tla": {"weight": {"start": 1, "end": 0.25}}}, 0.25),
    ],
)
def test_the_default_weight_of_tla_decays_only_with_lhsm_or_apc(losses, end):
    read_back = read({"losses": losses}).losses
    assert read_back.tla.weight.end == end
    assert LossConfig.model_validate(read_back.model_dump()) == read_back
    assert LossConfig(**vars(read_back)) == read_back


@pytest.mark.parametrize(
    "student",
    [
        {"checkpoint": "a"},
        {"config": "config.json"},
        {"teacher": "a", "from_layers": [0, 3, 5]},
        {"teacher": "a", "ffn": {"width": 448}},
    ],
)
def test_each_way_to_start_a_student_is_accepted(student):
    assert read({"student": student}).student.model_dump(exclude_unset=True) == student


@pytest.mark.parametrize(
    ("student", "wanted"),
    [
        ({}, "exactly one of checkpoint, config, teacher"),
        ({"checkpoint": "a", "config": "b"}, "exactly one of checkpoint, config, teacher"),
        ({"checkpoint": "a", "teacher": "b", "from_layers": [0]}, "exactly one of checkpoint, config, teacher"),
        ({"teacher": "a"}, "teacher needs from_layers or ffn"),
        ({"checkpoint": "a", "from_layers": [0]}, "from_layers needs teacher"),
        ({"config": "a", "ffn": {"remove": 0.1}}, "ffn needs teacher or checkpoint"),
        ({"teacher": "a", "ffn": {}}, "set either remove or width"),
        ({"teacher": "a", "ffn": {"remove": 0.1, "width": 64}}, "set either remove or width"),
        ({"teacher": "a", "ffn": {"width": 100}}, "multiple of 64"),
        ({"teacher": "a", "from_layers": []}, "at least 1 item"),
        ({"teacher": "a", "from_layers": [-1]}, "greater than or equal to 0"),
    ],
)
def test_a_student_starts_in_exactly_one_way(student, wanted):
    message = complaint({"student": student})
    assert message.startswith("train.yaml: student")
    assert wanted in message


def test_validation_data_comes_from_one_place():
    for data in ({"validation_cache": "v"}, {"validation_fraction": 0.1}):
        assert read({"data": {"cache": "c", **data}}).data.model_dump(exclude_unset=True) == {"cache": "c", **data}
    both = {"cache": "c", "validation_cache": "v", "validation_fraction": 0.1}
    assert "validation_cache or validation_fraction, not both" in complaint({"data": both})


def off(name):
    return {name: {"weight": {"start": 0, "end": 0}}}


def test_at_least_one_loss_has_a_weight():
    hard_labels = {"cross_entropy": {"weight": {"start": 0, "end": 1}}}
    assert read({"losses": {**off("tla"), **hard_labels}}).losses.cross_entropy.weight.end == 1.0
    assert "at least one loss other than asr must have a weight above 0" in complaint({"losses": off("tla")})
    assert "at least one loss other than asr must have a weight above 0" in complaint(
        {"losses": {**off("tla"), **off("cross_entropy")}}
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"losses": {"tla": {"temperature": 0}}}, "losses.tla.temperature"),
        ({"losses": {"tla": {"target": "dense"}}}, "losses.tla.target"),
        ({"losses": {"tla": {"tail": "drop"}}}, "losses.tla.tail"),
        ({"losses": {"tla": {"divergence": "backward"}}}, "losses.tla.divergence"),
        ({"losses": {"tla": {"jsd_beta": 1.0}}}, "losses.tla.jsd_beta"),
        ({"losses": {"tla": {"weight": {"start": -1, "end": 1}}}}, "losses.tla.weight.start"),
        ({"losses": {"tla": {"weight": {"start": 1}}}}, "losses.tla.weight.end"),
        ({"losses": {"tla": {"weight": {"start": 1, "end": 1, "hold": 1}}}}, "losses.tla.weight.hold"),
        ({"losses": {"kl": {}}}, "losses.kl"),
        ({"data": {"cache": "c", "validation_fraction": 1.0}}, "data.validation_fraction"),
        ({"data": {}}, "data.cache"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas.1"),
        ({"loop": {"epochs": 0}}, "loop.epochs"),
        ({"loop": {"max_steps": 0}}, "loop.max_steps"),
        ({"loop": {"seed": 1.5}}, "loop.seed"),
    ],
)
def test_a_value_out_of_range_is_named(changes, key):
    assert complaint(changes).startswith(f"train.yaml: {key}: ")


def test_flash_attention_needs_16_bit():
    flash = {"attention": "flash_attention_2"}
    assert read({"student": {"checkpoint": "s", **flash}, "loop": {"bf16": True}}).loop.bf16
    assert read({"student": {"checkpoint": "s", **flash, "dtype": "bfloat16"}})
    message = complaint({"student": {"checkpoint": "s", **flash}})
    assert "student.attention: flash_attention_2 takes 16-bit inputs only" in message
    assert "set loop.bf16: true, or student.attention: sdpa" in message
