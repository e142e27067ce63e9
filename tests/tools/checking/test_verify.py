import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from schemas.cache_config import CodecConfig, LogitsCapture
from support.displaced import shifted
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from tools.cache_tools_cli import main
from tools.checking.verify import check_sample, verify
from tools.looking.inspect import describe, sample_rows

LENGTHS = [[20, 7, 31], [1, 40]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_cache(str(folder), random_shards(LENGTHS))
    return folder


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cache"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_sound_cache_has_no_problem(sound: Path) -> None:
    steps = []
    report = verify(str(sound), advance=lambda done, total: steps.append((done, total)))
    assert report.problems == []
    assert (report.shards, report.samples, report.tokens) == (2, 5, 99)
    assert steps == [(n, 5) for n in range(1, 6)]


def test_all_problems_are_listed_relative_to_the_cache(copy: Path) -> None:
    flip(copy / "shard-000000.logits.tar", 700)
    flip(copy / "shard-000001.tokens.tar", 700)
    problems = verify(str(copy)).problems
    keys = CacheReader(str(copy)).keys
    assert [problem.split(": ")[0] for problem in problems] == [
        "shard-000000.logits.tar",
        "shard-000001.tokens.tar",
        "shard-000000.logits.tar",
        "shard-000001.tokens.tar",
    ]
    assert f"sample {keys[0]}" in problems[2]
    assert f"sample {keys[3]}" in problems[3]


def test_a_flipped_bit_in_padding_is_found_by_the_file_digest(copy: Path) -> None:
    path = copy / "shard-000001.logits.tar"
    flip(path, path.stat().st_size - 1)
    assert [p for p in verify(str(copy)).problems if "sha256" in p]


def test_quick_finds_sizes_and_marks_but_not_bits(copy: Path) -> None:
    flip(copy / "shard-000000.logits.tar", 700)
    assert verify(str(copy), quick=True).problems == []
    with (copy / "shard-000001.logits.tar").open("ab") as file:
        file.write(b"more")
    (copy / "shard-000000.tokens.tar").unlink()
    flip(copy / "shard-000000.json", 3)
    problems = verify(str(copy), quick=True).problems
    assert any("shard-000001.logits.tar" in p and "bytes, the manifest says" in p for p in problems)
    assert any("shard-000000.json" in p and "sha256" in p for p in problems)


def test_a_missing_table_is_one_problem(copy: Path) -> None:
    next((copy / "tables").iterdir()).unlink()
    problems = verify(str(copy)).problems
    assert problems
    assert all("tables/" in problem for problem in problems)


@pytest.mark.parametrize("folder", ["tables", "shard-000000.logits.tar"])
def test_a_folder_above_the_cache_may_have_any_name(tmp_path: Path, folder: str) -> None:
    """Nothing is left out because of a word in a problem's text: broken shards are named, and rows of the others."""
    shards = random_shards([[30], [30], [30]])
    url = tmp_path / folder / "shard-000001"
    write_cache(str(url), [shards[0], shifted(shards[1:2])[0], shards[2]])
    (url / "shard-000002.tokens.tar").write_bytes(b"short")
    problems = verify(str(url)).problems
    assert {problem.partition(":")[0] for problem in problems[:-1]} == {"shard-000002.tokens.tar"}
    assert problems[-1].startswith("shard-000001.logits.tar: rows are shifted by one")


@pytest.mark.parametrize("policy", ["top_k", "nucleus"])
@pytest.mark.parametrize("positions", ["all", "loss_mask"])
def test_invalid_distributions_are_found(tmp_path: Path, policy: str, positions: str) -> None:
    """Problems are named by rows of the sequence, whichever rows are stored."""
    capture = LogitsCapture(policy=policy, k=8, mass=0.9, temperatures=[1.0, 3.0], positions=positions)
    write_cache(str(tmp_path), random_shards([[30]], capture=capture, counting=0.7), capture=capture)
    reader = CacheReader(str(tmp_path))
    tokens, logits = reader.read_tokens(0), reader.read_logits(0)
    n_rows = len(logits.positions)
    assert n_rows == 30 if positions == "all" else 10 < n_rows < 29

    def problems(**changes: np.ndarray) -> str:
        return " | ".join(check_sample(tokens, replace(logits, **changes), reader.manifest))

    assert problems() == ""
    assert verify(str(tmp_path)).problems == []
    p = int(np.flatnonzero(logits.counts > 1)[5])
    row = int(logits.positions[p])
    assert row == p if positions == "all" else row > p
    twice = logits.ids.copy()
    twice[p, 1] = twice[p, 0]
    assert f"row {row}: a token id occurs twice" in problems(ids=twice)
    rising = logits.logprobs.copy()
    rising[p, :2] = rising[p, :2][::-1] - np.array([1, 0])
    assert f"row {row}: log-probabilities are not in descending order" in problems(logprobs=rising)
    heavy = logits.logprobs.copy()
    heavy[p, :2] = -0.05
    assert f"row {row}: probabilities sum to more than 1" in problems(logprobs=heavy)
    partition = logits.log_partition.copy()
    partition[p, 1] += 3
    assert f"row {row}: the log-partition at temperature 3 contradicts" in problems(log_partition=partition)
    partition = logits.log_partition.copy()
    partition[p, 0] -= 1
    assert f"row {row}: the log-partition at temperature 1 contradicts" in problems(log_partition=partition)
    realised = np.where(np.isnan(logits.next_logprob), np.nan, np.float32(0.5))
    realised[:p] = logits.next_logprob[:p]
    assert f"row {row}: the realised token has a probability above 1" in problems(next_logprob=realised)
    unlikely = logits.next_logprob.copy()
    unlikely[p] = np.float32(-0.01)
    assert f"row {row}: the realised token" in problems(next_logprob=unlikely)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_log_probabilities_stored_as_floats_are_checked_too(tmp_path: Path, dtype: str) -> None:
    codec = CodecConfig(logprobs=dtype)
    write_cache(str(tmp_path), random_shards([[30, 9]], counting=0.7), codec=codec)
    assert verify(str(tmp_path)).problems == []
    reader = CacheReader(str(tmp_path))
    logits = reader.read_logits(0)
    risen = logits.logprobs.copy()
    risen[3, 2] = risen[3, 1] + 0.01
    (problem, *_) = check_sample(reader.read_tokens(0), replace(logits, logprobs=risen), reader.manifest)
    assert problem == f"row {logits.positions[3]}: log-probabilities are not in descending order"


def test_the_realised_token_is_that_of_the_row_that_follows(tmp_path: Path) -> None:
    """Whose entry, where it is stored, has the same log-probability: with gaps among the rows too."""
    capture = LogitsCapture(k=60)
    write_cache(str(tmp_path), random_shards([[40]], 61, capture, counting=0.6), 61, capture)
    reader = CacheReader(str(tmp_path))
    tokens, logits = reader.read_tokens(0), reader.read_logits(0)
    assert (np.diff(logits.positions) > 1).any()
    assert list(check_sample(tokens, logits, reader.manifest)) == []
    shifted = replace(logits, next_logprob=np.roll(logits.next_logprob, 1))
    assert "the realised token's log-probability is not that of its entry" in " ".join(
        check_sample(tokens, shifted, reader.manifest)
    )
    moved = replace(logits, positions=np.arange(len(logits.positions), dtype=np.int32))
    assert "the realised token's log-probability is not that of its entry" in " ".join(
        check_sample(tokens, moved, reader.manifest)
    )


def test_commands_and_exit_status(copy: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(main, ["verify", str(copy)]).exit_code == 0
    flip(copy / "shard-000000.logits.tar", 700)
    broken = run(main, ["verify", str(copy), "--json"])
    assert broken.exit_code == 1
    assert len(json.loads(broken.stdout)["problems"]) == 2
    nothing = run(main, ["verify", str(tmp_path / "nothing")])
    assert nothing.exit_code == 2
    assert "error: " in nothing.stderr
    assert run(main, ["inspect", str(tmp_path / "nothing")]).exit_code == 2


def test_inspect_describes_the_files(sound: Path) -> None:
    facts = describe(str(sound))
    assert facts["bytes"]["logits"] == sum(path.stat().st_size for path in sound.glob("*.logits.tar"))
    assert facts["bytes"]["index"] == sum(path.stat().st_size for path in sound.glob("shard-*.json"))
    assert facts["bytes"]["tables"] == sum(path.stat().st_size for path in (sound / "tables").iterdir())
    assert facts["bytes_per_token"]["logits"] == pytest.approx(facts["bytes"]["logits"] / 99)
    assert (facts["samples"], facts["tokens"], facts["complete"]) == (5, 99, True)
    assert facts["manifest_digest"] == CacheReader(str(sound)).manifest.digest()
    assert "logits" in CliRunner().invoke(main, ["inspect", str(sound)]).stdout


def test_inspect_shows_a_sample(sound: Path) -> None:
    reader = CacheReader(str(sound))
    rows = sample_rows(str(sound), reader.keys[1], limit=100)
    tokens, logits = reader.read_tokens(1), reader.read_logits(1)
    assert [row["token_id"] for row in rows] == tokens.input_ids.tolist()
    assert "".join(row["token"] for row in rows) == tokens.text
    assert rows[0]["best_ids"] == logits.ids[0, :3].tolist()
    assert rows[-1]["best_ids"] is rows[-1]["best_probabilities"] is rows[-1]["next_probability"] is None
    shown = CliRunner().invoke(main, ["inspect", str(sound), "--sample", reader.keys[1]])
    assert shown.exit_code == 0
    missing = CliRunner().invoke(main, ["inspect", str(sound), "--sample", "no-such-key"])
    assert (missing.exit_code, "no sample 'no-such-key'" in missing.stderr) == (2, True)


def test_rows_that_count_and_are_not_stored_are_found(tmp_path: Path) -> None:
    (pairs,) = random_shards([[9]])
    tokens, logits = pairs[0]
    fewer = replace(logits, **{name: array[2:] for name, array in vars(logits).items() if name != "num_tokens"})
    write_cache(str(tmp_path), [[(tokens, fewer)]])
    (problem,) = verify(str(tmp_path)).problems
    assert problem.endswith("row 0: it counts, and is not stored (2 rows)")
