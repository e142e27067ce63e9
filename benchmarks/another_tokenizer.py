"""What share of a student's tokens a teacher with another tokenizer can teach, and how fast rows are turned.

Real tokenizers: DeepSeek → Qwen3.6 and SmolLM2 → Qwen3.6, over Python, English, Chinese and digits. The rows of SmolLM2
are real, the top 64 of the real teacher; those of DeepSeek, which is not at hand, hold the token that followed and
random ones: shares by kind are real, the masses are not.

Speed is that of one process in processor time: tokenising, laying tokens over the teacher's, and turning rows. The wait
for data is that of a student of 100 M parameters trained on this machine's processor, without worker processes.
"""

import json
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.real_teacher import make_teacher
from benchmarks.support.corpus import standard_library
from benchmarks.support.results import Row, at_least, at_most, exit_status, write_results
from benchmarks.support.tokenizers import deepseek, install, qwen, smollm2
from schemas.cache_config import CacheConfig, CaptureConfig
from schemas.load import validate
from schemas.train_config import TlaConfig, TrainConfig
from teacher_cache import job
from teacher_cache.corpus.token_spans import ByteTokenizer, vocabulary_table
from teacher_cache.output_head import OutputHead
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.retarget.retargeter import Retargeted, Retargeter
from teacher_cache.retarget.row_targets import TAUGHT, Align, Kind
from teacher_cache.retarget.student_text import StudentTokenizer
from teacher_cache.token_table import Vocabulary
from trainer.distiller import distill
from trainer.losses.objective import head_pass
from trainer.losses.teacher_rows import TeacherRows
from trainer.losses.tla import Tla
from trainer.losses.token_classes import TokenClasses

K, SEQUENCE_TOKENS, SEQUENCES = 64, 512, 4
SPEED_REPETITIONS = 3
LOSS_ROWS, LOSS_WIDTH = 64, 1024
MIN_TAUGHT, MIN_TOKENS_PER_SECOND, MOST_WAIT = 0.98, 300_000, 5.0
STEPS = 4
Rows = Callable[[TokenSample], LogitsSample]


def main() -> int:
    """Run the benchmark; returns the exit status."""
    problem = install()
    if problem is not None:
        print(f"error: the tokenizers cannot be installed: {problem}", file=sys.stderr)
        return 1
    student = StudentTokenizer(qwen())
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, tokenizer, of in (("SmolLM2", smollm2(), real_rows()), ("DeepSeek", deepseek(), random_rows())):
        vocabulary = vocabulary_of(tokenizer)
        retarget = Retargeter(vocabulary, student)
        for kind, text in texts().items():
            samples = [(sample, of(sample)) for sample in samples_of(tokenizer, text)]
            found = [retarget(sample, None, logits, 0, 1.0) for sample, logits in samples]
            counts, crossing = counted([each for each in found if each is not None])
            raw[f"{name}, {kind}"] = {each.name: count for each, count in counts.items()} | {"crossing": crossing}
            rows += shares(f"{name} → Qwen3.6, {kind}", counts, crossing)
        in_classes = Retargeter(vocabulary, student, Align.CLASSES)
        for how, each in (("", retarget), (", over classes", in_classes)):
            rows.append(speed(f"{name} → Qwen3.6{how}", each, samples_of(tokenizer, texts()["Python"]), of))
        if name == "SmolLM2":
            rows.append(loss_over_classes(f"{name} → Qwen3.6", in_classes))
    rows.append(data_wait())
    write_results("another_tokenizer", "Students with another tokenizer: what they can be taught", rows, raw)
    return exit_status(rows)


def texts() -> dict[str, str]:
    """Text of each kind that every installation of Python has."""
    folder = Path(sysconfig.get_path("stdlib"))
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 10**6, (400, 2)).tolist()
    found = {
        "Python": "\n".join(file.read_text(encoding="utf-8") for file in standard_library()[:12]),
        "English": (folder / "pydoc_data/topics.py").read_text(encoding="utf-8").replace("\\n", "\n"),
        "digits": "\n".join(f"{a} + {b} = {a + b}" for a, b in pairs),
    }
    chinese = folder / "test/cjkencodings/gb18030-utf8.txt"
    return found | ({"Chinese": chinese.read_text(encoding="utf-8")} if chinese.exists() else {})


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The tokens' bytes; no stop token, as the texts have no end."""
    table = vocabulary_table(tokenizer)
    special = np.isin(np.arange(len(table.length_V)), tokenizer.all_special_ids)
    return Vocabulary(table, special, np.zeros_like(special))


def samples_of(tokenizer: Any, text: str) -> list[TokenSample]:
    """The first sequences of a text, cut where a character ends."""
    found = []
    characters = 4 * SEQUENCE_TOKENS
    encoder = ByteTokenizer(tokenizer)
    for start in range(0, min(len(text), SEQUENCES * characters), characters):
        part = text[start : start + characters]
        (spans,) = encoder.encode([part])
        mask = np.arange(len(spans.ids)) < len(spans.ids) - 1
        found.append(TokenSample("", "", "", part, spans.ids, mask, spans.start, spans.end))
    return found


def real_rows() -> Rows:
    """The top entries of the real teacher."""
    import torch
    from transformers import AutoModelForCausalLM

    from teacher_cache.signals.logits.capture import reduce_logits

    model = AutoModelForCausalLM.from_pretrained(make_teacher(), dtype=torch.float32).eval()

    @torch.inference_mode()
    def rows(sample: TokenSample) -> LogitsSample:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        logits_SV = model(ids[None], use_cache=False).logits[0]
        found = reduce_logits(logits_SV, ids.roll(-1), K, [1.0])
        return _sample(found.ids_NK.numpy(), found.logprobs_NK.numpy(), found.next_logprob_N.numpy())

    return rows


def random_rows() -> Rows:
    """The token that followed, and random ones."""

    def rows(sample: TokenSample) -> LogitsSample:
        rng = np.random.default_rng(0)
        ids = rng.integers(0, sample.input_ids.max() + 1, (len(sample.input_ids), K)).astype(np.int32)
        ids[:, 0] = np.roll(sample.input_ids, -1)
        logprobs = np.log(0.95 * np.sort(rng.dirichlet(np.full(K, 0.1), len(ids)))[:, ::-1] + 1e-9).astype(np.float32)
        return _sample(ids, logprobs, logprobs[:, 0])

    return rows


def _sample(ids_SK: np.ndarray, logprobs_SK: np.ndarray, next_logprob_S: np.ndarray) -> LogitsSample:
    n = len(ids_SK)
    following = np.where(np.arange(n) == n - 1, np.float32(np.nan), next_logprob_S)
    counts, partition = np.full(n, K, np.int32), np.zeros((n, 1), np.float32)
    return LogitsSample(n, np.arange(n, dtype=np.int32), counts, ids_SK, logprobs_SK, following, partition)


def counted(found: list[Retargeted]) -> tuple[Counter[Kind], int]:
    """Learned tokens by kind, and those taught that end after the teacher token in which they begin."""
    kinds: Counter[Kind] = Counter()
    crossing = 0
    for each in found:
        learned = np.flatnonzero(each.text.loss_mask_J) + 1
        kinds.update(map(Kind, each.targets.kind_J[learned].tolist()))
        taught = np.isin(each.targets.kind_J[learned], TAUGHT)
        crossing += int((taught & each.targets.crosses_J[learned]).sum())
    return kinds, crossing


def shares(what: str, counts: Counter[Kind], crossing: int) -> list[Row]:
    """Shares of the tokens that are learned, and of those that are not blank the taught ones."""
    learned = counts.total()
    border = counts[Kind.EQUAL] + counts[Kind.BORDER]
    rated, taught = learned - counts[Kind.BLANK], sum(counts[kind] for kind in TAUGHT)
    return [
        Row(f"{what}: equal on both sides", 100 * counts[Kind.EQUAL] / learned, "%"),
        Row("… begin where a teacher token does", 100 * border / learned, "%"),
        Row("… begin inside of one", 100 * counts[Kind.INSIDE] / learned, "%"),
        Row("… end after it", 100 * crossing / learned, "%"),
        Row("… blanks alone", 100 * counts[Kind.BLANK] / learned, "%"),
        at_least("… taught by `all`, of those that are not blank", taught / rated, "", MIN_TAUGHT),
    ]


def speed(name: str, retarget: Retargeter, samples: list[TokenSample], of: Rows) -> Row:
    """Student tokens a second of processor time, the best of a few passes."""
    pairs = [(sample, of(sample)) for sample in samples]
    best = 0.0
    for _ in range(SPEED_REPETITIONS):
        started, tokens = time.process_time(), 0
        for _ in range(10):
            for sample, logits in pairs:
                found = retarget(sample, None, logits, 0, 1.0)
                tokens += 0 if found is None else len(found.text.ids_J)
        best = max(best, tokens / (time.process_time() - started))
    return at_least(f"{name}: tokenised, aligned, turned", best, "tok/s", MIN_TOKENS_PER_SECOND)


def loss_over_classes(name: str, retarget: Retargeter) -> Row:
    """Time of the head and the loss over classes, forward and backward, relative to that over tokens."""
    common_V = retarget.common_tokens
    assert common_V is not None
    vocabulary, generator = len(common_V), torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(LOSS_ROWS, LOSS_WIDTH, generator=generator)
    head = OutputHead(torch.randn(vocabulary, LOSS_WIDTH, generator=generator) / LOSS_WIDTH**0.5)
    ids_NK = torch.randint(vocabulary, (LOSS_ROWS, K), generator=generator)
    logprobs_NK = torch.log_softmax(torch.randn(LOSS_ROWS, K, generator=generator), dim=1) - 0.1
    rows = TeacherRows(
        ids_NK=torch.from_numpy(common_V).long()[ids_NK],
        logprobs_NK=logprobs_NK,
        log_partition_NT=torch.zeros(LOSS_ROWS, 1),
        next_ids_N=torch.randint(vocabulary, (LOSS_ROWS,), generator=generator),
        next_logprob_N=torch.full((LOSS_ROWS,), torch.nan),
        token_classes=(TokenClasses.of(common_V, vocabulary),),
    )
    tla = Tla(TlaConfig(), CaptureConfig.model_validate({"logits": {"k": K}, "draws": None}))
    classed = replace(rows, classes_N=torch.ones(LOSS_ROWS, dtype=torch.int16))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(SPEED_REPETITIONS):
        for over_classes in seconds:
            leaf_ND = hidden_ND.clone().requires_grad_()
            started = time.perf_counter()
            head_pass([tla], [1.0], leaf_ND, head, classed if over_classes else rows)[0].backward()
            seconds[over_classes].append(time.perf_counter() - started)
    ratio = statistics.median(seconds[True]) / statistics.median(seconds[False])
    return Row(f"{name}: head and loss over classes ÷ over tokens", ratio, "×")


def data_wait() -> Row:
    """Share of a training step of a 100 M student that is waited for data, which one process reads and turns."""
    from transformers import LlamaConfig

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        records = (json.dumps({"text": file.read_text(encoding="utf-8")}) for file in standard_library()[:3])
        (place / "texts.jsonl").write_text("\n".join(records), encoding="utf-8")
        tree = {
            "teacher": {"path": str(make_teacher())},
            "engine": {"kind": "transformers"},
            "corpus": {"sources": [{"path": str(place / "texts.jsonl")}], "max_tokens": SEQUENCE_TOKENS},
            "capture": {"logits": {"k": K}, "draws": None},
            "output": {"path": str(place / "cache")},
        }
        job.run(validate(CacheConfig, tree, "benchmark"))
        tokenizer = qwen()
        tokenizer.save_pretrained(place / "student")
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=8,
            num_attention_heads=6, tie_word_embeddings=True,
        ).save_pretrained(place / "student")  # fmt: skip
        train = {
            "data": {"cache": str(place / "cache"), "align": "all"},
            "student": {"config": str(place / "student")},
            "loop": {"max_steps": STEPS, "micro_batch_size": 2},
            "output": str(place / "out"),
        }
        distill(validate(TrainConfig, train, "benchmark"))
        lines = [json.loads(line) for line in (place / "out/metrics.jsonl").read_text().splitlines()][1:]
    share = sum(line["data_wait"] for line in lines) / sum(line["step_seconds"] for line in lines)
    return at_most("SmolLM2 → Qwen3.6: wait for data, of a training step", 100 * share, "%", MOST_WAIT)


if __name__ == "__main__":
    sys.exit(main())
