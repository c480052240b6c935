"""Failed starts in every form of vLLM's log: whose fault, and no bound that the log does not give."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from tuner.server.diagnosis import Bound, Fault, ServerPhase, diagnose

C, S, E, U = Fault.CANDIDATE, Fault.STUDY, Fault.ENVIRONMENT, Fault.UNKNOWN
START = ServerPhase.STARTING

Form = Callable[[str, Sequence[str]], list[str]]
"""Writer of the lines of one process, in one form of log."""


def stamped(process: str, lines: Sequence[str]) -> list[str]:
    return [f"({process} pid=71) ERROR 04-07 09:15:02 [core.py:811] {line}" for line in lines]


def raw(process: str, lines: Sequence[str]) -> list[str]:
    return [f"({process} pid=71) {line}" for line in lines]


def v0(_process: str, lines: Sequence[str]) -> list[str]:
    return [f"ERROR 04-07 09:15:02 engine.py:389] {line}" for line in lines]


def before_each(prefix: str, inner: Form = stamped) -> Form:
    return lambda process, lines: [prefix + line for line in inner(process, lines)]


def own_prefix(_process: str, lines: Sequence[str]) -> list[str]:
    return [f"(EngineCore_0 pid=71) blue/7: ERROR 04-07 09:15:02 [core.py:811] {line}" for line in lines]


def as_json(process: str, lines: Sequence[str]) -> list[str]:
    record = {"levelname": "ERROR", "processName": process, "process": 71, "message": "EngineCore failed to start."}
    return [json.dumps({**record, "exc_info": "\n".join(lines)})]


def docker_json(process: str, lines: Sequence[str]) -> list[str]:
    return [json.dumps({"log": line + "\n", "stream": "stderr"}) for line in raw(process, lines)]


def logfmt(process: str, lines: Sequence[str]) -> list[str]:
    return [f'time="2026-04-07T09:15:02Z" level=info msg={json.dumps(line)} part=llm' for line in raw(process, lines)]


def with_blanks(process: str, lines: Sequence[str]) -> list[str]:
    return [each for line in stamped(process, lines) for each in (line, "")]


def without_escapes(process: str, lines: Sequence[str]) -> list[str]:
    return [f"[1;36m({process} pid=71)[0;0m ERROR 04-07 09:15:02 [core.py:811] {line}" for line in lines]


FORMS: dict[str, Form] = {
    "stamped": stamped, "raw": raw, "v0": v0, "json": as_json, "docker-json": docker_json, "logfmt": logfmt,
    "own-prefix": own_prefix,
    "own-prefix-first": before_each("[blue-7] "), "colours": without_escapes,
    "two-processes": before_each("(LLMServer pid=5) "), "ray": before_each("(RayWorkerWrapper pid=8, ip=10.0.0.4) "),
    "kubernetes": before_each("2026-04-07T09:15:02.123456789Z "),
    "cri": before_each("2026-04-07T09:15:02.1+02:00 stderr F "),
    "compose": before_each("llm-server-1  | "), "journald": before_each("Apr 07 09:15:02 box llm[71]: "),
    "wrapped": before_each("2026-04-07 09:15:02,594 - INFO - [container] ", raw),
    "no-number": lambda process, lines: [f"({process}) ERROR [core.py:811] {line}" for line in lines],
    "place-only": lambda _, lines: [f"[v1/engine/core.py:811] {line}" for line in lines],
    "clock": before_each("09:15:02 "), "blanks": with_blanks, "mail": before_each("&nbsp;"),
    "indented": before_each("    "), "marked": before_each("**"),
    "runner": before_each("[2026-04-07 09:15:02] [/bin/sh]: "), "stdout": before_each("vLLM STDOUT: ", raw),
}  # fmt: skip

KV = (
    "ValueError: To serve at least one request with the model's max seq len (24576), (3.00 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.80 GiB). Based on the available memory, the estimated "
    "maximum model length is 14736."
)
LONGEST = (Bound("max-model-len", "<=", 14736),)


def traceback(*exceptions: str, function: str = "run") -> list[str]:
    """Write tracebacks of exceptions of which each caused the next."""
    lines: list[str] = []
    for text in exceptions:
        if lines:
            lines += ["", "The above exception was the direct cause of the following exception:", ""]
        frame = f'  File "/venv/vllm/part.py", line 30, in {function}'
        lines += ["Traceback (most recent call last):", frame, "    self.work()", *text.split("\n")]
    return lines


def engine_gave_up() -> list[str]:
    text = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    return raw("APIServer", traceback(text))


def read(lines: Sequence[str], held_gib: float | None = None) -> tuple[str, Fault, tuple[Bound, ...]]:
    cause = diagnose("\n".join(lines), exit_code=1, phase=START, held_by_others_gib=held_gib)
    return cause.kind, cause.fault, cause.bounds


# ── the form of the log


@pytest.mark.parametrize("form", FORMS)
def test_a_cause_is_read_in_every_form_of_log(form: str) -> None:
    lines = [*FORMS[form]("EngineCore_DP0", traceback(KV)), *engine_gave_up()]
    assert read(lines) == ("kv-too-small", C, LONGEST)


@pytest.mark.parametrize("form", FORMS)
def test_the_root_of_a_chain_is_read_in_every_form_of_log(form: str) -> None:
    root = "subprocess.CalledProcessError: Command '['/usr/bin/gcc', 'm.c']' returned non-zero exit status 1."
    lines = FORMS[form]("Worker_TP1", traceback(root, "torch._inductor.exc.InductorError: something failed"))
    assert read([*lines, *engine_gave_up()])[:2] == ("no-compiler", E)


IN_MODEL = traceback("AttributeError: 'FusedMoE' object has no attribute 'gate'", function="initialize_model")


@pytest.mark.parametrize("form", FORMS)
def test_the_function_of_a_cause_is_read_in_every_form_of_log(form: str) -> None:
    assert read([*FORMS[form]("EngineCore", IN_MODEL), *engine_gave_up()])[:2] == ("model-unsupported", S)


@pytest.mark.parametrize(
    "wrapper", ["[1,0]<stderr>:", "0: ", "09:15:02 ", "[INFO ] PyProcess W-12-model-stderr: ", "# "]
)
@pytest.mark.parametrize("form", ["stamped", "raw", "v0"])
def test_a_cause_is_read_behind_a_wrapper_that_nobody_knows(wrapper: str, form: str) -> None:
    lines = [*FORMS[form]("EngineCore", IN_MODEL), *engine_gave_up()]
    assert read([wrapper + line for line in lines])[:2] == ("model-unsupported", S)


@pytest.mark.parametrize("wrapper", ["pod-7 vllm {}", "Line {}: {}", "{:5}  {}", "node-3: {}"])
@pytest.mark.parametrize("form", ["stamped", "raw", "v0"])
def test_a_wrapper_is_known_in_a_log_whose_head_is_cut_off(wrapper: str, form: str) -> None:
    cut = FORMS[form]("EngineCore", IN_MODEL)[1:]
    counted = "{:5}" in wrapper or "Line" in wrapper
    lines = [wrapper.format(at + 8, line) if counted else wrapper.format(line) for at, line in enumerate(cut)]
    assert read(lines)[:2] == ("model-unsupported", S)


# ── what is no cause

SURVIVED = (
    "(APIServer pid=1) ERROR 04-07 09:14:00 [utils.py:47] Error retrieving safetensors: 401 Client Error. Repository "
    "Not Found for url: https://hub.example/m, retrying 1 of 2",
    "ERROR 04-07 09:14:00 [config.py:130] Error retrieving safetensors: Repo id must be in the form 'repo_name'",
    "[W407 09:14:00.5 socket.cpp:767] [c10d] The client socket cannot be initialized (errno: 97)",
    "W0407 09:14:00.123000 71 torch/x.py:53] CUDA error: out of memory",
    "(EngineCore pid=71) 2026-04-07 09:14:00,7 - WARNING - autotuner.py:13 - jit: Skipping tactic 4: CUDA error: out "
    "of memory\n(EngineCore pid=71) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB.",
    "(APIServer pid=1) Traceback (most recent call last):\n(APIServer pid=1) ImportError: no such plugin\n"
    "(APIServer pid=1) INFO 04-07 09:14:01 [model.py:44] Resolved architecture: Net",
    "Exception ignored in: <function C.__del__ at 0x7f>\nTraceback (most recent call last):\n"
    '  File "/c.py", line 3, in __del__\nOSError: [Errno 28] No space left on device',
)  # fmt: skip
AFTER_DEATH = (
    "(Worker_TP1 pid=72) ERROR 04-07 09:15:03 [x.py:8] torch.distributed.DistBackendError: NCCL error in: a.cpp:77, "
    "remote process exited or there was a network error",
    "[rank1]:[W407 09:15:03.2 ProcessGroupNCCL.cpp:1524] Warning: destroy_process_group() was not called",
    "(EngineCore pid=70) ERROR 04-07 09:15:03 [m.py:3] Worker proc VllmWorker-0 died unexpectedly (exit code: 1)",
    "(EngineCore pid=70) ERROR 04-07 09:15:03 [c.py:9] RuntimeError: Worker failed with error 'x', please check",
)


@pytest.mark.parametrize("survived", SURVIVED)
def test_what_was_survived_is_no_cause(survived: str) -> None:
    assert read([survived, *stamped("EngineCore", traceback(KV))]) == ("kv-too-small", C, LONGEST)


@pytest.mark.parametrize("later", AFTER_DEATH)
def test_what_comes_after_the_first_death_is_no_cause(later: str) -> None:
    assert read([*stamped("Worker_TP0", traceback(KV)), later]) == ("kv-too-small", C, LONGEST)


def test_a_process_that_lost_its_peer_does_not_hide_the_peers_own_words() -> None:
    lost = "torch.distributed.DistBackendError: NCCL error in: a.cpp:77, remote process exited"
    lines = [*stamped("Worker_TP1", traceback(lost)), *stamped("Worker_TP0", traceback(KV))]
    assert read(lines) == ("kv-too-small", C, LONGEST)


def test_a_workers_words_that_the_engine_repeats_are_read_where_its_own_are_missing() -> None:
    text = "RuntimeError: Worker failed with error 'Could not find nvcc', please check the stack trace above"
    assert read(stamped("EngineCore", traceback(text)))[:2] == ("no-compiler", E)


@pytest.mark.parametrize("form", [stamped, raw])
@pytest.mark.parametrize("breaks", [1, 3])
def test_a_message_that_a_copy_broke_and_stripped_of_its_prefixes_keeps_its_bound(form: Form, breaks: int) -> None:
    words = KV.removeprefix("ValueError: ").split(", ", breaks)
    assert read([*form("EngineCore", ["ValueError: "]), *(f"{part}, " for part in words)]) == (
        "kv-too-small", C, LONGEST
    )  # fmt: skip


@pytest.mark.parametrize("width", [72, 80, 83])
def test_lines_that_a_terminal_broke_at_its_width_keep_their_bound(width: int) -> None:
    whole = stamped("EngineCore", traceback(KV, function="run_engine_core"))
    pieces = [line[at : at + width].ljust(width) for line in whole for at in range(0, len(line), width)]
    assert read(pieces) == ("kv-too-small", C, LONGEST)


def test_long_lines_of_many_workers_are_not_joined() -> None:
    lines = [line for rank in range(4) for line in stamped(f"Worker_TP{rank}", traceback(KV))]
    assert read(lines) == ("kv-too-small", C, LONGEST)


def test_a_clean_up_after_the_end_is_no_cause() -> None:
    clean_up = traceback("FileNotFoundError: [Errno 2] No such file or directory: '/tmp/q'", function="_exitfunc")
    assert read([*engine_gave_up(), *raw("APIServer", clean_up)])[:2] == ("engine-did-not-start", U)


@pytest.mark.parametrize(
    ("line", "kind", "fault"),
    [
        ("Memory access fault by GPU node-2 (Agent handle: 0x1) on address 0x7f. Reason: Unknown.", "gpu-crash", U),
        ("[GEMM][FATAL] a.cu(8): Check failed: status, an illegal memory access", "gpu-crash", U),
        ("Failed: Cuda error /src/custom_all_reduce.cuh:455 'invalid argument'", "nccl", E),
    ],
)
def test_the_last_words_of_a_worker_in_c_are_read_before_its_silence(line: str, kind: str, fault: Fault) -> None:
    assert read([line, SILENT[0]])[:2] == (kind, fault)


def test_workers_that_write_at_the_same_time_are_read_apart() -> None:
    one, two = stamped("Worker_TP0", traceback(KV)), stamped("Worker_TP1", traceback(KV, "RuntimeError: x"))
    mixed = [line for pair in zip(one, two, strict=False) for line in pair]
    assert read([*mixed, *engine_gave_up()]) == ("kv-too-small", C, LONGEST)


def test_source_that_a_traceback_quotes_is_no_cause() -> None:
    lines = traceback("TypeError: cannot unpack NoneType")
    lines.insert(2, '    raise RuntimeError("No available memory for the cache blocks")')
    assert read([*stamped("EngineCore", lines), *engine_gave_up()])[1] is U


# ── memory by figures


def oom(total: float, free: float, wanted: float, rest: str, words: str = "CUDA") -> str:
    return (
        f"torch.OutOfMemoryError: {words} out of memory. Tried to allocate {wanted:.2f} GiB. GPU 0 has a total "
        f"capacity of {total:.2f} GiB of which {free:.2f} GiB is free. {rest}"
    )


TORCH = (
    "Of the allocated memory {:.2f} GiB is allocated by PyTorch, and 40.00 MiB is reserved by PyTorch but unallocated."
)
OURS = "Including non-PyTorch memory, this process has {} memory in use. "


@pytest.mark.parametrize("words", ["CUDA", "HIP", "XPU"])
@pytest.mark.parametrize(
    ("total", "free", "wanted", "rest", "held_gib", "fault"),
    [
        (24.0, 0.4, 1.2, OURS.format("23.20 GiB") + TORCH.format(22.1), None, C),
        (24.0, 0.4, 1.2, OURS.format("5.20 GiB") + TORCH.format(4.8), None, E),
        (24.0, 14.7, 1.2, TORCH.format(7.9), None, E),  # WSL refuses what there is room for
        (79.1, 0.3, 0.5, OURS.format("0 bytes") + TORCH.format(70.9), None, C),  # a container cannot count
        (24.0, 0.0, 2.0, OURS.format("17179869184.00 GiB") + TORCH.format(21.5), None, C),
        (64.0, 0.1, 0.5, TORCH.format(60.9), None, C),
        (16.0, 0.0, 0.1, TORCH.format(0.9), None, E),
        (24.0, 0.4, 1.2, "", 0.3, C),
        (24.0, 0.4, 1.2, "", 17.0, E),
    ],
)  # fmt: skip
def test_figures_decide_whose_memory_was_missing(
    words: str, total: float, free: float, wanted: float, rest: str, held_gib: float | None, fault: Fault
) -> None:
    text = oom(total, free, wanted, rest, words)
    assert read(stamped("Worker_TP0", traceback(text, function="capture_model")), held_gib)[1:] == (fault, ())


PHASES = {
    "load_model": ("oom-weights", C), "initialize_model": ("oom-weights", C),
    "determine_available_memory": ("oom-profiling", C), "profile_run": ("oom-profiling", C),
    "initialize_kv_cache": ("oom", C), "capture_model": ("oom", C), "compile_or_warm_up_model": ("oom", C),
    "init_device": ("oom", E),
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "torch.AcceleratorError: CUDA error: out of memory",
        "torch.distributed.DistBackendError: NCCL error in: a.cpp:7, unhandled cuda error (run with NCCL_DEBUG=INFO)\n"
        "Last error:\nCuda failure 2 'out of memory'",
    ],
)
@pytest.mark.parametrize("function", PHASES)
def test_without_figures_the_phase_decides(text: str, function: str) -> None:
    assert read(stamped("Worker_TP0", traceback(text, function=function)))[:2] == PHASES[function]


def test_weights_that_do_not_fit_are_not_answered_with_a_lower_utilization() -> None:
    line = "(EngineCore pid=71) INFO 04-07 09:14:00 [runner.py:9] Starting to load model /models/net..."
    log = "\n".join([line, *stamped("EngineCore", ["torch.OutOfMemoryError: CUDA out of memory."])])
    cause = diagnose(log, exit_code=1, phase=START)
    assert cause.kind == "oom-weights"
    assert "gpu-memory-utilization" not in cause.hint


@pytest.mark.parametrize(
    ("free", "total", "fault", "bound"),
    [(101.6, 121.69, C, 0.834), (100.9, 119.67, C, 0.843), (60.2, 121.69, E, None), (6.9, 8.0, C, 0.862),
     (59.3, 79.15, E, None)],
)  # fmt: skip
def test_a_share_that_nobody_can_give_is_told_from_one_that_others_hold(
    free: float, total: float, fault: Fault, bound: float | None
) -> None:
    text = (
        f"ValueError: Free memory on device cuda:0 ({free}/{total} GiB) on startup is less than desired GPU memory "
        f"utilization (0.9, {0.9 * total:.2f} GiB)."
    )
    bounds = () if bound is None else (Bound("gpu-memory-utilization", "<=", bound),)
    assert read(stamped("EngineCore", traceback(text))) == ("memory-wanted", fault, bounds)


# ── silent deaths

SILENT = (
    "(EngineCore pid=70) ERROR 04-07 09:15:03 [m.py:3] Worker proc VllmWorker-2 died unexpectedly, shutting down.",
    "(APIServer pid=1) ERROR 04-07 09:15:03 [m.py:3] Engine core process EngineCore_DP1 died unexpectedly",
)


@pytest.mark.parametrize("text", SILENT)
def test_a_silent_death_proves_nothing_but_with_the_kernels_count(text: str) -> None:
    found = [diagnose(text, exit_code=1, phase=START, oom_kills=kills) for kills in (None, 0, 1)]
    assert [cause.fault for cause in found] == [U, U, E]
    assert ["host memory" in cause.explanation for cause in found] == [False, False, True]


def test_a_kill_is_the_kernels_only_if_it_counted_one() -> None:
    found = [diagnose("", exit_code=-9, phase=START, oom_kills=kills) for kills in (None, 0, 2)]
    assert [(cause.kind, cause.fault) for cause in found] == [("killed", E)] * 3
    assert ["ran out of host memory" in cause.explanation for cause in found] == [False, False, True]


# ── causes, two of each kind at least

CAUSES: tuple[tuple[str, Fault, str], ...] = (
    ("port-in-use", E, "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:4040')"),
    ("port-in-use", E, "torch.distributed.DistNetworkError: The server socket has failed to listen on any local "
     "network address. port: 29511, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"),
    ("permission", E, "PermissionError: [Errno 13] Permission denied: '/home/app/.cache/vllm'"),
    ("permission", E, "OSError: [Errno 30] Read-only file system: '/root/.triton'"),
    ("weights-broken", E, "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
    ("weights-broken", E, "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ("no-compiler", E, "RuntimeError: Failed to find C compiler. Please specify via CC environment variable."),
    ("no-compiler", E, "FileNotFoundError: [Errno 2] No such file or directory: 'nvcc'"),
    ("no-compiler", E, "RuntimeError: Ninja build failed. Ninja output:\nninja: build stopped: subcommand failed."),
    ("compiler-too-old", E, "triton.runtime.errors.PTXASError: PTXAS error: Internal Triton PTX codegen error"),
    ("compiler-too-old", E, "RuntimeError: ptxas fatal : Value 'sm_130a' is not defined for option 'gpu-name'"),
    ("no-kernel", E, "torch.AcceleratorError: HIP error: invalid device function"),
    ("no-kernel", E, "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    ("driver", E, "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was "
     "attempted on non supported HW"),
    ("driver", E, "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."),
    ("gpu-busy", E, "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    ("gpu-busy", E, "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable"),
    ("hub-busy", E, "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: https://h/x"),
    ("hub-busy", E, "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://h/c.json"),
    ("hub-unreachable", E, "OSError: We couldn't connect to 'https://huggingface.co' to load the files"),
    ("hub-unreachable", E, "socket.gaierror: [Errno -3] Temporary failure in name resolution"),
    ("hub-unreachable", E, "huggingface_hub.errors.HfHubHTTPError: 418 for url: https://h/x"),
    ("model-not-found", E, "OSError: org/net is not a local folder and is not a valid model identifier"),
    ("model-not-found", E, "FileNotFoundError: [Errno 2] No such file or directory: '/m/model-00002.safetensors'"),
    ("no-device", E, "ValueError: Current node has no GPU available. current_node_resource={'CPU': 8.0}."),
    ("no-device", E, "RuntimeError: No HIP GPUs are available"),
    ("shm-full", E, "torch.distributed.DistBackendError: NCCL error in: a.hpp:3, unhandled system error\nLast error:\n"
     "Error while creating shared memory segment /dev/shm/nccl-Qq1 (size 9637888)"),
    ("shm-full", E, "OSError: [Errno 28] No space left on device: '/psm_7e21'"),
    ("disk-full", E, "OSError: [Errno 28] No space left on device: '/root/.cache/x'"),
    ("disk-full", E, "OSError: [Errno 122] Disk quota exceeded"),
    ("nccl", E, "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)"),
    ("nccl", E, "torch.distributed.DistBackendError: NCCL error in: a.cpp:3, internal error"),
    ("network", E, "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms"),
    ("network", E, "zmq.error.ZMQError: No such device (addr='tcp://eth7:5000')"),
    ("vllm-broken", E, "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory"),
    ("vllm-broken", E, "ImportError: cannot import name 'a' from 'b' (/b/__init__.py)"),
    ("gpu-crash", U, "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"),
    ("gpu-crash", U, "RuntimeError: CUDA error: device-side assert triggered"),
    ("remote-code", S, "ValueError: The repository /m contains custom code which must be executed to load the model."),
    ("remote-code", S, "ValueError: Please pass the argument `trust_remote_code=True` to allow custom code to be run."),
    ("quantization-unsupported", S, "ValueError: The quantization method awq is not supported for the current GPU. "
     "Minimum capability: 75. Current capability: 70."),
    ("quantization-unsupported", S, "RuntimeError: ('Quantization scheme is not supported for ', 'the current GPU. ')"),
    ("fp8-unsupported", S, "AssertionError: fp8e4nv data type is not supported on CUDA arch < 89"),
    ("fp8-unsupported", S, "ValueError: type fp8e4nv not supported in this architecture."),
    ("dtype-unsupported", S, "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0."),
    ("no-attention-backend", S, "ValueError: No valid attention backend found for cuda with X. Reasons: {A: [no]}."),
    ("no-attention-backend", S, "ValueError: Selected backend X is not valid for this configuration. Reason: ['no']"),
    ("kernel-too-large", S, "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 90000"),
    ("kernel-too-large", S, "torch._inductor.exc.InductorError: OutOfResources: out of resource: registers"),
    ("kv-connector", S, "ValueError: Unsupported connector type: MyConnector"),
    ("too-few-gpus", S, "ValueError: World size (8) is larger than the number of available GPUs (2) in this node."),
    ("too-few-gpus", S, "RuntimeError: CUDA error: invalid device ordinal"),
    ("experts-not-divisible", S, "AssertionError: n_physical_experts=60 must be divisible by ep_size=7."),
    ("model-unsupported", S, "ValueError: Model architectures ['NetForCausalLM'] are not supported for now."),
    ("model-unsupported", S, "ValueError: There is no module or parameter named 'tower' in NetForCausalLM"),
    ("unsupported", S, "NotImplementedError: No backend for this deployment."),
    ("unsupported", S, "ValueError: Attention of 2030 is not yet supported with sinks."),
    ("nccl", E, "RuntimeError: oneCCL: ze.cpp:43 do_call: EXCEPTION: open failed"),
    ("hub-unreachable", E, "vocab.VocabError: error downloading or loading vocab file"),
    ("mamba-blocks", C, "AssertionError: num_cache_lines >= batch"),
    ("driver", E, "RuntimeError: CUDA error: initialization error"),
    ("vllm-broken", E, "RuntimeError: operator _C::machete_gemm does not exist"),
    ("vllm-broken", E, "AttributeError: '_C' object has no attribute 'awq_dequantize'"),
    ("vllm-broken", E, "RuntimeError: Only one platform plugin can be activated, but got: ['cuda', 'cpu']"),
    ("vllm-broken", E, "RuntimeError: NIXL is not available"),
    ("unsupported", S, "RuntimeError: FlashInfer requires GPUs with sm75 or higher"),
    ("unsupported", S, "ValueError: Unknown Mamba SSU backend: 'CUDA'. Valid options are: TRITON, FLASHINFER"),
    ("bad-variable", E, "ValueError: VLLM_PORT 'tcp://10.0.0.2:8000' appears to be a URI."),
    ("bad-variable", E, "ValueError: Invalid value 'x' for VLLM_USE_FLASHINFER_SAMPLER. Valid options: ['0', '1']."),
    ("forked", E, "RuntimeError: \nCannot re-initialize NPU in forked subprocess. To use NPU, use 'spawn'"),
    ("unsupported", S, "ValueError: Hybrid KV cache manager is disabled but failed to convert the KV cache specs."),
    ("oom", C, "RuntimeError: CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62"),
    ("oom", C, "RuntimeError: CUDA driver error: out of memory"),
    ("too-few-gpus", S, "RuntimeError: please ensure that world_size (2) is less than max local gpu count (1)"),
    ("engine-did-not-start", U, "TypeError: unsupported operand type(s) for //: 'int' and 'NoneType'"),
    ("layout-unsupported", C, "AssertionError: assert self.total_num_heads % tp_size == 0"),
    ("layout-unsupported", C, "AssertionError: assert tp_size % self.total_num_kv_heads == 0"),
    ("speculative-unsupported", S, "ValueError: The draft model config must have a mask_token_id"),
    ("batched-below-draft", C, "ValueError: VllmConfig does not have enough slots to schedule a token and support it."),
    ("oom", C, "RuntimeError: NPU out of memory. Tried to allocate 2.00 GiB (NPU 1; 60.97 GiB total capacity; "
     "55.00 GiB already allocated; 55.00 GiB current active; 1.20 GiB free; 55.40 GiB reserved in total by PyTorch)"),
    ("oom", C, "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm."),
    ("oom", C, 'RuntimeError: torch_call_dispatcher( "aten::empty", "memory_format", stack) API call failed at a.h:9'),
    ("oom", C, "RuntimeError: No parameters. There may be insufficient memory to allocate the weight."),
    ("oom", C, "RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at \"/c10/CUDACachingAllocator.cpp\":9"),
    ("kernel-too-large", S, "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem."),
    ("gpu-crash", U, "RuntimeError: npu_x:a.cpp:1 NPU function error: call aclnnY failed, error code is 561003"),
    ("gpu-broken", E, "RuntimeError: NPU function error: z, error code is 5\n[Error]: DMA hardware execution error."),
    ("driver", E, "RuntimeError: This form is not supported. Try to update the version of CANN."),
    ("driver", E, "ValueError: the kernel does not support this; please upgrade your NVIDIA driver"),
    ("nccl", E, "RuntimeError: createHCCLComm:a.cpp:3 HCCL function error: HcclGetRootInfo, error code is 7"),
    ("no-kernel", E, "torch.AcceleratorError: HIP error: invalid kernel file"),
    ("port-in-use", E, "RuntimeError: Could not find open port after 9 attempts starting from port 80"),
    ("model-not-found", E, "OSError: Can't load image processor for 'org/net'. If you were trying to load it"),
    ("model-unsupported", S, "ModuleNotFoundError: No module named 'transformers_modules.Net-2'"),
    ("model-unsupported", S, "AttributeError: 'NetConfig' object has no attribute 'gate'"),
    ("vllm-broken", E, "AttributeError: 'CompilationConfig' object has no attribute 'gate'"),
    ("vllm-broken", E, "RuntimeError: numaguard is required for a binding but is not installed on this machine"),
    ("too-few-gpus", S, "ValueError: Not enough resources to allocate 4 DP ranks on node 1."),
    ("bad-value", S, "pydantic_core.ValidationError: 1 validation error for VllmConfig\n  Value error, a codec is "
     "wrong [type=value_error, input_value=ArgsKwargs((), {'max_num_seqs': 8}), input_type=ArgsKwargs]"),
    ("bad-value", S, "pydantic_core.ValidationError: 1 validation error for ParallelConfig\nnew_field\n  Input is odd"),
    ("bad-value", C, "pydantic_core.ValidationError: 1 validation error for VllmConfig\n  Value error, max_num_seqs"),
    ("system-refused", E, "OSError: [Errno 5] Input/output error"),
    ("system-refused", E, "OSError: [Errno 116] Stale file handle: '/nfs/net/config.json'"),
    ("network", E, "OSError: [Errno 99] Cannot assign requested address"),
    ("network", E, "TimeoutError: [Errno 110] Connection timed out"),
    ("network", E, "ray.exceptions.RuntimeEnvSetupError: Failed to set up the environment."),
    ("network", E, "ray.exceptions.ActorUnschedulableError: The actor is not schedulable"),
    ("vllm-broken", E, "RuntimeError: _net_C::fuse() expected at most 6 argument(s) but received 7 argument(s)."),
    ("vllm-broken", E, "AttributeError: module 'torch.nova' has no attribute 'fuse'"),
    ("vllm-broken", E, "RuntimeError: Failed to import transformers.models.net because of the following error"),
    ("nccl", E, "RuntimeError: CUDA error: peer access is not supported between these two devices"),
    ("driver", E, "RuntimeError: CUDA error: named symbol not found"),
    ("driver", E, "RuntimeError: 0 active drivers ([]). There should only be one."),
    ("gpu-crash", U, "RuntimeError: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    ("gpu-broken", E, "RuntimeError: device 0 timed out. Try resetting the board."),
    ("no-compiler", E, "AssertionError: CUDA_HOME is not set"),
    ("no-compiler", E, "RuntimeError: Could not find CUDA installation."),
    ("compiler-too-old", E, "RuntimeError: The detected CUDA version (11.2) mismatches that of PyTorch (12.9)."),
    ("model-not-found", E, "ValueError: No supported config format found in org/net."),
    ("hub-unreachable", E, "botocore.exceptions.NoCredentialsError: Unable to locate credentials"),
    ("hub-unreachable", E, "RuntimeError: Data processing error: CAS service error : status 503"),
    ("bad-variable", E, "ValueError: invalid literal for int() with base 10: 'tcp://10.0.0.2:8000'"),
    ("memory-moved", E, "AssertionError: Error in memory profiling. This happens when memory was not cleaned up."),
    ("lora-unsupported", S, "ValueError: max_loras (0) must be >= 1."),
    ("lora-unsupported", S, "ValueError: While loading a, expected target modules in ['q'] but received ['head']."),
    ("parser-unknown", S, "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser"),
    ("parser-unknown", S, "jinja2.exceptions.TemplateSyntaxError: expected token 'end of print statement'"),
    ("unsupported", S, "RuntimeError: No available kernel. Aborting execution."),
    ("unsupported", S, "RuntimeError: this kernel needs SM90"),
    ("unsupported", S, "ValueError: --new-mode requires --new-backend"),
    ("flag-refused", C, "ValueError: Chunked prefill does not go with a net of next year"),
    ("flag-refused", C, "ValueError: max_num_seqs does not go with something of next year"),
    ("flag-refused", C, "AssertionError: bad gpu_memory_utilization for this device"),
)  # fmt: skip


@pytest.mark.parametrize(("number", "kind", "fault", "text"), [(n, *cause) for n, cause in enumerate(CAUSES)])
def test_a_cause_is_named_with_its_owner(number: int, kind: str, fault: Fault, text: str) -> None:
    form = list(FORMS.values())[number % len(FORMS)]
    lines = [*form("EngineCore", traceback(text)), *engine_gave_up()]
    assert read(lines) == (kind, fault, ())


def test_an_assertion_without_words_is_read_by_its_condition() -> None:
    lines = [
        '  File "/f.py", line 49, in create',
        "    assert issubclass(connector_cls, KVConnectorBase)",
        "           ^^^^",
    ]
    assert read([*lines, "AssertionError"])[:2] == ("kv-connector", S)


def test_what_a_message_demands_of_a_searched_flag_is_a_bound() -> None:
    text = (
        "ValueError: Chunked MM input disabled but max_tokens_per_mm_item (3072) is larger than max_num_batched_tokens "
        "(2048). Please increase max_num_batched_tokens."
    )
    assert read(stamped("EngineCore", traceback(text)))[2] == (Bound("max-num-batched-tokens", ">=", 3072),)
    text = "AssertionError: In Mamba cache align mode, block_size (528) must be <= max_num_batched_tokens (256)."
    assert read(raw("APIServer", traceback(text)))[2] == (Bound("max-num-batched-tokens", ">=", 528),)


@pytest.mark.parametrize(
    "function",
    [
        "create_engine_config",
        "get_quant_method",
        "load_weights",
        "_initialize_model",
        "load_model",
        "create_model_config",
        "add_lora",
    ],
)
@pytest.mark.parametrize("text", ["KeyError: 'layers.0.gate'", "AssertionError: (8, 4) != (4, 8)", "TypeError: new"])
def test_a_model_that_cannot_be_read_or_built_is_the_studys_fault(text: str, function: str) -> None:
    assert read(stamped("EngineCore", traceback(text, function=function)))[:2] == ("model-unsupported", S)
    assert read([*stamped("EngineCore", traceback(text)), *engine_gave_up()])[1] is U


@pytest.mark.parametrize(
    "text",
    [
        "NPU function error: z, error code is 5",
        "HIP error: invalid argument",
        "CUDA error: new",
        "CUDA driver error: new",
    ],
)
def test_before_anything_is_loaded_an_error_of_the_gpus_runtime_is_the_machines(text: str) -> None:
    found = [read(traceback(f"RuntimeError: {text}", function=name))[1] for name in ("init_device", "execute_model")]
    assert found == [E, U]


def test_a_death_under_load_refuses_no_argument() -> None:
    ready = "INFO:     Application startup complete."
    text = "AssertionError: too many tokens for max_model_len: 4097 > 4096"
    cause = diagnose(
        "\n".join([ready, *stamped("EngineCore", traceback(text))]), exit_code=1, phase=ServerPhase.SERVING
    )
    assert (cause.fault, cause.line) == (U, text)


@pytest.mark.parametrize("first", ["ERROR:    Exception in ASGI application", "Error in preprocessing prompt inputs"])
def test_a_refused_request_hides_no_death(first: str) -> None:
    request = raw("APIServer", [first, *traceback("KeyError: 'role'", "ValueError: chat_template is not supported")])
    death = stamped("EngineCore", traceback("torch.OutOfMemoryError: CUDA out of memory.", function="execute_model"))
    cause = diagnose("\n".join([*request, *death]), exit_code=0, phase=ServerPhase.SERVING)
    assert (cause.kind, cause.fault) == ("oom-under-load", C)


@pytest.mark.parametrize(
    ("stated", "longest"),
    [
        ("max_position_embeddings=4096 or model_max_length=None", 4096),
        ("max_position_embeddings=4096.0 or model_max_length=9000", 9000),
        ("sliding_window=4096 or model_max_length=2048", 4096),
    ],
)
def test_the_greater_one_of_two_lengths_of_a_model_is_the_bound(stated: str, longest: int) -> None:
    text = f"ValueError: User-specified max_model_len (20000) is greater than the derived max_model_len ({stated} in"
    assert read(raw("APIServer", traceback(text)))[2] == (Bound("max-model-len", "<=", longest),)


def test_what_a_runtime_says_of_its_own_end_is_no_progress() -> None:
    end = "[INFO] RUNTIME(72,python3):2026-04-07-09:15:04.98 [runtime.cc:15] 72 ~Runtime: deconstruct runtime"
    assert read([*v0("", traceback(KV)), end]) == ("kv-too-small", C, LONGEST)


def test_the_unit_of_an_older_message_is_read() -> None:
    text = (
        "ValueError: To serve at least one request with the models's max seq len (9000), (1.50 GB KV cache is needed, "
        "which is larger than the available KV cache memory (1.00 GB). Try increasing `gpu_memory_utilization`."
    )
    arguments = "INFO 04-07 09:14:00 [api_server.py:4] non-default args: {'gpu_memory_utilization': 0.7}"
    found = read([arguments, *v0("", traceback(text))])
    assert found == ("kv-too-small", C, (Bound("gpu-memory-utilization", ">=", 0.7),))


def test_torchs_advice_is_no_cause() -> None:
    text = "RuntimeError: new words\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
    assert read(stamped("EngineCore", traceback(text)))[1] is U


def test_an_unread_cause_quotes_the_exception_and_not_the_line_before_it() -> None:
    lines = ["EngineCore failed to start.", *traceback("RuntimeError: new words")]
    cause = diagnose("\n".join(stamped("EngineCore", lines)), exit_code=1, phase=START)
    assert (cause.kind, cause.line) == ("engine-did-not-start", "RuntimeError: new words")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("unrecognized arguments: stray here", S),
        ("unrecognized arguments: --new-flag 3", S),
        ("unrecognized arguments: --new-flag 3 --long-prefill-token-threshold 9", C),
        ("argument --max-num-seqs: invalid int value: 'many'", C),
        ("argument --tensor-parallel-size/-tp: expected one argument", C),
        ("argument --tool-call-parser: invalid choice: 'x' (choose from 'y', 'z')", S),
        ("argument --new-config/-nc: Value {a:1} cannot be converted to <function loads at 0x7f>.", S),
    ],
)
def test_a_refused_argument_is_the_candidates_if_its_flag_is_searched(words: str, fault: Fault) -> None:
    text = f"usage: vllm serve [options]\nvllm: error: {words}"
    assert diagnose(text, exit_code=2, phase=START).fault is fault
