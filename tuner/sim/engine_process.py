"""Child processes `VLLM::EngineCore` and `VLLM::Worker_TP0…`, with data parallelism `VLLM::EngineCore_DP0…`.

It checks and holds memory, prints the engine's log lines and takes the time of a start. Then it reports on a pipe
that it is ready, and waits. Like the real engine, it does not notice the death of its parent: after SIGKILL of the
API server it lives on and holds its memory. The scheduler itself runs in the parent, one process nearer to the
streams.

`python -m tuner.sim.engine_process` reads a pickled EngineTask from stdin and writes a pickled Started to descriptor
`ready_fd`.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from setproctitle import setproctitle

from tuner.model import ModelShape
from tuner.sim.configuration import Cause, EngineArguments, EngineConfig, Origin, Refused
from tuner.sim.faults import ActiveFaults
from tuner.sim.gpu_memory import held_bytes, hold
from tuner.sim.hardware import GIB, Device, Hardware
from tuner.sim.log import Log
from tuner.sim.startup import Started, compiles, gib, out_of_memory, startup


@dataclass(frozen=True, slots=True)
class EngineTask:
    """Task that the parent hands over. `scale` is wall seconds per simulated second of the start. `rank` numbers the
    engine among several; None if it is the only one. `gpus` are its own."""

    arguments: EngineArguments
    hardware: Hardware
    model: ModelShape
    gpus: tuple[int, ...]
    gpu_dir: Path | None
    compile_dir: Path
    environment_key: str
    faults: ActiveFaults
    scale: float
    startup_s: float | None
    ready_fd: int = -1
    segment: Path | None = None
    rank: int | None = None
    cores_bound: bool = True

    @property
    def name(self) -> str:
        """Return vLLM's name for the process."""
        return "EngineCore" if self.rank is None else f"EngineCore_DP{self.rank}"


class EngineCore:
    """One engine from first log line to end."""

    def __init__(self, task: EngineTask) -> None:
        self._task = task
        self._log = Log(task.name)
        self._workers: dict[int, str] = {}
        self._ledger: Path | None = None
        self._scale = task.scale

    def run(self) -> int:
        setproctitle(f"VLLM::{self._task.name}")
        if self._task.segment is not None:
            with self._task.segment.open("r+b") as file:
                self._mapped = mmap.mmap(file.fileno(), 0)  # shared with the API server, as vLLM's queues are
        name = self._task.model.name
        self._log.info("core.py:134", f"Initializing a V1 LLM engine (v0.32.0) with config: model='{name}'")
        self._misbehave_while_loading()
        outcome = self._try_start()
        if isinstance(outcome, Refused):
            self._sleep(outcome.after_s - self._task.hardware.start.import_s)
            message = outcome.message.replace("{pid}", str(os.getpid()))
            self._log.exception("core.py:1510", "EngineCore failed to start.", outcome.error, message)
            self._log.traceback("core.py:1516", outcome.error, message)
            return 1
        self._load(outcome)
        with os.fdopen(self._task.ready_fd, "wb") as pipe, suppress(BrokenPipeError):
            pickle.dump(outcome, pipe)
        return self._wait()

    def _try_start(self) -> Started | Refused:
        task = self._task
        held = _host_bytes_in_use(task.hardware) if task.hardware.device is Device.CPU else 0
        if task.gpu_dir is not None:
            held += max((held_bytes(task.gpu_dir, index) for index in task.gpus), default=0)
        refuse = task.faults.get("refuse-memory-held")
        if refuse is not None:
            held = min(task.hardware.memory_bytes - (GIB >> 2), held + int(refuse.number * GIB))
        cached = [path.name for path in task.compile_dir.iterdir()] if task.compile_dir.is_dir() else []
        outcome = startup(
            task.arguments,
            task.hardware,
            task.model,
            held_bytes=held,
            compiled=cached,
            environment_key=task.environment_key,
        )
        if isinstance(outcome, Started) and (unbound := _unbound(outcome, task)) is not None:
            return unbound
        if isinstance(outcome, Started) and task.startup_s is not None:
            # The parent has spent its share (import_s) of the whole by the same scale.
            self._scale = task.startup_s / outcome.start_s
        return outcome

    def _misbehave_while_loading(self) -> None:
        faults = self._task.faults
        flood = faults.get("log-flood")
        if flood is not None:
            line = "Loading safetensors checkpoint shards: 0% Completed | 0/1 [00:00<?, ?it/s]" + " ." * 400
            for _ in range(int(flood.number * 1e6 / (len(line) + 60))):
                self._log.warning("weight_utils.py:1", line)
        if faults.get("hang-before-ready"):
            while True:
                time.sleep(3600)
        if faults.get("die-before-ready"):
            os.kill(os.getpid(), signal.SIGKILL)
        slow = faults.get("slow-start")
        if slow is not None:
            time.sleep(slow.number)

    def _sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds) * self._scale)

    # ---------------------------------------------------------------- loading, with vLLM's lines

    def _load(self, started: Started) -> None:
        task, config, memory, phases = self._task, started.config, started.memory, started.phases
        cpu = task.hardware.device is Device.CPU
        self._sleep(phases.engine_s)
        self._hold(started)
        if config.enable_chunked_prefill:
            batched = config.max_num_batched_tokens
            self._log.info("scheduler.py:307", f"Chunked prefill is enabled with max_num_batched_tokens={batched}.")
        self._sleep(phases.load_s)
        self._log.info("default_loader.py:502", f"Loading weights took {phases.load_s:.2f} seconds")
        loaded = f"Model loading took {gib(memory.weights)} GiB memory and {phases.load_s:.6f} seconds"
        self._log.info("gpu_model_runner.py:5150", loaded)
        self._compile(started)
        self._sleep(phases.profile_s)
        if not cpu:
            self._log.info("gpu_worker.py:759", f"Available KV cache memory: {gib(memory.kv_cache)} GiB")
        else:
            how = "Auto" if config.kv_cache_memory_bytes is None else "Explicitly"
            size = f"({gib(memory.kv_cache)}/{gib(memory.total)}) GiB"
            self._log.info("cpu_worker.py:258", f"{how} set {size} for KV cache on node 0.")
        if config.num_gpu_blocks_override is not None:
            override = config.num_gpu_blocks_override
            text = f"Overriding num_gpu_blocks={started.kv_blocks} with num_gpu_blocks_override={override}"
            self._log.info("kv_cache_utils.py:2620", text)
        self._log.info(
            "kv_cache_utils.py:2327",
            f"{'CPU' if cpu else 'GPU'} KV cache size: {started.kv_tokens:,} tokens, Maximum concurrency for "
            f"{config.max_model_len:,} tokens per request: {started.max_concurrency:.2f}x",
        )
        self._sleep(phases.capture_s)
        if config.capture_sizes:
            text = f"Graph capturing finished in {phases.capture_s:.0f} secs, took {gib(memory.graphs)} GiB"
            self._log.info("gpu_model_runner.py:6582", text)
        took_s = phases.compile_s + phases.profile_s + phases.capture_s
        text = f"init engine (profile, create kv cache, warmup model) took {took_s:.2f} s"
        self._log.info("core.py:384", f"{text} (compilation: {phases.compile_s:.2f} s)")

    def _compile(self, started: Started) -> None:
        if not compiles(started.config):
            return
        folder = self._task.compile_dir / started.compile_key
        self._log.info(
            "backends.py:1105", f"Using cache directory: {folder}/rank_0_0/backbone for vLLM's torch.compile"
        )
        if folder.is_dir():
            self._log.info("backends.py:296", "Directly load the compiled graph(s) for compile range from the cache")
        self._sleep(started.phases.compile_s)
        (folder / "rank_0_0").mkdir(parents=True, exist_ok=True)
        self._log.info("monitor.py:20", f"torch.compile took {started.phases.compile_s:.2f} s in total")

    def _hold(self, started: Started) -> None:
        """Occupy memory, in the workers if vLLM has any."""
        task, ranks = self._task, started.config.ranks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT})
        if ranks == 1 and task.hardware.device is Device.GPU:
            if task.gpu_dir is not None:
                self._ledger = hold(task.gpu_dir, task.gpus[:1], started.memory.held)
            return
        alive, self._alive = os.pipe()
        for rank in range(ranks):
            name = worker_name(started.config, task.rank, rank)
            pid = os.fork()
            if not pid:
                os.close(self._alive)
                os.close(task.ready_fd)  # else the parent would not see the core's death
                self._work(name, task.gpus[rank : rank + 1], started.memory.held, alive)
            self._workers[pid] = name
        os.close(alive)

    def _work(self, name: str, gpus: tuple[int, ...], held: int, alive: int) -> None:
        """Hold a worker's memory until the core ends it. Only the core keeps the pipe `alive` open."""
        setproctitle(name)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        ledger = hold(self._task.gpu_dir, gpus, held) if self._task.gpu_dir is not None else None
        os.read(alive, 1)
        if ledger is not None:
            ledger.unlink(missing_ok=True)
        os._exit(0)

    # ---------------------------------------------------------------- serving

    def _wait(self) -> int:
        """Wait for SIGTERM, a dead worker, or an order."""
        waited = {signal.SIGTERM, signal.SIGCHLD, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, waited)
        orders: list[int] = [0]
        while True:
            received = signal.sigtimedwait(waited, 0.05)
            if received is not None and received.si_signo == signal.SIGTERM:
                return self._leave(0)
            if received is not None and received.si_signo == signal.SIGCHLD and self._worker_died():
                return self._leave(1)
            if orders and select.select(orders, [], [], 0)[0]:
                order = os.read(0, 64).decode()
                if not order:
                    orders.clear()  # the parent is gone: an orphan from now on, as in the real one
                elif "oom" in order:
                    total = self._task.hardware.memory_bytes
                    error, message = out_of_memory(total, total >> 9, total >> 6)
                    return self._fail(error, message.replace("{pid}", str(os.getpid())))
                else:
                    return self._fail("RuntimeError", "CUDA error: an illegal memory access was encountered")

    def _worker_died(self) -> bool:
        for pid in list(self._workers):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                name, code = self._workers.pop(pid), os.waitstatus_to_exitcode(status)
                text = f"Worker proc {name} died unexpectedly (exit code: {code}), shutting down executor."
                self._log.error("multiproc_executor.py:315", text)
                return True
        return False

    def _fail(self, error: str, message: str) -> int:
        self._log.exception("core.py:1512", "EngineCore encountered a fatal error.", error, message)
        self._log.traceback("core.py:1516", error, message)
        return self._leave(1)

    def _leave(self, code: int) -> int:
        for pid in self._workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in self._workers:
            os.waitpid(pid, 0)
        if self._ledger is not None:
            self._ledger.unlink(missing_ok=True)
        return code


def _unbound(started: Started, task: EngineTask) -> Refused | None:
    """Refuse several CPU workers without a binding on fewer NUMA nodes (vllm/utils/ompmultiprocessing.py)."""
    nodes = [int(path.name[4:]) for path in Path("/sys/devices/system/node").glob("node[0-9]*")] or [0]
    ranks = started.config.ranks
    if task.hardware.device is not Device.CPU or task.cores_bound or ranks <= len(nodes):
        return None
    message = (
        f"Not enough allowed NUMA nodes to bind threads of {ranks} local CPUWorkers. Allowed NUMA nodes are "
        f"{sorted(nodes)}. Please try to bind threads manually or decrease DP/TP/PP."
    )
    after_s = task.hardware.start.import_s + task.hardware.start.engine_s
    return Refused(Cause.ARGUMENTS, "AssertionError", message, Origin.ENGINE_CORE, after_s)


def worker_name(config: EngineConfig, engine: int | None, rank: int) -> str:
    """Return the title of a worker (v1/executor/multiproc_executor.py)."""
    stage, tensor = divmod(rank, config.tensor_parallel_size)
    parts = ["VLLM::Worker"]
    parts += [f"DP{engine}"] if engine is not None else []
    parts += [f"PP{stage}"] if config.pipeline_parallel_size > 1 else []
    parts += [f"TP{tensor}"] if config.tensor_parallel_size > 1 else []
    return "_".join(parts)


def _host_bytes_in_use(hardware: Hardware) -> int:
    """Return the bytes in use on this host. vLLM's CPU backend asks the real machine, and so does the stand-in."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return max(0, hardware.memory_bytes - int(amount.split()[0]) * 1024)
    return 0


def main() -> int:
    # Unbuffered, so that nothing of what the parent writes later is read ahead.
    task = pickle.load(open(0, "rb", buffering=0, closefd=False))  # noqa: SIM115 - descriptor 0 stays open
    return EngineCore(task).run()


if __name__ == "__main__":
    sys.exit(main())
