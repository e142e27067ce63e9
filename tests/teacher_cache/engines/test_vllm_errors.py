"""vLLM's errors, of several screens, in one line."""

import logging

import pytest

from teacher_cache.engines.vllm_errors import causes, reason

VALIDATION = """1 validation error for ModelConfig
  Value error, Model architectures ['X'] failed to be inspected. Please check the logs for more details. \
[type=value_error, input_value=ArgsKwargs((), {'model': ...}), input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("no such kernel\nand a screen of more"), "no such kernel"),
        (AssertionError(), "AssertionError: "),
        (
            ValueError("Class validation error:\n    ValueError: no such layer type\nmore"),
            "Class validation error: Value",
        ),
        (KeyError("factor"), "KeyError: 'factor'"),
        (RuntimeError("CUDA out of memory."), "CUDA out of memory; set engine.max_batch_tokens lower, or"),
        (ValueError(VALIDATION), "Model architectures ['X'] failed to be inspected. Please check the logs for more"),
    ],
)
def test_reasons_are_one_informative_line(error: Exception, line: str) -> None:
    with causes() as found:
        pass
    assert reason(error, found).startswith(line)


def test_the_logged_cause_is_used_if_the_error_refers_to_the_logs(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("vllm")
    before = logger.handlers
    with causes() as found:
        try:
            raise ModuleNotFoundError("No module named 'timm'")
        except ModuleNotFoundError:
            logging.getLogger("vllm.registry").exception("Error in inspecting")
    assert logger.handlers is before
    assert reason(ValueError(VALIDATION), found) == "No module named 'timm'"
    assert "Error in inspecting" not in capfd.readouterr().err
