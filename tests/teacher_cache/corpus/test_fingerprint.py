import shutil
import subprocess
import sys

import pytest

from schemas.cache_config import CorpusConfig, SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus import corpus_fingerprint


def fingerprint(*folders, **settings):
    sources = [SourceConfig(path=str(folder), format="text", pattern="**/*.txt") for folder in folders]
    return corpus_fingerprint(CorpusConfig(sources=sources, **settings))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("one")
    (tmp_path / "data" / "sub" / "b.txt").write_text("two")
    return tmp_path / "data"


def test_the_place_does_not_matter(folder, tmp_path):
    before = fingerprint(folder)
    assert len(before) == 64
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == before


def test_every_byte_name_setting_and_the_order_of_sources_matter(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "a.txt").write_text("other")
    seen = [fingerprint(folder), fingerprint(folder, max_tokens=99), fingerprint(folder, clean=False)]
    seen += [fingerprint(folder, tmp_path / "other"), fingerprint(tmp_path / "other", folder)]
    (folder / "a.txt").write_text("onE")
    seen.append(fingerprint(folder))
    (folder / "a.txt").rename(folder / "c.txt")
    seen.append(fingerprint(folder))
    (folder / "c.txt").unlink()
    seen.append(fingerprint(folder))
    assert len(set(seen)) == len(seen)


def test_files_outside_the_pattern_do_not_matter(folder):
    before = fingerprint(folder)
    (folder / "new.py").write_text("x")
    assert fingerprint(folder) == before


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.sources\.0\.path: .*nowhere: no such file"):
        fingerprint(tmp_path / "nowhere")


def test_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, teacher_cache.corpus; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
