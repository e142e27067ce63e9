"""``python -m trainer.quantization.vllm_smoke``: one greedy generation in vLLM, in a process that does nothing else.

Reads a JSON object from standard input (folder, ids, new_tokens, trust_remote_code, own_kernel) and prints one as the
last line: the tokens, and the log-probabilities of the text's own tokens from the second on. Without own_kernel, vLLM's
4-bit kernel for CPUs is left out, which adds in another order than the 16-bit product, so that the plugin's takes over.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Generate as standard input says."""
    wanted: dict[str, Any] = json.load(sys.stdin)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not wanted["own_kernel"]:
        os.environ["VLLM_DISABLED_KERNELS"] = "CPUWNA16LinearKernel"
    import vllm
    from vllm.inputs import TokensPrompt

    from trainer.quantization.vllm_plugin import register

    register()  # as its entry point does where the project is installed
    ids, new_tokens = wanted["ids"], wanted["new_tokens"]
    engine = vllm.LLM(
        model=wanted["folder"],
        trust_remote_code=wanted["trust_remote_code"],
        max_model_len=len(ids) + new_tokens,
        max_num_seqs=1,
        kv_cache_memory_bytes=1 << 28,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    settings = vllm.SamplingParams(
        max_tokens=new_tokens, temperature=0.0, detokenize=False, logprobs=0, prompt_logprobs=0
    )
    (request,) = engine.generate([TokensPrompt(prompt_token_ids=ids)], settings, use_tqdm=False)
    (reply,) = request.outputs
    rows: list[Any] = [*list(request.prompt_logprobs or [])[1:], *list(reply.logprobs or [])]
    tokens = [*ids[1:], *reply.token_ids]
    said = [row[token].logprob for row, token in zip(rows, tokens, strict=True)]
    print("\n" + json.dumps({"tokens": list(reply.token_ids), "log_probabilities": said}))


if __name__ == "__main__":
    main()
