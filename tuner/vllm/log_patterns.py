"""Messages of vLLM 0.8 to 0.33, torch, the hub and the kernel, each with its meaning.

The exceptions that ended the first process are looked up from the narrowest to the widest, and the first wins:
SPECIFIC names a root cause; a message of memory speaks by its figures; BROAD names a class of messages; SEARCHED,
UNSUPPORTED, NOT_BUILT and NOT_READ read new wordings by the exception's type, the flag it names and the function it
came from. SILENT_DEATHS and GENERIC only say that something died.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from tuner.vllm import bounds, knobs
from tuner.vllm.bounds import MessageContext
from tuner.vllm.candidate_patterns import CANDIDATE_PATTERNS, WEIGHTS_HINT
from tuner.vllm.cause import Fault
from tuner.vllm.fatal import Chain
from tuner.vllm.log_lines import StartPhase
from tuner.vllm.machine_patterns import MACHINE_CLASSES, MACHINE_PATTERNS
from tuner.vllm.memory import OUT_OF_MEMORY, Shortage, memory_figures
from tuner.vllm.pattern import Pattern
from tuner.vllm.study_patterns import NOT_BUILT, NOT_READ, STUDY_CLASSES, STUDY_PATTERNS, UNSUPPORTED

_R = re.compile
_C, _E, _U = Fault.CANDIDATE, Fault.ENVIRONMENT, Fault.UNKNOWN

SPECIFIC: tuple[Pattern, ...] = (*CANDIDATE_PATTERNS, *STUDY_PATTERNS, *MACHINE_PATTERNS)

_LOWER_UTILIZATION = "lower gpu-memory-utilization (it leaves room beside the KV cache)"
_OWN: Mapping[StartPhase, tuple[str, str, str]] = {
    StartPhase.LOADING: ("oom-weights", "The weights do not fit into the GPU's memory", WEIGHTS_HINT),
    StartPhase.PROFILING: (
        "oom-profiling", "The largest step does not fit beside the weights",
        "lower max-num-batched-tokens or max-num-seqs, or use more GPUs",
    ),
    StartPhase.ALLOCATING: ("oom", "The KV cache does not fit", _LOWER_UTILIZATION),
    StartPhase.CAPTURING: (
        "oom", "The CUDA graphs do not fit beside the KV cache", f"{_LOWER_UTILIZATION}, or max-num-seqs"
    ),
    StartPhase.WARMING_UP: (
        "oom", "A warm-up does not fit beside the KV cache", f"{_LOWER_UTILIZATION}, or max-num-seqs"
    ),
}  # fmt: skip
_OWN_ANYWHERE = ("oom", "The GPU's memory was full", f"{_LOWER_UTILIZATION} or max-num-batched-tokens")


def memory_pattern(text: str, context: MessageContext) -> Pattern:
    """Return the meaning of an out-of-memory message."""
    figures = memory_figures(text)
    found = bounds.short_of_memory(figures, context)
    asked = "" if figures.wanted is None else f" when another {figures.wanted:.2f} GiB were asked for"
    if found is Shortage.REFUSED:
        words = f"The driver refused {figures.wanted:.2f} GiB of GPU memory though {figures.free:.2f} GiB were free."
        return Pattern("memory-refused", _E, OUT_OF_MEMORY, words, "restart the machine (in WSL: wsl --shutdown)")
    if found is Shortage.HELD:
        words = f"Other processes held the GPU's memory{asked}."
        return Pattern("oom", _E, OUT_OF_MEMORY, words, "see with nvidia-smi who holds the memory, end it, and go on")
    phase = StartPhase.PROFILING if context.phase is StartPhase.COMPILING else context.phase
    kind, words, hint = _OWN.get(phase, _OWN_ANYWHERE) if phase else _OWN_ANYWHERE
    return Pattern(kind, _C, OUT_OF_MEMORY, f"{words}{asked and ':' + asked.removeprefix(' when')}.", hint)


BROAD: tuple[Pattern, ...] = (
    Pattern(
        "gpu-crash", bounds.of_the_device,
        _R(
            r"illegal memory access|device-side assert triggered|misaligned address|illegal instruction was encountered"
            r"|(?:CUDA|HIP|XPU)(?: driver)? [Ee]rror: (?!peer access)|(?:Memory access fault|HW Exception) by GPU node"
            r"|NPU function error|\b[Aa][Cc][Ll] [^\n]{0,60}error code|The Inner error is reported"
            r"|(?:UR_RESULT|PI)_ERROR|(?:DNN|BLAS)_STATUS_"
        ),
        "A kernel failed on the GPU: {line}", "see the end of the log; an eager or another attention backend may work",
    ),
    Pattern(
        "unknown-flag", bounds.of_the_arguments, _R(r"error: unrecognized arguments: (?P<words>--?[A-Za-z][^\n]*)"),
        "This vLLM does not know: {words}", "remove it from the space or from the words after --",
    ),
    *STUDY_CLASSES,
    Pattern(
        "bad-argument", bounds.of_the_arguments, _R(r"error: argument (?P<flag>[^\s:]+): (?P<why>[^\n]*)"),
        "vLLM refuses the value of {flag}: {why}", "correct the space or the words after --",
    ),
    Pattern(
        "bad-value", bounds.of_the_arguments,
        _R(r"validation errors? for (?P<config>\w*(?:Config|Args))\n(?P<line>[^\n]+)(?:\n +(?P<why>Input [^\n\[]+))?"),
        "vLLM's {config} refuses a value: {line} {why}", "correct the space or the words after --",
    ),
    *MACHINE_CLASSES,
)  # fmt: skip

SEARCHED = Pattern(
    "flag-refused", _C,
    _R(
        r"(?:Value|Assertion|Runtime|NotImplemented|Validation|Type)Error: [^\n]*?"
        + knobs.NAMES_SEARCHED.pattern
    ),
    "vLLM refuses its arguments: {line}", "correct the space or the words after --",
)  # fmt: skip
"""Refusal of a new wording that names a searched flag."""

BUILDS_MODEL = re.compile(
    r"_?initialize_model|get_quant_method|load_weights|\w*weight_loader|load_\w*_weight\w*|process_weights_after_loading"
    r"|create_weights|add_lora|_load_adapter|load_lora_\w+"
)
"""Functions that build the model, put a checkpoint's weights into it, or add adapters."""

READS_MODEL = re.compile(
    r"load_model|create_engine_config|validate_parsed_serve_args|create_model_config|create_speculative_config"
    r"|get_config|maybe_override_with_speculators|get_hf_processor|cached_\w+_from_config"
)
"""Functions that read the model's configuration, or have the model built."""


def tables(chain: Chain, context: MessageContext) -> Iterator[Sequence[Pattern]]:
    """Yield the tables for a chain of exceptions, the narrowest first."""
    yield SPECIFIC
    yield (memory_pattern(chain.text, context),)
    yield BROAD
    if context.phase is StartPhase.SERVING:
        return  # arguments are refused at the start only
    yield (SEARCHED,)
    yield (UNSUPPORTED,)
    for functions, pattern in ((BUILDS_MODEL, NOT_BUILT), (READS_MODEL, NOT_READ)):
        if any(map(functions.fullmatch, chain.functions)):
            yield (pattern,)


KILLED_HINT = "see who ends processes on this machine, and whether host memory ran out: dmesg | grep -i oom"

SILENT_DEATHS: tuple[Pattern, ...] = (
    Pattern(
        "killed", _E,
        _R(r"Failed core proc\(s\): \{[^}\n]*: -9\b|died unexpectedly \(exit code: -9\)|exit(?:ed with)? code:? -9\b"),
        "A process of the server was killed with SIGKILL.", KILLED_HINT,
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
    Pattern(
        "worker-died", _U, _R(r"Worker proc [^\n]* died unexpectedly"),
        "A worker process of the engine died without a word.", "see the end of the log, and the kernel's (dmesg)",
    ),
    Pattern(
        "engine-died", _U,
        _R(r"engine core exited unexpectedly|Engine core (?:proc|process) [^\n]*died unexpectedly"),
        "The engine's process died without a word.", "see the end of the log, and the kernel's (dmesg)",
    ),
)  # fmt: skip
"""Deaths without an exception. Exceptions that come later are their consequence."""

GENERIC: tuple[Pattern, ...] = (
    Pattern(
        "engine-silent", _U, _R(r"Timed out waiting for engine core processes to start"),
        "The engine did not answer within vLLM's own limit.", "see the end of the log",
    ),
    Pattern(
        "engine-died", _U, _R(r"EngineCore encountered a fatal error"),
        "The engine died while it served.", "see the end of the log",
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
