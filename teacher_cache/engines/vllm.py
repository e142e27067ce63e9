"""The vLLM engine: prefill at full speed, capture inside the worker.

Prefix caching is off (every token must pass through the model), chunked prefill is off (a sequence must be whole in
one step), and so are CUDA graphs and compilation (hooks must see every step). One token is sampled per sequence, as
vLLM requires, and discarded. Of multimodal classes only the language model runs. A short sequence, the probe, is
scored at startup; it finds teachers that vLLM cannot run, and layers whose output is not the residual stream.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from teacher_cache.engines.chunk_rows import head_chunk_rows
from teacher_cache.engines.engine import Engine
from teacher_cache.engines.known import check_known, check_on_cpu
from teacher_cache.engines.kv_cache import kv_cache_memory
from teacher_cache.engines.residual_stream import check_ranks
from teacher_cache.engines.step import CapturedSequence, to_captured
from teacher_cache.engines.text_only import make_importable
from teacher_cache.engines.vllm_errors import causes, reason
from teacher_cache.engines.vllm_import import import_vllm
from teacher_cache.engines.vllm_worker import Refusal
from teacher_cache.lengths import check_length
from teacher_cache.records import Captured, Request
from teacher_cache.signals.side_taps import taps_of
from teacher_cache.teacher import load_model_config

PROBE_TOKENS = 8
CALLS_IN_FLIGHT = 2
MAX_SEQUENCES = 1024  # per step; vLLM's default for an A100 is 256, which short sequences do not fill a step with
GPU_MEMORY_UTILIZATION = 0.85  # of the device, where vLLM sizes its KV cache


class _Call(NamedTuple):
    """A call of ``score_calls`` that was queued: its requests are numbered from ``first``."""

    requests: Sequence[Request]
    first: int
    ids: set[str]  # vLLM's, of the requests


class VllmEngine(Engine):
    """Scores sequences with vLLM, whose scheduler runs in this process: batches, hence values, are reproducible."""

    def __init__(self, config: CacheConfig) -> None:
        """Load vLLM and the model. Raises UserError if either cannot be loaded, or the probe fails."""
        vllm = import_vllm()
        self._capture = config.capture
        model_config = load_model_config(config.teacher)
        text_config, on_cpu = model_config.get_text_config(), vllm.platforms.current_platform.is_cpu()
        self._vocab_size = text_config.vocab_size
        self._taps = taps_of(config.capture, text_config.num_hidden_layers)
        check_length(config, text_config)
        check_known(config, model_config)
        if on_cpu:
            check_on_cpu(config, text_config)
        max_model_len = config.corpus.max_tokens + 1  # one more for the sampled token
        step_tokens = max(config.engine.max_batch_tokens, max_model_len)
        with causes() as found:
            try:
                make_importable(model_config.architectures or [])
                self._llm = vllm.LLM(
                    model=config.teacher.path,
                    revision=config.teacher.revision,
                    dtype=config.teacher.dtype,
                    trust_remote_code=config.teacher.trust_remote_code,
                    tensor_parallel_size=config.engine.tensor_parallel,
                    gpu_memory_utilization=config.engine.gpu_memory_utilization or GPU_MEMORY_UTILIZATION,
                    kv_cache_memory_bytes=kv_cache_memory(config, text_config, step_tokens, on_cpu),
                    max_model_len=max_model_len,
                    max_num_batched_tokens=step_tokens,
                    max_num_seqs=min(MAX_SEQUENCES, step_tokens),
                    worker_extension_cls="teacher_cache.engines.vllm_worker.CaptureWorkerExtension",
                    skip_tokenizer_init=True,
                    language_model_only=True,
                    enforce_eager=True,
                    enable_prefix_caching=False,
                    enable_chunked_prefill=False,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                )
            except Exception as error:  # whatever the loader of this model, and its file formats, may raise
                raise UserError(
                    f"teacher.path: {config.teacher.path}: vLLM cannot load the model: {reason(error, found)}"
                ) from error
            self._sampling = vllm.SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
            try:
                self._start_capture(config)
            except Exception as error:  # a kernel may raise anything
                self.close()
                if isinstance(error, UserError):
                    raise
                architecture = " ".join(model_config.architectures or ["model"])
                raise UserError(
                    f"teacher.path: {config.teacher.path}: vLLM cannot run a {architecture} in {config.teacher.dtype} "
                    f"here: {reason(error, found)}; set engine.kind: transformers, or another teacher.dtype"
                ) from error

    def _start_capture(self, config: CacheConfig) -> None:
        """Install the hooks and score the probe, which locates the residual stream in the layers' outputs."""
        capture = self._capture.model_dump(mode="json")
        chunk_rows = config.engine.head_chunk_rows
        if chunk_rows is None:  # the same on all ranks: they compute each chunk together
            free = [one for one in self._call_ranks("free_memory") if one is not None]
            chunk_rows = head_chunk_rows(min(free, default=None), self._vocab_size)
        self._call_ranks("install_capture", capture, chunk_rows)
        self._call_ranks("begin_probe")
        ids = np.arange(1, 1 + min(PROBE_TOKENS, config.corpus.max_tokens))
        rows = np.arange(len(ids), dtype=np.int32)
        ((_, ranks),) = self._run([[Request(ids, rows)]])
        check_ranks(self._call_ranks("end_probe"))
        for name, tap in self._taps.items():
            if tap.query_key_layer is not None and any(0 not in rank or name not in rank[0].side for rank in ranks):
                raise UserError(
                    f"capture.{name}: q and k of this teacher do not pass through vLLM's attention module; leave the "
                    "signal out, or set engine.kind: transformers"
                )

    def _call_ranks(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every rank's worker. Raises UserError if one of them returns a Refusal."""
        returned = self._llm.collective_rpc(method, args=args)
        for one in returned:
            if isinstance(one, Refusal):
                raise UserError(one.message)
        return returned

    def score(self, requests: Sequence[Request]) -> list[Captured]:
        """See Engine."""
        (captured,) = self.score_calls([requests])
        return captured

    def score_calls(self, calls: Iterable[Sequence[Request]]) -> Generator[list[Captured], None, None]:
        """See Engine. The next call is queued before the current one ends, so that steps stay full.

        Results become records in a thread, while the device computes the next call.
        """
        with ThreadPoolExecutor(1, "records") as pool:
            pending: Future[list[Captured]] | None = None
            for requests, ranks in self._run(calls):
                if pending is not None:
                    yield pending.result()
                pending = pool.submit(self._records, requests, ranks)
            if pending is not None:
                yield pending.result()

    def _run(self, calls: Iterable[Sequence[Request]]) -> Iterator[tuple[Sequence[Request], list[dict[int, Any]]]]:
        """Yield each call with what each rank captured of it, a CapturedSequence by the index of the request."""
        running: deque[_Call] = deque()
        unfinished: set[str] = set()
        first = 0
        try:
            for requests in calls:
                self._call_ranks("expect", list(requests), first)
                prompts = [{"prompt_token_ids": request.input_ids.tolist()} for request in requests]
                queued = self._llm.enqueue(prompts, self._sampling, use_tqdm=False)
                ids = {name.partition("-")[0] for name in queued}  # outputs have them without the random suffix
                unfinished.update(ids)
                running.append(_Call(requests, first, ids))
                first += len(requests)
                if len(running) == CALLS_IN_FLIGHT:
                    yield self._finish(running.popleft(), unfinished)
            while running:
                yield self._finish(running.popleft(), unfinished)
        except GeneratorExit:  # the caller takes no more
            self._llm.llm_engine.abort_request(list(unfinished))
            raise

    def _finish(self, call: "_Call", unfinished: set[str]) -> tuple[Sequence[Request], list[dict[int, Any]]]:
        """Run steps until no sequence of the call is unfinished, and collect what was captured of it."""
        engine = self._llm.llm_engine
        while call.ids & unfinished:
            if not engine.has_unfinished_requests():
                raise RuntimeError(f"vLLM did not finish {len(call.ids & unfinished)} of {len(call.ids)} sequences")
            unfinished.difference_update(out.request_id for out in engine.step() if out.finished)
        numbers = range(call.first, call.first + len(call.requests))
        ranks = self._call_ranks("collect_captured", numbers)
        return call.requests, [{number - call.first: kept for number, kept in rank.items()} for rank in ranks]

    def _records(self, requests: Sequence[Request], ranks: list[dict[int, CapturedSequence]]) -> list[Captured]:
        return [self._captured(request, [rank.get(i) for rank in ranks]) for i, request in enumerate(requests)]

    def _captured(self, request: Request, ranks: list[CapturedSequence | None]) -> Captured:
        """Combine what the ranks captured of one sequence: attention heads of all ranks, the rest of one rank."""
        kept = [rank for rank in ranks if rank is not None]
        return to_captured(request, kept, self._taps, self._capture.logits)

    def close(self) -> None:
        """See Engine."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
