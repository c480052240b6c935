"""Messages of vLLM 0.20 to 0.33, torch, the hub and the kernel, each with its meaning.

Three tables. SPECIFIC names a root cause. BROAD names a class that a specific message may belong to. GENERIC only
says that something died. In the first two the first match in the log wins: what follows is consequence. In GENERIC
the first of the table wins: its messages accompany each other, often on one line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuner.vllm import bounds
from tuner.vllm.bounds import Judge, Learn
from tuner.vllm.cause import Fault


@dataclass(frozen=True, slots=True)
class Pattern:
    """Pattern of one message. `explanation` is filled with the groups of `regex`. A group named `line` marks the
    line to quote."""

    kind: str
    fault: Fault | Judge
    regex: re.Pattern[str]
    explanation: str
    hint: str
    learn: Learn = bounds.nothing


_R = re.compile
_C, _S, _E, _O, _U = Fault.CANDIDATE, Fault.STUDY, Fault.ENVIRONMENT, Fault.OURS, Fault.UNKNOWN
_GIVE_MEMORY = "raise gpu-memory-utilization or lower max-model-len"
_FREE_GPU = "see with nvidia-smi who holds the memory, end it, and go on"
_CHECK_MODEL = "check --model; a gated or private model needs HF_TOKEN in the environment"

SPECIFIC: tuple[Pattern, ...] = (
    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "kv-too-small", _C,
        _R(
            r"To serve at least one request with the model\S* max seq len \((?P<length>\d+)\),? "
            r"\(?(?P<needed>[\d.]+) ?GiB\)? KV cache is needed, which is larger than the available KV cache memory "
            r"\((?P<available>-?[\d.]+) ?GiB\)(?:[^\n]*?estimated maximum model length is (?P<longest>\d+))?"
        ),
        "A request of max-model-len {length} needs more KV cache than there is: {needed} GiB against {available} GiB.",
        _GIVE_MEMORY, bounds.longest_length,
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
        "memory-moved", _E, _R(r"Error in memory profiling\. Initial free memory"),
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
        "oom-weights", _C, _R(r"Failed to load model - not enough GPU memory"),
        "The weights do not fit into the GPU's memory.",
        "use more GPUs (--tensor-parallel-size) or a quantised model",
    ),
    Pattern(
        "oom-warm-up", _C, _R(r"CUDA out of memory occurred when warming up sampler with (?P<seqs>\d+) dummy requests"),
        "The sampler has no memory left for {seqs} sequences at once.",
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
            r"(?: \((?:\w+=)?(?P<longest>\d+))?"
        ),
        "max-model-len {length} is longer than the model was made for.",
        "lower max-model-len", bounds.at_most("max-model-len", "longest"),
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
        "too-few-gpus", _C,
        _R(r"World size \((?P<world>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)"),
        "The launch wants {world} GPUs and sees {gpus}.",
        "lower --tensor-parallel-size or give more --gpus", bounds.at_most("tensor-parallel-size", "gpus"),
    ),
    Pattern(
        "heads-not-divisible", _C,
        _R(r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size"),
        "The model's {heads} attention heads do not divide by the tensor-parallel size.",
        "choose another --tensor-parallel-size",
    ),
    # ── machine ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "port-in-use", _E,
        _R(r"(?:\[Errno 98\][^\n]*[Aa]ddress already in use|error while attempting to bind on address)"),
        "Another process holds the port.", "start again: every start takes a fresh port",
    ),
    Pattern(
        "shm-full", _E,
        _R(r"Insufficient space in /dev/shm for [^\n]*?: (?P<needed>\d+) MiB required, (?P<free>\d+) MiB free"),
        "/dev/shm has {free} MiB free and vLLM needs {needed}.",
        "remove stale files from /dev/shm or enlarge it (docker: --shm-size, --ipc=host)",
    ),
    Pattern(
        "shm-full", _E,
        _R(r"No space left on device: '?(?:/dev/shm/|/?psm_)|unable to (?:open|mmap|allocate) shared memory|Bus error"),
        "/dev/shm is full.", "remove stale files from /dev/shm or enlarge it (docker: --shm-size, --ipc=host)",
    ),
    Pattern(
        "disk-full", _E, _R(r"\[Errno 28\]|No space left on device|Disk quota exceeded"),
        "The disk is full.", "free some space, then go on with the study",
    ),
    Pattern(
        "host-memory-exhausted", _E,
        _R(r"\[Errno 12\] Cannot allocate memory|std::bad_alloc|DefaultCPUAllocator: can't"),
        "The machine ran out of host memory.", "end other programs, then go on with the study",
    ),
    Pattern(
        "too-many-files", _E, _R(r"\[Errno 24\] Too many open files"),
        "The limit of open files is reached.", "raise it in this shell: ulimit -n 65536",
    ),
    Pattern(
        "numa-nodes", _E, _R(r"Not enough allowed NUMA nodes to bind threads"),
        "The CPU build wants one NUMA node per tensor-parallel rank and this machine has fewer.",
        "lower --tensor-parallel-size or set VLLM_CPU_OMP_THREADS_BIND",
    ),
    Pattern(
        "no-device", _E,
        _R(r"Failed to infer device type|No CUDA GPUs are available|no CUDA-capable device is detected"),
        "vLLM finds no device that it was built for.", "check nvidia-smi, CUDA_VISIBLE_DEVICES and the vLLM build",
    ),
    Pattern(
        "driver", _E,
        _R(
            r"CUDA driver version is insufficient|NVIDIA driver on your system is too old|CUDA unknown error"
            r"|Driver/library version mismatch|libcuda\.so\.1: cannot open|CUDA initialization: "
            r"|CUDA driver initialization|system not yet initialized|no kernel image is available for execution"
        ),
        "The GPU's driver and this vLLM do not work together.", "check nvidia-smi; a driver update may need a reboot",
    ),
    Pattern(
        "gpu-broken", _E,
        _R(r"uncorrectable ECC error|GPU is lost|fallen off the bus|CUDA error: (?:unspecified launch|hardware stack)"),
        "The GPU reports a hardware fault.", "check dmesg for Xid lines; a reset or reboot is due",
    ),
    Pattern(
        "nccl", _E, _R(r"NCCL error|ncclSystemError|ncclUnhandledCudaError|ncclInternalError|DistBackendError"),
        "The GPUs could not talk to each other.", "see the log's NCCL lines; NCCL_P2P_DISABLE=1 helps some machines",
    ),
    # ── model and installation ──────────────────────────────────────────────────────────────────────────────────────
    Pattern(
        "model-gated", _E,
        _R(r"(?i:gated repo)|Access to model [^\n]* is restricted|You are trying to access a gated|401 Client Error"),
        "The model is gated and this machine has no access to it.", _CHECK_MODEL,
    ),
    Pattern(
        "model-not-found", _E,
        _R(
            r"is not a local folder and is not a valid model identifier|Repository Not Found"
            r"|Repo id must be in the form|does not appear to have a file named config\.json"
            r"|Invalid repository ID or local directory specified"
            r"|Can't load the configuration of|We couldn't connect to 'https?://|Cannot find any model weights with"
            r"|LocalEntryNotFoundError|OfflineModeIsEnabled"
        ),
        "The model is not where --model says.", _CHECK_MODEL,
    ),
    Pattern(
        "tokenizer-missing", _E, _R(r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for"),
        "The model's folder has no tokenizer that can be loaded.", "complete the model's folder or give --tokenizer",
    ),
    Pattern(
        "remote-code", _S,
        _R(r"trust_remote_code=True|requires? you to execute the (?:configuration|model|modeling) file"),
        "The model brings code of its own, which vLLM runs only if it is allowed.", "add: -- --trust-remote-code",
    ),
    Pattern(
        "model-unsupported", _S,
        _R(r"Model architectures? \[?[^\n]*? (?:are|is) not supported|does not recognize this architecture"),
        "This vLLM does not know the model's architecture.", "use a newer vLLM or another model",
    ),
    Pattern(
        "command-not-found", _E, _R(r"exec: [^\n]*not found|sh: \d+: exec: [^\n]*"),
        "The command that starts vLLM cannot be executed.", "check --vllm",
    ),
    Pattern(
        "socket-path", _O, _R(r"AF_UNIX path too long|ipc path [^\n]* is longer than \d+ characters"),
        "The temporary folder's name is too long for a socket.", "set TMPDIR to a short path, and report this",
    ),
)  # fmt: skip

BROAD: tuple[Pattern, ...] = (
    Pattern(
        "oom", bounds.cuda_oom,
        _R(
            r"CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]+ [GMK]iB)"
            r"(?:[^\n]*?total capacity of (?P<total>[\d.]+) GiB of which (?P<free>[\d.]+) (?P<free_unit>[GMK]iB|bytes)"
            r" is free(?:[^\n]*?this process has (?P<ours>[\d.]+) (?P<ours_unit>[GMK]iB|bytes) memory in use)?)?"
        ),
        "The GPU's memory was full when another {wanted} were asked for.",
        "lower gpu-memory-utilization (it leaves room for activations) or max-num-batched-tokens",
    ),
    Pattern(
        "oom", _C,
        _R(r"torch\.OutOfMemoryError(?!: CUDA out of memory)|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"),
        "The GPU's memory was full.", "lower gpu-memory-utilization or max-num-batched-tokens",
    ),
    Pattern(
        "unknown-flag", _C, _R(r"error: unrecognized arguments: (?P<words>[^\n]*)"),
        "This vLLM does not know: {words}", "remove it from the space or from the words after --",
    ),
    Pattern(
        "bad-argument", _C, _R(r"error: argument (?P<flag>[^\s:]+): (?P<why>[^\n]*)"),
        "vLLM refuses the value of {flag}: {why}", "correct the space or the words after --",
    ),
    Pattern(
        "bad-value", _C,
        _R(r"validation errors? for (?P<config>\w*(?:Config|Args))\n(?P<line>[^\n]+)(?:\n +(?P<why>Input [^\n\[]+))?"),
        "vLLM's {config} refuses a value: {line} {why}", "correct the space or the words after --",
    ),
    Pattern(
        # Of several API servers each is told to end by the main process, whatever the reason.
        "terminated", _E,
        _R(
            r"KeyboardInterrupt: terminated|(?m:^(?!\(ApiServer_)[^\n]*)\[shutdown\] API server: shutdown triggered"
            r"|Waiting up to \d+ seconds for processes to exit"
        ),
        "Somebody else sent the server a signal to end.", "see who ends processes on this machine",
    ),
)  # fmt: skip

_KILLED = "A process of the server was killed, probably by the kernel's out-of-memory killer."
_KILLED_HINT = "check `dmesg | grep -i oom`; on the CPU build lower gpu-memory-utilization"

GENERIC: tuple[Pattern, ...] = (
    Pattern(
        "killed", _E,
        _R(r"Failed core proc\(s\): \{[^}\n]*: -9\b|died unexpectedly \(exit code: -9\)|exit(?:ed with)? code:? -9\b"),
        _KILLED, _KILLED_HINT,
    ),
    Pattern(
        "shm-full", _E, _R(r"Failed core proc\(s\): \{[^}\n]*: -7\b|died unexpectedly \(exit code: -7\)"),
        "A process of the server met a bus error, as one does when /dev/shm is full.",
        "remove stale files from /dev/shm or enlarge it (docker: --shm-size, --ipc=host)",
    ),
    Pattern(
        "segfault", _U,
        _R(r"Failed core proc\(s\): \{[^}\n]*: -11\b|died unexpectedly \(exit code: -11\)|Segmentation fault"),
        "A process of the server crashed with a segmentation fault.", "see the end of the log; report it to vLLM",
    ),
    # Optional modules that are missing are reported like this too, hence not SPECIFIC.
    Pattern(
        "vllm-broken", _E, _R(r"(?:ModuleNotFoundError|ImportError|PackageNotFoundError): "),
        "The vLLM installation is incomplete.", "repair it: `vllm serve --help` must work",
    ),
    Pattern(
        "worker-died", bounds.vanished, _R(r"Worker proc [^\n]* died unexpectedly"),
        "A worker process of the engine died.", _KILLED_HINT,
    ),
    Pattern(
        "engine-silent", _U, _R(r"Timed out waiting for engine core processes to start"),
        "The engine did not answer within vLLM's own limit.", "see the end of the log",
    ),
    Pattern(
        "engine-died", _U, _R(r"EngineCore encountered a fatal error"),
        "The engine died while it served.", "see the end of the log",
    ),
    Pattern(
        "engine-died", bounds.vanished,
        _R(r"engine core exited unexpectedly|Engine core (?:proc|process) [^\n]*died unexpectedly"),
        "The engine's process died.", _KILLED_HINT,
    ),
    Pattern(
        "engine-died", _U,
        _R(r"AsyncLLM output_handler failed|EngineCore encountered an issue\. See stack trace"),
        "The engine died while it served.", "see the end of the log",
    ),
    Pattern(
        "engine-did-not-start", _U,
        _R(
            r"EngineCore failed to start|WorkerProc failed to start"
            r"|WorkerProc initialization failed due to an exception|Engine core initialization failed"
            r"|EngineCore hit an exception"
        ),
        "The engine ended before it was ready.", "see the end of the log",
    ),
)  # fmt: skip
