from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.cache_config import CorpusConfig, SourceConfig, TeacherConfig
from schemas.errors import CorruptCacheError
from support.models import tiny_tokenizer, write_random_teacher
from support.synthetic import random_shards, write_cache
from teacher_cache.teacher_vocabulary import teacher_vocabulary
from trainer.student.token_bytes import cache_token_bytes, tokenizer_bytes


def test_special_tokens_have_none_and_the_others_spell_the_text(tmp_path: Path) -> None:
    folder = write_random_teacher(tmp_path / "model")
    found, tokenizer = tokenizer_bytes(folder), tiny_tokenizer()
    assert found is not None
    assert found.dtype == torch.int64
    text = "def f(x): 漢字 😀\n"
    assert found[tokenizer(text, add_special_tokens=False)["input_ids"]].sum() == len(text.encode())
    assert found[tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])].tolist() == [0, 0]
    corpus = CorpusConfig(sources=[SourceConfig(path="x")])
    of_cache = teacher_vocabulary(TeacherConfig(path=str(folder)), corpus, tokenizer).as_text().length_V
    np.testing.assert_array_equal(found.numpy(), of_cache)


def test_the_cache_is_asked_first_and_the_folder_where_it_is_older(tmp_path: Path, student_folder: Path) -> None:
    url = str(tmp_path / "cache")
    manifest = write_cache(url, random_shards([[5, 6]], 12), 12)
    wanted = [0, *[len(f"⟨{i}⟩".encode()) for i in range(1, 12)]]
    found = cache_token_bytes(url, manifest, student_folder)
    assert found is not None
    assert found.tolist() == wanted
    older = manifest.model_copy(update={"vocabulary": None})
    assert cache_token_bytes(url, older, student_folder) is None, "it has no tokenizer"
    folder = write_random_teacher(tmp_path / "model")
    of_folder, own = cache_token_bytes(url, older, folder), tokenizer_bytes(folder)
    assert of_folder is not None
    assert own is not None
    assert of_folder.tolist() == own.tolist()
    file = tmp_path / "cache/vocabulary.arrow"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptCacheError, match=r"vocabulary\.arrow"):
        cache_token_bytes(url, manifest, folder)
