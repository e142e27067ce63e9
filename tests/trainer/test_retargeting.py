"""Training from caches of another tokenizer: what is refused, what is learned, and resume to the last bit."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from schemas.errors import UserError
from schemas.load import validate
from schemas.train_config import TrainConfig
from support.amount import amount
from support.models import tiny_tokenizer, write_random_teacher
from support.other_tokenizers import MERGES, other_tokenizer, write_cache_of_texts, write_student
from teacher_cache.retarget.row_targets import Align
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from trainer.data.batches import CacheRows, training_loader
from trainer.data.mixture import CacheMixture
from trainer.data.open_for_student import open_for_student
from trainer.data.order import CacheOrder, Shuffle
from trainer.data.row_plan import RowPlan, plan_rows
from trainer.data.selection import Selection, Subset
from trainer.data.student_side import RowForm, student_side
from trainer.data.validation_data import open_validation
from trainer.data.worker_transfer import Batch
from trainer.distiller import distill, token_classes
from trainer.evaluate import evaluate_folder
from trainer.quantization.scales_file import read_scales
from trainer.retargeting import side_of
from trainer.student.build import load_model_config

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
STOPS = amount(20, full=50)
GLOBAL_BATCH = 4
Make = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of two teachers with the same tokenizer; the first has draws, the second hidden states."""
    place = tmp_path_factory.mktemp("caches")
    captures: list[dict[str, Any]] = [{"draws": {"n": 6}}, {"draws": None, "hidden": {"layers": [1]}}]
    return [
        str(write_cache_of_texts(place / f"in-{i}", place / f"cache-{i}", seed=i + 1, **capture))
        for i, capture in enumerate(captures)
    ]


@pytest.fixture
def make(caches: list[str], tmp_path: Path) -> Make:
    def config(out: str = "out", tokenizer: Any = None, **changes: dict[str, Any]) -> TrainConfig:
        folder = tmp_path / "student"
        if not folder.exists():
            write_student(folder, tokenizer or other_tokenizer())
        tree: dict[str, Any] = {
            "data": {"cache": caches[0]},
            "student": {"checkpoint": str(folder)},
            "optimizer": {"lr": 3e-3},
            "loop": {"max_steps": 6, "micro_batch_size": 2, "gradient_accumulation": 2, "save_every": 2},
            "output": str(tmp_path / out),
        }
        for group, values in changes.items():
            tree[group] = {**tree.get(group, {}), **values}
        return validate(TrainConfig, tree, "test")

    return config


def metrics(config: TrainConfig) -> list[dict[str, float]]:
    """Lines of metrics, without times and memory."""
    timed = ("data_wait", "step_seconds", "data_wait_share", "peak_memory_bytes")
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def weights(config: TrainConfig) -> bytes:
    return (Path(config.output) / "final/model.safetensors").read_bytes()


def test_a_student_with_another_tokenizer_is_refused_unless_asked_for(make: Make) -> None:
    with pytest.raises(UserError, match=r"set data\.align.* to teach a student with another tokenizer"):
        distill(make())


@pytest.mark.parametrize("align", ["strict", "border", "all", "classes"])
def test_the_student_learns_from_the_teacher(make: Make, align: str) -> None:
    config = make(
        data={"align": align, "validation_fraction": 0.2}, loop={"max_steps": 30, "validate_every": 10, "log_every": 10}
    )
    summary = distill(config)
    kl = [line["eval_kl"] for line in metrics(config) if "eval_kl" in line]
    assert kl[-1] < kl[0] < np.log(512)
    assert summary["validation"]["tokens"] > 0
    losses = [line["tla"] for line in metrics(config) if "tla" in line]
    assert losses[-1] < losses[0]


def test_validation_counts_the_bytes_of_the_students_tokens_and_the_rows_with_a_teacher(
    make: Make, caches: list[str], tmp_path: Path
) -> None:
    config = make(data={"align": "all", "validation_fraction": 0.2}, loop={"max_steps": 1, "validate_every": 1})
    found = distill(config)["validation"]
    side = student_side(tmp_path / "student", "student", False, None)
    data = open_validation(config.data, read_manifest(Storage(caches[0])), side)
    assert data is not None
    batch = data.cache.read_rows(data.rows.rows(range(len(data.rows))))
    following = np.roll(batch.input_ids, -1, axis=1)[batch.loss_mask].tolist()
    tokens = other_tokenizer().convert_ids_to_tokens(following)  # a letter stands for a byte
    size = sum(len(token) for token in tokens if token != "<end>")
    assert "<end>" in tokens
    assert found["tokens"] == len(tokens)
    assert found["bits_per_byte"] == pytest.approx(found["cross_entropy"] * len(tokens) / np.log(2) / size, rel=1e-9)
    taught = np.isfinite(batch.logprobs[..., 0]) & batch.loss_mask
    assert found["tokens_with_teacher"] == taught.sum() < len(tokens)
    assert "teacher_cross_entropy" not in found
    card = (Path(config.output) / "final/README.md").read_text()
    assert f"| tokens_with_teacher | {taught.sum()} |" in card


def test_hard_labels_take_the_rows_without_a_teacher(make: Make) -> None:
    """The other rows have no cross-entropy, and these no TLA: together each row has one of the two."""
    weight = {"start": 1.0, "end": 1.0}

    def first(out: str, **losses: Any) -> dict[str, float]:
        config = make(out, data={"align": "strict"}, losses=losses, loop={"max_steps": 1})
        distill(config)
        return metrics(config)[0]

    both = first("both", cross_entropy={"weight": weight, "rows": "untaught"})
    everywhere = first("everywhere", cross_entropy={"weight": weight})
    assert 0 < both["cross_entropy"] < everywhere["cross_entropy"]
    assert both["tla"] == everywhere["tla"] > 0
    assert both["loss"] == pytest.approx(both["tla"] + both["cross_entropy"])


def test_a_cache_of_the_students_own_tokenizer_is_read_as_ever(make: Make) -> None:
    plain, asked = make("plain", tiny_tokenizer()), make("asked", data={"align": "all"})
    distill(plain)
    distill(asked)
    assert metrics(plain) == metrics(asked)
    assert weights(plain) == weights(asked)


def test_pieces_are_learned_from_the_likelihoods_of_the_text(make: Make) -> None:
    """Alone: the student comes to find pieces as likely as the teacher does."""
    off = {"weight": {"start": 0, "end": 0}}
    config = make(
        data={"align": "all"}, losses={"tla": off, "alm": {}}, loop={"max_steps": 30, "log_every": 10, "save_every": 30}
    )
    distill(config)
    losses = [line["alm"] for line in metrics(config) if "alm" in line]
    assert 0 < losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("align", "packing"), [("all", False), ("classes", True)])
def test_a_stopped_run_ends_like_one_that_was_not(make: Make, tmp_path: Path, align: str, packing: bool) -> None:
    kept = str(tmp_path / "kept")
    data = {"align": align, "packing": packing, "pack_tokens": 96, "retarget_cache": kept if packing else None}
    whole = make("whole", data=data)
    distill(whole)
    for steps in (1, 3, 4, 6):
        distill(make("stopped", data=data, loop={"max_steps": steps}))
    resumed = make("resumed", data=data)
    for stop in (2, 4):
        distill(make("resumed", data=data, loop={"save_every": stop}), StopAfter(stop))
    distill(resumed)
    assert metrics(resumed) == metrics(whole)
    assert weights(resumed) == weights(whole)


class StopAfter:
    """A stop request that turns true in the given step."""

    signal_number = None

    def __init__(self, step: int) -> None:
        self.left = step

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_a_quantised_student_is_calibrated_on_its_own_tokens(make: Make, tmp_path: Path) -> None:
    layers = ["gate_proj", "up_proj"]
    quantization = {"group_size": 32, "targets": layers, "calibration_samples": 4, "check": False}
    config = make(data={"align": "all"}, quantization=quantization)
    distill(config)
    found = read_scales(Path(config.output) / "final")
    assert found is not None
    text = other_tokenizer().decode(found[1].prompt)
    cache = CacheReader(config.data.shares[0].url, ("tokens",))
    assert any(cache.read_tokens(sample).text.startswith(text) for sample in range(len(cache)))


def test_a_changed_tokenizer_is_refused_at_resume(make: Make, tmp_path: Path) -> None:
    data = {"align": "all"}
    distill(make(data=data, loop={"max_steps": 2}))
    other_tokenizer(MERGES[:5]).save_pretrained(tmp_path / "student")
    with pytest.raises(UserError, match=r"caches were read in the tokens of tokenizer \w{12}, the .* has \w{12}; set"):
        distill(make(data=data))


def test_an_embedding_smaller_than_the_students_tokenizer_is_refused(make: Make, tmp_path: Path) -> None:
    size = len(other_tokenizer())
    write_student(tmp_path / "student", other_tokenizer(), vocab_size=size - 1)
    wanted = (
        rf"student\.checkpoint: .*student: the tokenizer has {size} tokens, but the model an embedding of {size - 1};"
    )
    with pytest.raises(UserError, match=wanted):
        distill(make(data={"align": "all"}))


def test_losses_that_compare_tokens_are_refused(make: Make, caches: list[str]) -> None:
    with pytest.raises(UserError, match=r"losses\.lhsm: compares teacher and student token by token.*leave it out"):
        distill(make(data={"cache": caches[1], "align": "all"}, losses={"lhsm": {}}))


def test_untaught_rows_need_another_tokenizer(make: Make) -> None:
    losses = {"cross_entropy": {"weight": {"start": 1, "end": 1}, "rows": "untaught"}}
    with pytest.raises(UserError, match=r"rows: untaught: needs data\.align"):
        distill(make(tokenizer=tiny_tokenizer(), losses=losses))
    with pytest.raises(UserError, match=r"the caches have the student's tokenizer; use all"):
        distill(make(data={"align": "all"}, losses=losses))


def test_caches_of_several_tokenizers_are_mixed(make: Make, caches: list[str], tmp_path: Path) -> None:
    """One of the student's own tokenizer, one of another, which have different signals and rows."""
    own = tmp_path / "own"
    write_cache_of_texts(tmp_path / "in", own, seed=3, tokenizer=other_tokenizer(), draws=None, logits={"k": 5})
    shares = [{"url": str(own), "weight": 1.0}, {"url": caches[1], "weight": 1.0}]
    config = make(data={"cache": shares, "align": "all", "validation_fraction": 0.2}, losses={"alm": {}})
    summary = distill(config)
    assert summary["steps"] == 6
    assert all(line[name] > 0.1 for line in metrics(config) if "tla" in line for name in ("tla", "alm"))
    with pytest.raises(UserError, match=r"the cache has no draws signal"):
        distill(make("draws", data={"cache": [{"url": caches[0]}, {"url": caches[1]}], "align": "all"}))


def test_rows_of_a_mixture_are_in_the_classes_of_their_own_cache(make: Make, caches: list[str], tmp_path: Path) -> None:
    """A cache of another tokenizer after one of the student's own, and one of a third tokenizer after these."""
    made = {name: other_tokenizer(merges) for name, merges in {"own": MERGES, "third": MERGES[:1]}.items()}
    for seed, (name, tokenizer) in enumerate(made.items()):
        write_cache_of_texts(tmp_path / f"in-{name}", tmp_path / name, seed, tokenizer, draws=None)
    urls = [str(tmp_path / "own"), caches[1], str(tmp_path / "third")]
    config = make(data={"cache": [{"url": url} for url in urls], "align": "classes"})
    side = student_side(tmp_path / "student", "student", False, None)
    rows = RowForm("top_k", 1.0, 13, with_untaught=False, align=Align.CLASSES)
    mixed = [open_for_student(url, ("tokens", "logits"), side=side, rows=rows) for url in urls]
    first = np.cumsum([0, *(int(cache.shard_sizes.sum()) for cache in mixed)]).tolist()
    batch = CacheMixture(mixed).read_rows([[sample] for sample in first[:3]])
    assert batch.classes is not None
    assert batch.classes.max(axis=1).tolist() == [0, 2, 3]
    assert (batch.classes[~batch.attention_mask] == 0).all()
    classes = token_classes(mixed, load_model_config(tmp_path / "student", "student", False), torch.device("cpu"))
    assert [each is None for each in classes] == [True, False, False]
    letters = other_tokenizer().convert_ids_to_tokens
    named = [dict(zip(letters(range(264)), letters(each.of_V.tolist()), strict=True)) for each in classes if each]
    assert named[1]["def"] == "de"  # the third tokenizer's longest
    distill(config)
    assert all(line["tla"] > 0.1 for line in metrics(config) if "tla" in line)


def global_batches(rows: CacheRows[RowPlan], start: int, ranks: int, workers: int = 0) -> Iterator[list[Batch]]:
    """Each row of each step from row ``start`` on, as that many ranks read them together."""
    loaders = [
        prepare_data_loader(
            training_loader(rows, start, 1, workers), num_processes=ranks, process_index=rank, put_on_device=False
        )
        for rank in range(ranks)
    ]
    turns = (batch for together in zip(*loaders, strict=True) for batch in together)
    while step := list(itertools.islice(turns, GLOBAL_BATCH)):
        yield step


def test_ranks_and_workers_read_the_same_and_lose_nothing(caches: list[str], tmp_path: Path) -> None:
    other_tokenizer().save_pretrained(tmp_path / "tokenizer")
    side = student_side(tmp_path / "tokenizer", "student", False, 96, str(tmp_path / "kept"))
    cache = open_for_student(caches[0], ("tokens", "logits"), side=side, rows=RowForm("top_k", 1.0, 13, False))
    order = CacheOrder(Subset(cache, Selection()), Shuffle(5, shards_mixed=2), 96)
    plan = plan_rows([order], None, global_batch=GLOBAL_BATCH, epochs=2, max_steps=None)
    rows = CacheRows(cache, plan, packed=True)
    wanted = list(global_batches(rows, 0, 1))
    assert len(wanted) * GLOBAL_BATCH == len(plan)

    def alike(one: list[Batch], two: list[Batch]) -> bool:
        pairs = zip(one, two, strict=True)
        return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a if name != "next_logprob")

    rng = np.random.default_rng(0)
    for _ in range(STOPS):
        at = int(rng.integers(0, len(wanted)))
        found = global_batches(rows, at * GLOBAL_BATCH, int(rng.choice([1, 2, 4])))
        assert all(alike(one, two) for one, two in zip(itertools.islice(found, 2), wanted[at:], strict=False))
    found = list(itertools.islice(global_batches(rows, 0, 1, workers=1), 3))
    assert all(alike(one, two) for one, two in zip(found, wanted, strict=False))


@pytest.fixture(scope="module")
def with_final(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("final")
    final = {"dtype": "bfloat16"}
    return str(write_cache_of_texts(place / "in", place / "cache", seed=1, final=final, draws=None))


def test_final_states_teach_more_than_entries(make: Make, with_final: str) -> None:
    """The divergence of a whole distribution is at least that of its entries and one bucket."""
    for align in ("border", "all"):
        losses = {}
        for target in ("top_k", "final"):
            config = make(
                f"{align}-{target}",
                data={"cache": with_final, "align": align},
                losses={"tla": {"target": target}},
                loop={"max_steps": 6},
            )
            distill(config)
            losses[target] = [line["tla"] for line in metrics(config)]
        assert 1.0 < losses["final"][0] / losses["top_k"][0] < 3.0
        assert losses["final"][-1] < losses["final"][0]


def test_a_mixture_of_several_heads_has_no_final_target(make: Make, caches: list[str], with_final: str) -> None:
    data = {"cache": [{"url": with_final}, {"url": caches[1]}], "align": "all"}
    assert distill(make(data=data))["target"] == "top_k"
    with pytest.raises(UserError, match=r"final: the caches of the mixture have several output heads"):
        distill(make("other", data=data, losses={"tla": {"target": "final"}}))


def test_evaluation_measures_kl_where_there_is_a_teacher(make: Make, caches: list[str]) -> None:
    folder = str(make().student.checkpoint)
    with pytest.raises(UserError, match=r"add --align border to teach a student with another tokenizer"):
        evaluate_folder(folder, caches[0])
    with pytest.raises(UserError, match=r"set align: border for the task to teach a student with another tokenizer"):
        evaluate_folder(folder, caches[0], key="models: other")
    found = {align: evaluate_folder(folder, caches[0], align=align) for align in ("strict", "border", "all")}
    assert (
        found["strict"]["tokens_with_teacher"]
        < found["border"]["tokens_with_teacher"]
        < found["all"]["tokens_with_teacher"]
    )
    assert len({one["tokens"] for one in found.values()}) == 1
    assert len({one["bits_per_byte"] for one in found.values()}) == 1
    assert all(one["kl"] > 0.1 for one in found.values())
    assert found["border"]["bits_per_byte"] > found["border"]["cross_entropy"] / np.log(2) / 4
    assert not found["border"]["kl_is_exact"]


def test_a_validation_cache_may_have_another_tokenizer_than_that_to_train_on(make: Make, caches: list[str]) -> None:
    data = {"cache": caches[0], "align": "all", "validation_cache": caches[1]}
    assert distill(make(data=data))["validation"]["tokens_with_teacher"] > 0


def test_a_checkpoint_that_was_cut_may_be_gone(make_config, tmp_path: Path) -> None:
    write_random_teacher(tmp_path / "out/student-init")
    start = {"checkpoint": str(tmp_path / "gone"), "ffn": {"width": 64}}
    side = side_of(make_config(student=start, data={"align": "all"}))
    assert side is not None
    with pytest.raises(UserError, match="gone"):
        side_of(make_config(student=start | {"ffn": None}, data={"align": "all"}))
