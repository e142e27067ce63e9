"""Origin of an imported cache, for its manifest: the teacher, with or without weights, and the files' fingerprint."""

import hashlib
import json
from pathlib import Path

from schemas.cache_config import TeacherConfig
from schemas.failures import failure
from schemas.manifest import TeacherInfo
from schemas.regular_files import open_regular
from teacher_cache.teacher import WEIGHT_PATTERNS, describe_teacher, load_model_config, stored_settings

HASH_BYTES = 1 << 20


def describe(config: TeacherConfig) -> tuple[TeacherInfo, bool]:
    """The teacher's description, and whether its fingerprint covers the weights (False: configuration only)."""
    folder = Path(config.path)
    if not folder.is_dir() or any(next(folder.glob(pattern), None) for pattern in WEIGHT_PATTERNS):
        return describe_teacher(config), True
    model_config = load_model_config(config)
    text_config = model_config.get_text_config()
    content = "configuration only\0" + json.dumps(stored_settings(config), sort_keys=True)
    info = TeacherInfo(
        name=config.name or folder.resolve().name,
        revision=None,
        dtype=config.dtype,
        architecture=(model_config.architectures or [type(model_config).__name__])[0],
        num_layers=text_config.num_hidden_layers,
        hidden_size=text_config.hidden_size,
        vocab_size=text_config.vocab_size,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
    return info, False


def fingerprint(files: list[Path]) -> str:
    """sha256 over names and contents of the files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.name.encode()).digest())
        try:
            with open_regular(file) as opened:
                while chunk := opened.read(HASH_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise failure(error, f"{file}: cannot be read") from None
    return digest.hexdigest()
