"""Lines of vLLM's log that say where a server stands, and which lines report a failure at all."""

from __future__ import annotations

import re
from enum import StrEnum


class StartPhase(StrEnum):
    """Phase of a server's life. Phases of a start are in the order of their beginnings."""

    BEGINNING = "beginning"
    LOADING = "loading the model"
    PROFILING = "profiling"
    COMPILING = "compiling"
    ALLOCATING = "measuring memory"
    CAPTURING = "capturing CUDA graphs"
    WARMING_UP = "warming up"
    OPENING = "opening the port"
    SERVING = "serving"


START_PHASES = (
    (StartPhase.LOADING, re.compile(r"Starting to load model|Loading weights|Loading safetensors")),
    (StartPhase.PROFILING, re.compile(r"Model loading took|Loading model weights took|Encoder cache will be init")),
    (
        StartPhase.COMPILING,
        re.compile(r"Using cache directory: .* for vLLM's torch\.compile|Dynamo bytecode transform"),
    ),
    (StartPhase.ALLOCATING, re.compile(r"Available KV cache memory|KV cache size|# (?:GPU|cuda|rocm|CPU) blocks:")),
    (StartPhase.CAPTURING, re.compile(r"Capturing (?:CUDA|cudagraph|the model)|Graph capturing finished")),
    (StartPhase.WARMING_UP, re.compile(r"Warming up model|init engine \(profile")),
    (StartPhase.OPENING, re.compile(r"Starting vLLM (?:API )?server")),
)
"""Phases of a start, each with the wording that opens it."""

PHASE_FUNCTIONS = (
    (StartPhase.PROFILING, re.compile(r"determine_available_memory|determine_num_available_blocks|profile_run")),
    (StartPhase.CAPTURING, re.compile(r"capture_model|_capture_cudagraphs|_warmup_and_capture|capture_graph")),
    (
        StartPhase.ALLOCATING,
        re.compile(r"initialize_kv_cache\w*|initialize_from_config|initialize_cache|_allocate_kv_cache\w*"),
    ),
    (StartPhase.WARMING_UP, re.compile(r"compile_or_warm_up_model|kernel_warmup|warm_up_model")),
    (StartPhase.LOADING, re.compile(r"load_model|load_weights|get_model|initialize_model|create_weights")),
    (
        StartPhase.BEGINNING,
        re.compile(r"init_device|init_worker_distributed_environment|_init_distributed\w*|_lazy_init"),
    ),
)
"""Functions of vLLM that a phase consists of. An earlier entry may be called by a later one."""

READY = re.compile(r"Application startup complete|Starting vLLM (?:API )?server")
ARGUMENTS = re.compile(r"non-default args: [^\n]*")

ENDING = re.compile(
    r"API server: shutdown triggered|engine core exited unexpectedly|for processes to exit|[Ss]hutdown|[Ss]hutting down"
    r"|[Tt]erminat|[Kk]ill|exit|destroy|[Dd]e(?:con)?struct|~Runtime|\" \d{3}\b"
)
"""Words of a server that ends. They are no progress."""

# Healthy servers warn with the very words of a failure ("… can cause fd limit errors like [Errno 24] Too many open
# files"), and a logged prompt may quote anything. Below ERROR only these lines report a failure.
TOLD_QUIETLY = re.compile(r"API server: shutdown triggered|engine core exited unexpectedly|for processes to exit")

SURVIVED = re.compile(
    r"Warning: |Exception ignored|Error ignored|[gs]et_mempolicy|retrying \d+ of \d+|Error (?:retrieving|getting"
    r"|loading) (?:safetensors|file|config)"
)
"""Words of errors that a server lives with."""

OUTLIVED = re.compile(
    r"Exception ignored in|Exception in ASGI application|Error in (?:preprocessing|(?:chat )?completion|streaming)\b"
)
"""First words of a line whose traceback its process outlived: a clean-up's, or a request's."""

EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w*\.)*_?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|OutOfResources|Expired|Enabled|Failed|Failure"
    r"|Unsupported)(?:\(\w+\))?(?::(?: .*)?)?$"
    r"|(?:[a-z_]\w*\.)+[A-Z]\w+: .*$"
)
FRAME = re.compile(r"\s*File \"[^\"]+\", line \d+, in (?P<function>\S+)")
BARE = re.compile(r"(?:\w+\.)*\w+(?:Error|Exception):\s*$")
"""Exception whose message begins on the next line."""
LINK = re.compile(
    r"The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred"
)
USAGE = re.compile(r"[\w./ -]{1,80}: error: \S")
"""Last words of argparse."""
ABORT = re.compile(
    r"(?:watchdog thread terminated with exception: |^\s*what\(\):\s+)(\S.*)"
    r"|^(Fatal Python error: (?!Seg|Abort).*|(?:Memory access fault|HW Exception) by GPU node.*|Failed: Cuda error .*"
    r"|.*\bCheck failed: .*)"
)
"""Last words of C++ code."""

RELAYED = re.compile(r"Worker failed with error ['\"](?P<text>.*?)(?:['\"], please check|['\"]?$)", re.DOTALL)
CONSEQUENCE = re.compile(
    r"Engine core initialization failed|EngineDeadError|EngineGenerateError|WorkerProc initial|Executor failed"
    r"|Engine core process \S+ died unexpectedly|Process \S+ \(PID: \d+\) died with exit code|Worker failed with error"
    r"|Engine process failed to start|worker died|CancelledError|cancelled|Failed core proc|ActorDiedError|RayTaskError"
    r"|Background loop (?:has errored|is stopped)|^SystemExit|failed to be inspected"
    r"|'-m', 'vllm\.\S+\] returned non-zero"
)
CLEAN_UP = re.compile(r"_exitfunc|_run_exitfuncs|_exit_function|__del__|atexit\w*")
"""Functions that run after a process has ended its work."""

LOST_PEER = re.compile(
    r"remote process exited|Connection closed by|Connection reset by peer|[Bb]roken ?[Pp]ipe|^EOFError"
    r"|recvValue failed|socketProgress|Connection refused"
)
