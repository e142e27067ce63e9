"""Errors of models that cannot be loaded: the model's fault, or the machine's."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import safe_open

from schemas.errors import MachineError, UserError
from teacher_cache.model_folder import not_loaded


def test_a_file_that_cannot_be_opened_is_not_called_missing(tmp_path: Path) -> None:
    """safetensors reports "No such file" in both cases."""
    with pytest.raises(FileNotFoundError) as caught:
        safe_open(tmp_path / "absent", "numpy")
    found = not_loaded(caught.value, "m: cannot load the model")
    assert type(found) is UserError
    assert str(found).startswith("m: cannot load the model: No such file or directory: ")
    (tmp_path / "there").touch()
    found = not_loaded(
        FileNotFoundError(f"No such file or directory: {tmp_path / 'there'}"), "m: cannot load the model"
    )
    assert isinstance(found, MachineError)
    assert "raise `ulimit -n`" in str(found)


def test_machine_errors_hidden_by_a_library_are_recognised() -> None:
    error = ValueError("Can't load the configuration")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert isinstance(not_loaded(error, "m: cannot load"), MachineError)
    found = not_loaded(ValueError("n_heads is -1\nmore"), "m: cannot load", advice="; fix it")
    assert (type(found), str(found)) == (UserError, "m: cannot load: n_heads is -1; fix it")


def test_untrusted_model_code_says_how_to_trust_it() -> None:
    found = not_loaded(ValueError("set trust_remote_code=True"), "m: cannot load", "set x.trust_remote_code: true")
    assert "if you have read that code and trust it, set x.trust_remote_code: true" in str(found)
