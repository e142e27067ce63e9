"""The reference engine: an ordinary ``transformers`` forward pass, against which vLLM is checked.

Attention rows are computed from q and k, at the wanted positions only, so memory is not quadratic in the sequence
length. Models whose attention SDPA cannot compute exactly run with eager attention, which is quadratic: they get
smaller batches, and lengths that do not fit in memory are refused before the run.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from teacher_cache.attention_implementation import EAGER, exact_attention
from teacher_cache.decoder_layers import decoder_layers
from teacher_cache.engines.chunk_rows import free_memory_bytes, head_chunk_rows
from teacher_cache.engines.engine import Engine
from teacher_cache.engines.step import Shares, Step, StepSequence, to_captured
from teacher_cache.lengths import forget_lengths, max_length, rope_scale
from teacher_cache.model_class import model_class
from teacher_cache.model_folder import not_loaded
from teacher_cache.process import available_memory_bytes
from teacher_cache.query_key import QueryKey, tap_query_key
from teacher_cache.records import Captured, Request
from teacher_cache.signals.side_taps import taps_of
from teacher_cache.signals.tap import SequenceQueryKey
from teacher_cache.teacher import load_model_config

MAX_LOGITS_BYTES = 1 << 30
MAX_WEIGHTS = 1 << 28  # attention weights of one eager layer, in a batch of several sequences
EAGER_BYTES = 12  # per weight of an eager layer: scores, masked scores, softmax


class TransformersEngine(Engine):
    """Right-padded batches of sequences of similar length through ``AutoModelForCausalLM``."""

    def __init__(self, config: CacheConfig) -> None:
        """Load the model. Raises UserError if it cannot be loaded, or does not fit in memory with eager attention."""
        device = config.engine.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._capture = config.capture
        model_config = load_model_config(config.teacher)
        text_config = model_config.get_text_config()
        attention = exact_attention(model_config)
        self._vocab_size = text_config.vocab_size
        self._hidden_size = text_config.hidden_size
        self._max_length = max_length(text_config)
        self._rope_scale = rope_scale(text_config)
        self._batch_tokens = min(config.engine.max_batch_tokens, max(1, MAX_LOGITS_BYTES // (4 * self._vocab_size)))
        try:
            self._model = model_class(model_config).from_pretrained(
                config.teacher.path,
                revision=config.teacher.revision,
                dtype=getattr(torch, config.teacher.dtype),
                trust_remote_code=config.teacher.trust_remote_code,
                attn_implementation=attention,
            )
            self._model = self._model.eval().to(device)
        except Exception as error:  # whatever the loader of this model, and its file formats, may raise
            raise not_loaded(error, f"teacher.path: {config.teacher.path}: cannot load the model") from error
        heads = getattr(text_config, "num_attention_heads", None)  # a state space model has none
        if self._model.config._attn_implementation == EAGER and heads is not None:
            _check_eager_memory(config.corpus.max_tokens, heads, self._model.device)
            self._batch_tokens = min(self._batch_tokens, int((MAX_WEIGHTS / heads) ** 0.5))
        free = free_memory_bytes(self._model.device)
        self._chunk_rows = config.engine.head_chunk_rows or head_chunk_rows(free, self._vocab_size)
        self._taps = taps_of(config.capture, text_config.num_hidden_layers)
        self._layer_outputs: dict[int, torch.Tensor] = {}  # residual streams [B, S, D] of the last pass
        self._query_keys: dict[int, QueryKey] = {}
        self._final_BSD: torch.Tensor | None = None
        self._install_hooks(text_config.num_hidden_layers)

    def _install_hooks(self, num_layers: int) -> None:
        taps = self._taps.values()
        wanted = sorted({number for tap in taps for number in tap.layers})
        attended = {tap.query_key_layer for tap in taps if tap.query_key_layer is not None}
        layers: Any = decoder_layers(self._model, num_layers) if wanted or attended else ()
        for number in wanted:
            layers[number - 1].register_forward_hook(partial(self._keep_output, number))
        if any(tap.reads_final for tap in taps):
            self._model.get_output_embeddings().register_forward_pre_hook(self._keep_final)
        for number in sorted(attended):
            keep = partial(self._query_keys.__setitem__, number)
            tap_query_key(_attention_module(layers[number - 1]), keep, "teacher")

    def _keep_output(self, number: int, layer: Any, _args: Any, output: Any) -> None:
        stream_BSD = output[0] if isinstance(output, tuple) else output
        if stream_BSD.ndim != 3 or stream_BSD.shape[2] != self._hidden_size:
            name = next(name for name, tap in self._taps.items() if number in tap.layers)
            raise UserError(
                f"capture.{name}: layer {number}: a {type(layer).__name__} of transformers returns a tensor "
                f"{list(stream_BSD.shape)}, wanted one residual stream [batch, tokens, {self._hidden_size}]; leave the "
                "signal out for this teacher"
            )
        self._layer_outputs[number] = stream_BSD

    def _keep_final(self, _head: Any, args: Any) -> None:
        self._final_BSD = args[0]

    def score(self, requests: Sequence[Request]) -> list[Captured]:
        """See Engine. Raises UserError for a sequence longer than the teacher supports."""
        longest = max((len(request.input_ids) for request in requests), default=0)
        if self._max_length is not None and longest > self._max_length:
            raise UserError(f"a sequence has {longest} tokens, the teacher supports at most {self._max_length}")
        captured: dict[int, Captured] = {}
        for batch in self._batches([request.input_ids for request in requests]):
            scored = self._score_batch([requests[i] for i in batch])
            captured.update(zip(batch, scored, strict=True))
        return [captured[position] for position in range(len(requests))]

    def _batches(self, sequences: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Yield batches of indices into ``sequences``, longest first.

        A batch has at most ``_batch_tokens`` tokens with padding, and one scale of the rotary embedding.
        """
        batch: list[int] = []
        for position in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
            length = len(sequences[position])
            if batch:
                longest = len(sequences[batch[0]])
                too_many = (len(batch) + 1) * longest > self._batch_tokens
                if too_many or self._rope_scale(length) != self._rope_scale(longest):
                    yield batch
                    batch = []
            batch.append(position)
        if batch:
            yield batch

    @torch.inference_mode()
    def _score_batch(self, requests: Sequence[Request]) -> list[Captured]:
        longest = max(len(request.input_ids) for request in requests)
        ids_BS = torch.zeros((len(requests), longest), dtype=torch.long)
        mask_BS = torch.zeros((len(requests), longest), dtype=torch.long)
        for row, request in enumerate(requests):
            ids_BS[row, : len(request.input_ids)] = torch.from_numpy(request.input_ids.astype(np.int64))
            mask_BS[row, : len(request.input_ids)] = 1
        ids_BS, mask_BS = ids_BS.to(self._model.device), mask_BS.to(self._model.device)
        self._layer_outputs.clear()
        forget_lengths(self._model)
        logits_BSV = self._model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
        sequences = [
            StepSequence(row, request, row * longest, row * longest + len(request.input_ids))
            for row, request in enumerate(requests)
        ]
        step = Step(sequences, self._taps, self._model.device)
        for number in sorted(self._layer_outputs):
            step.layer(number, self._layer_outputs[number].flatten(0, 1))
        if self._final_BSD is not None:
            step.final(self._final_BSD.flatten(0, 1))
        for number in self._query_keys:
            step.query_key(number, partial(self._seen, number))
        logits_NV = logits_BSV.flatten(0, 1)[:, : self._vocab_size]
        step.logits(
            ids_BS.flatten(),
            lambda rows_n: logits_NV.index_select(0, rows_n),
            self._capture.logits,
            self._chunk_rows,
            Shares(),
        )
        captured = step.finish()
        return [
            to_captured(request, [captured[row]], self._taps, self._capture.logits)
            for row, request in enumerate(requests)
        ]

    def _seen(self, number: int, one: StepSequence) -> SequenceQueryKey:
        """q and k of a sequence in layer ``number``."""
        query_BHSE, key_BGSE, scaling, softcap = self._query_keys[number]
        length = len(one.request.input_ids)
        query_SHE, key_SGE = (part[one.number, :, :length].transpose(0, 1) for part in (query_BHSE, key_BGSE))
        return SequenceQueryKey(query_SHE, key_SGE, scaling, softcap)

    def close(self) -> None:
        """See Engine."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _attention_module(layer: Any) -> Any:
    attention = getattr(layer, "self_attn", None)
    if attention is None:
        raise UserError(
            f"capture.attention: a {type(layer).__name__} of transformers has no self_attn whose rows can be stored; "
            "leave the signal out for this teacher"
        )
    return attention


def _check_eager_memory(max_tokens: int, heads: int, device: torch.device) -> None:
    """Raise UserError if the weights of one sequence do not fit in the free memory of ``device``."""
    needed = EAGER_BYTES * heads * max_tokens**2
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    if free is not None and needed > free:
        fit = int((free / EAGER_BYTES / heads) ** 0.5)
        raise UserError(
            f"corpus.max_tokens: {max_tokens}: this teacher needs eager attention in the transformers engine, whose "
            f"weights take {needed / 1e9:.1f} GB for one sequence, and {free / 1e9:.1f} GB are free; set it to {fit} "
            "or less, or use engine.kind: vllm"
        )
