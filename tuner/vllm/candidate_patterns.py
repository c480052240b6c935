"""Messages by which vLLM refuses a candidate's values, or has too little memory for them."""

from __future__ import annotations

import re

from tuner.vllm import bounds
from tuner.vllm.cause import Fault
from tuner.vllm.pattern import Pattern

_C, _E = Fault.CANDIDATE, Fault.ENVIRONMENT
_GIVE_MEMORY = "raise gpu-memory-utilization or lower max-model-len"
_FREE_GPU = "see with nvidia-smi who holds the memory, end it, and go on"
WEIGHTS_HINT = "use more GPUs (--tensor-parallel-size) or a quantised model"


def _R(text: str) -> re.Pattern[str]:  # noqa: N802
    """Compile a message that a terminal or an editor may have broken at any space."""
    return re.compile(text.replace(" ?", r"\s*").replace(" ", r"\s+"))


CANDIDATE_PATTERNS: tuple[Pattern, ...] = (
    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "kv-too-small", _C,
        _R(
            r"To serve at least one request with the model\S* max seq len \((?P<length>\d+)\),? "
            r"\(?(?P<needed>[\d.]+) ?Gi?B\)? KV cache is needed, which is larger than the available KV cache memory "
            r"\((?P<available>-?[\d.]+) ?Gi?B\)"
            r"(?:.{0,120}?\s.{0,40}?estimated maximum model length is (?P<longest>\d+))?"
        ),
        "A request of max-model-len {length} needs more KV cache than there is: {needed} GiB against {available} GiB.",
        _GIVE_MEMORY, bounds.longest_length,
    ),
    Pattern(
        # 0.8 with the V0 engine
        "kv-too-small", _C,
        _R(
            r"The model's max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens that can be "
            r"stored in KV cache \((?P<longest>\d+)\)"
        ),
        "A request of max-model-len {length} does not fit into a KV cache of {longest} tokens.",
        _GIVE_MEMORY, bounds.longest_length,
    ),
    Pattern(
        # The line may be broken by a terminal.
        "kv-too-small", _C, _R(r"To serve at least one request with the model"),
        "A request of max-model-len needs more KV cache than there is.", _GIVE_MEMORY,
    ),
    Pattern(
        "no-kv-memory", _C, _R(r"No available memory for the cache blocks"),
        "Weights and activations leave no memory for a KV cache.",
        "raise gpu-memory-utilization or lower max-num-batched-tokens", bounds.more_memory_than_given,
    ),
    Pattern(
        "no-kv-memory", _C, _R(r"Cannot auto-fit max_model_len: not enough GPU memory"),
        "Not even the shortest max-model-len fits into the memory left for the KV cache.",
        "raise gpu-memory-utilization", bounds.more_memory_than_given,
    ),
    Pattern(
        "memory-wanted", bounds.gpu_held,
        _R(
            r"Free memory on device [^\n]*?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired "
            r"GPU memory utilization \((?P<wanted>[\d.]+), (?P<wanted_gib>[\d.]+) GiB\)"
        ),
        "gpu-memory-utilization {wanted} wants {wanted_gib} GiB and {free} of {total} GiB are free.",
        _FREE_GPU + ", or lower gpu-memory-utilization", bounds.free_share,
    ),
    Pattern(
        "memory-moved", _E, _R(r"Error in memory profiling\."),
        "Another process gave GPU memory back while vLLM measured it.", "start again when the GPU is quiet",
    ),
    Pattern(
        "host-memory-wanted", bounds.host_held,
        _R(
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than desired "
            r"CPU memory utilization \((?P<wanted>[\d.]+), (?P<wanted_gib>[\d.]+) GiB\)"
        ),
        "gpu-memory-utilization {wanted} wants {wanted_gib} GiB of host memory; {free} of {total} GiB are available.",
        "lower gpu-memory-utilization or end other programs", bounds.free_share,
    ),
    Pattern(
        "host-kv-memory", _C,
        _R(
            r"Available memory on node \d+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less "
            r"than requested memory for kv \((?P<kv>-?[\d.]+)(?:/(?P<budget>[\d.]+))? GiB\)"
        ),
        "The KV cache was to get {kv} GiB, which is not between 0 and the {free} GiB available.",
        "change gpu-memory-utilization or kv-cache-memory-bytes", bounds.host_kv,
    ),
    Pattern(
        "host-kv-memory", _C,
        _R(r"The worker already uses (?P<used>[\d.]+) GiB \(model weights and runtime\), more than the"),
        "Weights and runtime take {used} GiB, more than gpu-memory-utilization allows.",
        "raise gpu-memory-utilization", bounds.more_memory_than_given,
    ),
    Pattern(
        "oom-weights", bounds.memory_held, _R(r"Failed to load model - not enough GPU memory"),
        "The weights do not fit into the GPU's memory.", WEIGHTS_HINT,
    ),
    Pattern(
        "oom-warm-up", bounds.memory_held,
        _R(
            r"(?:CUDA|HIP|XPU) out of memory occurred when warming up (?:sampler|pooler)[^\n]*? with (?P<seqs>\d+) "
            r"dummy requests"
        ),
        "A warm-up with {seqs} sequences at once has no memory left.",
        "lower max-num-seqs or gpu-memory-utilization", bounds.fewer_sequences,
    ),
    # ── arguments ───────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "batched-below-seqs", _C,
        _R(
            r"max_num_batched_tokens \((?P<tokens>\d+)\) must be greater than or equal to max_num_seqs "
            r"\((?P<seqs>\d+)\)"
        ),
        "max-num-batched-tokens {tokens} is below max-num-seqs {seqs}.",
        "raise max-num-batched-tokens or lower max-num-seqs", bounds.at_most("max-num-seqs", "tokens"),
    ),
    Pattern(
        "batched-below-len", _C,
        _R(r"max_num_batched_tokens \((?P<tokens>\d+)\) is smaller than max_model_len \((?P<length>\d+)\)"),
        "Without chunked prefill max-num-batched-tokens {tokens} must be at least max-model-len {length}.",
        "raise max-num-batched-tokens or allow chunked prefill", bounds.at_least("max-num-batched-tokens", "length"),
    ),
    Pattern(
        "batched-below-block", _C, _R(r"block_size \((?P<block>\d+)\) must be <= max_num_batched_tokens"),
        "max-num-batched-tokens is below the {block} tokens of a block of the model's states.",
        "raise max-num-batched-tokens", bounds.at_least("max-num-batched-tokens", "block"),
    ),
    Pattern(
        "batched-below-item", _C,
        _R(
            r"max_tokens_per_mm_item \((?P<tokens>\d+)\) is larger than max_num_batched_tokens"
            r"(?: \((?P<batched>\d+)\))?"
        ),
        "An image or another item takes {tokens} tokens, which is more than max-num-batched-tokens.",
        "raise max-num-batched-tokens", bounds.at_least("max-num-batched-tokens", "tokens"),
    ),
    Pattern(
        "batched-below-draft", _C,
        _R(
            r"does not have enough slots to schedule a token|which does not allow any tokens to be scheduled"
            r"|Consider increasing max_num_batched_tokens or decreasing num_speculative_tokens"
        ),
        "max-num-batched-tokens is too small for the draft tokens of max-num-seqs sequences.",
        "raise max-num-batched-tokens or lower max-num-seqs",
    ),
    Pattern(
        "capture-sizes", _C,
        _R(r"No valid cudagraph sizes after rounding|customized max_cudagraph_capture_size"
           r"|max_cudagraph_capture_size and compilation_config"),
        "The sizes of CUDA graphs do not fit together.",
        "leave max-cudagraph-capture-size or cudagraph-capture-sizes to vLLM",
    ),
    Pattern(
        "active-above-seqs", _C,
        _R(r"max_num_active_seqs \((?P<active>\d+)\) cannot be greater than max_num_seqs \((?P<seqs>\d+)\)"),
        "max-num-active-seqs {active} is above max-num-seqs {seqs}.",
        "lower max-num-active-seqs", bounds.at_most("max-num-active-seqs", "seqs"),
    ),
    Pattern(
        "threshold-above-len", _C,
        _R(
            r"long_prefill_token_threshold \((?P<threshold>\d+)\) cannot be greater than the max_model_len "
            r"\((?P<length>\d+)\)"
        ),
        "long-prefill-token-threshold {threshold} is above max-model-len {length}.",
        "lower long-prefill-token-threshold", bounds.at_most("long-prefill-token-threshold", "length"),
    ),
    Pattern(
        "len-above-model", _C,
        _R(
            r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len"
            r"(?: \((?:\w+=)?(?P<longest>\d+)(?:[.\d]* or model_max_length=(?P<other>\d+))?)?"
        ),
        "max-model-len {length} is longer than the model was made for.",
        "lower max-model-len", bounds.length_of_model,
    ),
    Pattern(
        "partial-prefills", _C, _R(r"Concurrent Partial Prefill is not supported"),
        "This vLLM has the partial prefill flags and refuses every value of them.",
        "leave max-num-partial-prefills and max-long-partial-prefills at 1", bounds.no_partial_prefills,
    ),
    Pattern(
        "mamba-blocks", _C, _R(r"exceeds available Mamba cache blocks \((?P<blocks>\d+)\)"),
        "The model's state cache has blocks for {blocks} sequences only.",
        "lower max-num-seqs", bounds.at_most("max-num-seqs", "blocks"),
    ),
    Pattern(
        # 0.15 to 0.17 found out in a kernel
        "mamba-blocks", _C, _R(r"num_cache_lines >= batch"),
        "The model's state cache has blocks for fewer sequences than max-num-seqs.", "lower max-num-seqs",
    ),
    Pattern(
        "heads-not-divisible", _C,
        _R(r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size"),
        "The model's {heads} attention heads do not divide by the tensor-parallel size.",
        "choose another --tensor-parallel-size",
    ),
    Pattern(
        "layout-unsupported", _C,
        _R(
            r"AssertionError: \d+ is not divisible by \d+$|(?:partition_size|size_per_partition) ?=[^\n]*not divisible"
            r"|not divisible by weight quantization block|assert [^\n]*\b(?:tp|tensor\w*_parallel\w*)_size(?: % | == 0)"
            r"|not aligned with the quantized weight shape|Pipeline parallelism is not supported for this model"
            r"|[Rr]equires pipeline_parallel_size=1|does not support pipeline_parallel_size"
            r"|[Tt]ry adjusting tensor_parallel_size|[Cc]onsider reducing tensor_parallel_size"
            r"|(?:vocab|hidden|intermediate|head)\w* [^\n]*divisible by (?:the )?(?:tensor|tp|world)[ _]"
        ),
        "The model cannot be divided among GPUs in this way.", "choose another --tensor-parallel-size",
    ),
)  # fmt: skip
