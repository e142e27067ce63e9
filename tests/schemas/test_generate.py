"""The committed JSON Schemas are up to date, and accept what the models accept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from schemas import cache_config, generate, train_config
from schemas.cache_config import CacheConfig
from schemas.strict import Strict

ROOT = Path(__file__).resolve().parents[2]


def test_the_checked_in_schemas_are_up_to_date():
    assert generate.stale() == [], "run: python -m schemas.generate"


def test_stale_names_files_that_are_missing_changed_or_too_many(tmp_path):
    generate.write(tmp_path)
    assert generate.stale(tmp_path) == []
    (tmp_path / "manifest.schema.json").unlink()
    (tmp_path / "cache-config.schema.json").write_text("{}", encoding="utf-8")
    (tmp_path / "old.schema.json").write_text("{}", encoding="utf-8")
    assert generate.stale(tmp_path) == ["cache-config.schema.json", "manifest.schema.json", "old.schema.json"]
    generate.write(tmp_path)
    assert generate.stale(tmp_path) == []


def test_the_command_checks_without_writing_and_writes_without_check(tmp_path, monkeypatch):
    monkeypatch.setattr(generate.stale, "__defaults__", (tmp_path,))
    monkeypatch.setattr(generate.write, "__defaults__", (tmp_path,))
    checked = CliRunner().invoke(generate.main, ["--check"])
    assert checked.exit_code == 1
    assert "manifest.schema.json" in checked.output
    assert list(tmp_path.iterdir()) == []
    assert CliRunner().invoke(generate.main, []).exit_code == 0
    assert CliRunner().invoke(generate.main, ["--check"]).exit_code == 0


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_text_does_not_depend_on_hash_order(seed):
    code = "import json; from schemas.generate import documents; print(json.dumps(documents()))"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == generate.documents()


@pytest.mark.parametrize("name", sorted(generate.documents()))
def test_each_document_is_a_valid_schema_that_refuses_unknown_keys(name):
    schema = json.loads(generate.documents()[name])
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors({"no_such_key": 1})
    assert any(error.validator == "additionalProperties" for error in errors)


def test_a_schema_accepts_what_its_model_accepts():
    text = "{teacher: {path: t}, corpus: {sources: [{path: a, format: text}]}, output: {path: o}}"
    validator = jsonschema.Draft202012Validator(json.loads(generate.documents()["cache-config.schema.json"]))
    tree = yaml.safe_load(text)
    assert list(validator.iter_errors(tree)) == []
    assert list(validator.iter_errors(CacheConfig.model_validate(tree).model_dump(mode="json"))) == []
    tree["corpus"]["sources"][0]["format"] = "docx"
    assert [list(error.path) for error in validator.iter_errors(tree)] == [["corpus", "sources", 0, "format"]]


FREE_TEXT = {"licence", "owner", "notes"}
CONFIGURATIONS = [
    model
    for module in (cache_config, train_config)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, Strict) and model.__module__ == module.__name__
]


@pytest.mark.parametrize("model", CONFIGURATIONS, ids=lambda model: model.__name__)
def test_every_optional_field_has_a_description(model):
    """Groups of keys aside, whose own keys do."""
    for name, field in model.model_fields.items():
        if not (field.is_required() or isinstance(field.default, Strict) or name in FREE_TEXT):
            assert field.description, f"{model.__name__}.{name}"
