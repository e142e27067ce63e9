"""A teacher's configuration, tokenizer and fingerprints. Never loads the weights."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from schemas.manifest import TeacherInfo
from teacher_cache.model_folder import is_hub_id, not_loaded

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # keys of config.json, at any depth
SAMPLED_BLOCKS = 64
BLOCK_BYTES = 65536


def load_tokenizer(config: TeacherConfig, key: str = "teacher.path") -> Any:
    """Load the teacher's (fast) tokenizer. Raises UserError that names ``key`` if that fails."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer.from_pretrained, config, "tokenizer", key)


def load_model_config(config: TeacherConfig, key: str = "teacher.path") -> Any:
    """Load the teacher's model configuration. Raises UserError that names ``key`` if that fails."""
    from transformers import AutoConfig

    return _load(AutoConfig.from_pretrained, config, "model configuration", key)


def _load(load: Any, config: TeacherConfig, what: str, key: str) -> Any:
    exists = Path(config.path).is_dir()
    advice = "pass the folder of a Hugging Face model with its tokenizer"
    if not exists and not is_hub_id(config.path):
        raise UserError(f"{key}: {config.path} (no such folder): cannot load a {what}; {advice}")
    try:
        return load(config.path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # an untrusted model's settings can make its class raise anything
        found = "exists" if exists else "no such folder"
        problem = f"{key}: {config.path} ({found}): cannot load a {what}"
        raise not_loaded(
            error, problem, f"set {key.removesuffix('path')}trust_remote_code: true", f"; {advice}"
        ) from None


def load_stop_tokens(config: TeacherConfig) -> set[int]:
    """The ids at which the teacher's own generation stops, from its generation settings or its configuration."""
    from transformers import GenerationConfig

    try:
        settings = GenerationConfig.from_pretrained(config.path, revision=config.revision or "main")
    except Exception:  # most teachers without such a file; what is in one can be anything
        settings = load_model_config(config).get_text_config()
    found = getattr(settings, "eos_token_id", None)
    return {one for one in (found if isinstance(found, list) else [found]) if isinstance(one, int)}


def describe_teacher(config: TeacherConfig, key: str = "teacher.path") -> TeacherInfo:
    """Describe the teacher for the manifest. Raises UserError that names ``key`` if the model cannot be found."""
    model_config = load_model_config(config, key)
    text_config = model_config.get_text_config()
    architectures = model_config.architectures or [type(model_config).__name__]
    return TeacherInfo(
        name=config.name or Path(config.path).name,
        revision=config.revision,
        dtype=config.dtype,
        architecture=architectures[0],
        num_layers=text_config.num_hidden_layers,
        hidden_size=text_config.hidden_size,
        vocab_size=text_config.vocab_size,
        fingerprint=_fingerprint(config, stored_settings(config), key),
    )


def older_fingerprint(config: TeacherConfig) -> str:
    """Fingerprint by the previous definition: over the configuration with the installed transformers' defaults."""
    completed = load_model_config(config).to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype"):
        completed.pop(volatile, None)
    return _fingerprint(config, completed)


def stored_settings(config: TeacherConfig) -> Any:
    """The settings in ``config.json``, without library defaults and keys that change when a model is saved again."""
    from transformers.utils import cached_file

    path = cached_file(config.path, "config.json", revision=config.revision)
    assert path is not None  # the configuration was loaded from it
    return _lasting(json.loads(Path(path).read_text(encoding="utf-8")))


def model_fingerprint(path: str, key: str) -> str:
    """Fingerprint, as a teacher's, of the model in a folder or under a hub id. Raises UserError naming ``key``."""
    config = TeacherConfig(path=path)
    return _fingerprint(config, stored_settings(config), key)


def _lasting(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _lasting(value) for key, value in tree.items() if key not in VOLATILE}
    return [_lasting(value) for value in tree] if isinstance(tree, list) else tree


def _fingerprint(config: TeacherConfig, settings: Any, key: str = "teacher.path") -> str:
    """sha256 over the configuration and, per weight file, its name, size and evenly spaced blocks, including its start.

    Sampling reads a few megabytes per file, so that a 1 TB teacher is distinguished from its fine-tune within seconds;
    files that are not local (a hub id) are represented by path and revision.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    folder = Path(config.path)
    if not folder.is_dir():
        digest.update(f"{config.path}@{config.revision}".encode())
        return digest.hexdigest()
    files = sorted({path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)})
    if not files:
        raise UserError(f"{key}: {config.path}: no weights found, expected {' or '.join(WEIGHT_PATTERNS)}")
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for start in _block_starts(size):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _block_starts(size: int) -> Iterator[int]:
    if size <= SAMPLED_BLOCKS * BLOCK_BYTES:
        yield from range(0, size, BLOCK_BYTES)
    else:
        last = size - BLOCK_BYTES
        yield from (last * block // (SAMPLED_BLOCKS - 1) for block in range(SAMPLED_BLOCKS))
