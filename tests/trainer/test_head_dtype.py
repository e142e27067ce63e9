"""With ``loop.bf16`` the output head's three matrix products are bfloat16, in training, validation and first checks."""

import json
from pathlib import Path

import pytest

from support.head_products import HeadProducts, WriteHeadProducts
from support.logged import read_metrics
from support.ranks import finish_all, started
from trainer.distiller import distill

VOCABULARY = 61  # of the cache and the student of conftest.py
ALL = {"hidden", "logits", "weight"}


def settings(make_config, output: Path, **loop):
    return make_config(
        data={"validation_fraction": 0.2},
        losses={"cross_entropy": {"weight": {"start": 0.5, "end": 0.5}}},
        loop={"max_steps": 2, "save_every": 9, "validate_every": 1, "micro_batch_size": 1, **loop},
        output=str(output),
    )


def check_curve(found: str, wanted: str) -> None:
    """Within bfloat16's rounding of the float32 run."""
    for kind in ("loss", "eval_kl", "eval_cross_entropy"):
        for one, two in zip(read_metrics(found, kind), read_metrics(wanted, kind), strict=True):
            assert one[kind] == pytest.approx(two[kind], rel=0.02), kind
            assert one[kind] != two[kind], "computed in another precision"


@pytest.fixture
def exact(make_config, tmp_path: Path) -> str:
    config = settings(make_config, tmp_path / "exact", gradient_accumulation=4)
    with HeadProducts(VOCABULARY) as products:
        distill(config)
    assert products.dtypes == {kind: ["float32"] for kind in sorted(ALL)}
    return config.output


def test_products_of_one_process(make_config, tmp_path: Path, exact: str) -> None:
    config = settings(make_config, tmp_path / "bf16", gradient_accumulation=4, bf16=True, log_gradient_norms=True)
    with HeadProducts(VOCABULARY) as products:
        distill(config)
    assert products.dtypes == {kind: ["bfloat16"] for kind in sorted(ALL)}
    check_curve(config.output, exact)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_products_of_two_ranks(make_config, tmp_path: Path, exact: str, parallel: str) -> None:
    config = settings(make_config, tmp_path / parallel, gradient_accumulation=2, bf16=True, parallel=parallel)
    path = tmp_path / "products.json"
    finish_all(started(config, 2, before=WriteHeadProducts(path, VOCABULARY)))
    assert json.loads(path.read_text()) == {kind: ["bfloat16"] for kind in sorted(ALL)}
    check_curve(config.output, exact)
