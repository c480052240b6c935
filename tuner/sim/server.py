"""Parent process of `vllm serve`, from arguments to exit code.

Exit codes are vLLM's. 2: argparse. 1: refused start. 0: SIGTERM or SIGINT while serving, and death of the engine
core (the watchdog lets the server return normally). Killed by SIGINT: SIGTERM while starting.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from tuner.model import ModelShape, UnknownModelError
from tuner.sim import arguments as cli
from tuner.sim.api import Api
from tuner.sim.configuration import Origin, Refused, resolve
from tuner.sim.engine_loop import EngineLoop
from tuner.sim.engine_process import EngineTask
from tuner.sim.faults import ActiveFaults, count_start
from tuner.sim.gpu_memory import visible_gpus
from tuner.sim.hardware import Device, Hardware
from tuner.sim.log import Log
from tuner.sim.metrics import Metrics
from tuner.sim.model import load_model
from tuner.sim.startup import Started
from tuner.sim.tokens import TextEncoder

WATCHDOG_S = 5.0
"""Seconds between two checks of the engine (vLLM, launcher.py)."""

# Environment that vLLM leaves out of the key of its compile cache (envs.py, compile_factors).
NOT_COMPILED_IN = frozenset(
    {
        "VLLM_API_KEY",
        "VLLM_CACHE_ROOT",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_ENABLE_STARTUP_PLAN",
        "VLLM_LOGGING_LEVEL",
        "VLLM_LOGGING_STREAM",
        "VLLM_LOG_STATS_INTERVAL",
        "VLLM_NO_USAGE_STATS",
        "VLLM_RPC_BASE_PATH",
        "VLLM_SERVER_DEV_MODE",
    }
)


@dataclass(frozen=True, slots=True)
class Remains:
    """Shared memory segment and ZMQ socket. A clean exit removes them and SIGKILL leaves them behind, as with vLLM."""

    segment: Path
    mapped: mmap.mmap
    path: Path
    listener: socket.socket

    @classmethod
    def create(cls) -> Remains:
        segment = Path("/dev/shm") / f"psm_{uuid.uuid4().hex[:8]}"
        segment.write_bytes(bytes(4096))
        with segment.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)  # in use as vLLM's is: the mapping attributes it after a crash
        path = Path(os.environ.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir()) / str(uuid.uuid4())
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        return cls(segment, mapped, path, listener)

    def remove(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)
        self.segment.unlink(missing_ok=True)


class Server:
    """One `vllm serve` from arguments to exit code."""

    def __init__(self, serve: cli.ServeArguments) -> None:
        self._serve = serve
        self._log = Log("APIServer")
        self._start = count_start(serve.sim.state_dir)
        self._faults = ActiveFaults(serve.sim.faults, self._start)
        self._engine_process: subprocess.Popen[bytes] | None = None
        self._remains: Remains | None = None
        self._stopping = asyncio.Event()
        self._metrics = Metrics(serve.served_names[0])

    def run(self) -> int:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return self._run()
        except KeyboardInterrupt:
            self._end_engine()
            self._clean()
            _die_by_interrupt()
        finally:
            self._clean()

    def _clean(self) -> None:
        if self._remains is not None:
            self._remains.remove()

    def _run(self) -> int:
        serve, sim = self._serve, self._serve.sim
        self._log.info("api_utils.py:286", f"non-default args: {dict(serve.given)}")
        scale = 1.0 / sim.speed
        if sim.startup_s is not None:
            scale = sim.startup_s / 60.0  # import_s before the model is known; the engine corrects its own share
        time.sleep(sim.hardware.start.import_s * scale)
        try:
            model = load_model(serve.model, serve.dtype)
        except UnknownModelError as error:
            self._log.traceback("transformers/utils/hub.py:543", "OSError", str(error))
            return 1
        hardware, gpus = _visible(sim.hardware)
        refusal = resolve(serve.engine, hardware, model)
        if isinstance(refusal, Refused) and refusal.origin is Origin.API_SERVER:
            time.sleep(max(0.0, refusal.after_s - sim.hardware.start.import_s) * scale)
            self._log.traceback("engine/arg_utils.py:2100", refusal.error, refusal.message)
            return 1
        try:
            listener = _bind(serve.host, serve.port)
        except OSError as error:
            self._log.traceback("entrypoints/launchers/launcher.py:348", "OSError", str(error))
            return 1
        self._remains = Remains.create()
        started = self._start_engine(model, hardware, gpus, scale)
        if started is None:
            return 1
        return asyncio.run(self._serve_until_stopped(listener, started, model))

    # ---------------------------------------------------------------- the engine core

    def _start_engine(
        self, model: ModelShape, hardware: Hardware, gpus: tuple[int, ...], scale: float
    ) -> Started | None:
        """Spawn the engine and wait until it is ready. None, with vLLM's last words in the log, if it ended instead."""
        sim = self._serve.sim
        ready, ready_of_child = os.pipe()
        task = EngineTask(
            arguments=self._serve.engine,
            hardware=hardware,
            model=model,
            gpus=gpus,
            gpu_dir=sim.gpu_dir,
            compile_dir=_cache_root() / "torch_compile_cache",
            environment_key=_environment_key(),
            faults=self._faults,
            scale=scale,
            startup_s=sim.startup_s,
            ready_fd=ready_of_child,
            segment=self._remains.segment if self._remains is not None else None,
        )
        command = [sys.executable, "-m", "tuner.sim.engine_process"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[ready_of_child])
        self._engine_process = process
        os.close(ready_of_child)
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps(task))
            process.stdin.flush()
        with os.fdopen(ready, "rb") as pipe:
            answer = pipe.read()
        if answer:
            started = pickle.loads(answer)
            if isinstance(started, Started):
                return started
        code = process.wait()
        message = "Engine core initialization failed. See root cause above. Failed core proc(s): "
        self._log.traceback("v1/engine/utils.py:1431", "RuntimeError", message + f"{{'EngineCore': {code}}}")
        return None

    def _order(self, word: bytes) -> None:
        """Order the engine core to fail (a fault)."""
        process = self._engine_process
        if process is not None and process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.write(word + b"\n")
                process.stdin.flush()

    def _end_engine(self, patience_s: float = 2.0) -> None:
        process = self._engine_process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # ---------------------------------------------------------------- serving

    async def _serve_until_stopped(self, listener: socket.socket, started: Started, model: ModelShape) -> int:
        serve, sim = self._serve, self._serve.sim
        seed = int.from_bytes(hashlib.sha256(f"{sim.seed} {serve.engine} {self._start}".encode()).digest()[:4], "big")
        engine = EngineLoop(
            started, sim.hardware, model, self._metrics, self._faults, speed=sim.speed, noise=sim.noise, seed=seed
        )
        self._describe_cache(started)
        api_key = serve.given.get("api_key")
        api = Api(
            engine,
            TextEncoder(serve.model, model.vocab),
            self._metrics,
            self._faults,
            serve.served_names,
            api_key=str(api_key[0]) if isinstance(api_key, list) and api_key else os.environ.get("VLLM_API_KEY"),
            log_stats=serve.log_stats,
            developer_mode=os.environ.get("VLLM_SERVER_DEV_MODE") == "1",
            strike=self._strike,
        )
        runner = web.AppRunner(api.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        self._take_signals()
        try:
            await self._listen(runner, listener)
        except OSError as error:
            address = f"('{serve.host or '0.0.0.0'}', {serve.port})"
            text = f"[Errno 98] error while attempting to bind on address {address}: address already in use"
            self._log.raw(f"ERROR:    {text}" if error.errno == 98 else f"ERROR:    {error}")
            self._end_engine()
            return 1
        stepping = asyncio.create_task(engine.run(lambda: self._faults.after_requests("hung-engine")))
        reporting = asyncio.create_task(self._report(engine))
        watching = asyncio.create_task(self._watch(engine))
        await self._stopping.wait()
        engine.die()
        for task in (stepping, reporting, watching):
            task.cancel()
        self._log.info("launcher.py:270", "[shutdown] API server: stopping engine client mode=abort timeout=0s")
        await asyncio.to_thread(self._end_engine, serve.shutdown_timeout_s + 2.0)
        self._log.info("launcher.py:296", "[shutdown] API server: shutting down FastAPI HTTP server")
        await runner.cleanup()
        self._log.raw("INFO:     Application shutdown complete.")
        return 0

    async def _listen(self, runner: web.AppRunner, listener: socket.socket) -> None:
        serve = self._serve
        if self._faults.get("port-taken"):
            listener.close()
            self._other = _bind(serve.host, serve.port)
            self._other.listen()
            listener = _bind(serve.host, serve.port, reuse=False)
        self._log.info("entry.py:140", f"Starting vLLM server on http://{serve.host or '0.0.0.0'}:{serve.port}")
        self._log.raw(f"INFO:     Started server process [{os.getpid()}]")
        await web.SockSite(runner, listener, backlog=2048).start()
        self._log.raw("INFO:     Application startup complete.")

    def _describe_cache(self, started: Started) -> None:
        config = started.config
        self._metrics.set_cache_config(
            {
                "block_size": str(config.block_size),
                "cache_dtype": config.kv_cache_dtype,
                "enable_prefix_caching": str(config.enable_prefix_caching),
                "gpu_memory_utilization": str(config.gpu_memory_utilization),
                "kv_cache_memory_bytes": str(config.kv_cache_memory_bytes),
                "kv_cache_max_concurrency": str(started.max_concurrency),
                "kv_cache_size_tokens": str(started.kv_tokens),
                "num_gpu_blocks": str(started.kv_blocks),
                "num_gpu_blocks_override": str(config.num_gpu_blocks_override),
            }
        )

    def _take_signals(self) -> None:
        def stop() -> None:
            if self._faults.get("ignore-sigterm"):
                return
            if self._faults.get("orphan-on-stop"):
                os.kill(os.getpid(), signal.SIGKILL)
            self._log.info("launcher.py:262", "[shutdown] API server: shutdown triggered")
            self._stopping.set()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_signal_handler(signal.SIGINT, stop)
        if self._faults.get("metrics-gone"):
            loop.add_signal_handler(signal.SIGUSR1, setattr, self._faults, "signalled", True)

    def _strike(self) -> None:
        """Carry out the faults that end a process."""
        faults = self._faults
        if faults.after_requests("die-under-load"):
            self._end_engine(0.2)
            os._exit(1)
        if faults.after_requests("exit-zero-under-load"):
            self._end_engine(0.2)
            os._exit(0)
        if faults.after_requests("orphan-engine"):
            os.kill(os.getpid(), signal.SIGKILL)
        if faults.after_requests("engine-dies-under-load"):
            self._order(b"die")
        if faults.after_requests("oom-under-load"):
            self._order(b"oom")

    async def _watch(self, engine: EngineLoop) -> None:
        """Stop the server when the engine core dies."""
        process = self._engine_process
        while process is not None and process.poll() is None:
            await asyncio.sleep(0.02)
        text = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        error = "vllm.v1.engine.exceptions.EngineDeadError"
        self._log.exception("async_llm.py:906", "AsyncLLM output_handler failed.", error, text)
        exited = "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup"
        self._log.warning("core_client.py:818", exited)
        engine.die()
        await asyncio.sleep(WATCHDOG_S / self._serve.sim.speed)
        self._stopping.set()

    async def _report(self, engine: EngineLoop) -> None:
        """Log the throughput every VLLM_LOG_STATS_INTERVAL seconds."""
        interval_s = float(os.environ.get("VLLM_LOG_STATS_INTERVAL") or 10.0)
        device = "CPU" if self._serve.sim.hardware.device is Device.CPU else "GPU"
        before = (0.0, 0.0)
        while True:
            await asyncio.sleep(interval_s)
            scheduler = engine.scheduler
            counters = (self._metrics.prompt_tokens, self._metrics.generation_tokens)
            now = (counters[0]._value.get(), counters[1]._value.get())
            preempted = f"Preemptions: {scheduler.preemptions}, " if scheduler.preemptions else ""
            hit_rate = 100.0 * scheduler.prefix_hits / max(1, scheduler.prefix_queries)
            self._log.info(
                "loggers.py:282",
                f"Engine 000: Avg prompt throughput: {(now[0] - before[0]) / interval_s:.1f} tokens/s, "
                f"Avg generation throughput: {(now[1] - before[1]) / interval_s:.1f} tokens/s, "
                f"Running: {len(scheduler.running)} reqs, Waiting: {len(scheduler.waiting)} reqs, {preempted}"
                f"{device} KV cache usage: {100 * scheduler.pool.usage:.1f}%, Prefix cache hit rate: {hit_rate:.1f}%",
            )
            before = now


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt("terminated")


def _die_by_interrupt() -> NoReturn:
    """End as an unhandled KeyboardInterrupt does: killed by SIGINT."""
    print("KeyboardInterrupt: terminated", file=sys.stderr, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    raise SystemExit(130)


def _bind(host: str | None, port: int, *, reuse: bool = True) -> socket.socket:
    """Bind without listening, so that connections are refused."""
    family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if reuse:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host or "0.0.0.0", port))
    return listener


def _visible(hardware: Hardware) -> tuple[Hardware, tuple[int, ...]]:
    """Return the profile and indices of visible GPUs."""
    if hardware.device is Device.CPU:
        return hardware, (0,)
    count = int(os.environ.get("TUNER_SIM_GPUS") or hardware.devices)
    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), count)
    return replace(hardware, devices=len(gpus)), gpus


def _cache_root() -> Path:
    root = os.environ.get("VLLM_CACHE_ROOT")
    return Path(root) if root else Path(tempfile.gettempdir()) / "tuner-sim-vllm-cache"


def _environment_key() -> str:
    factors = {k: v for k, v in os.environ.items() if k.startswith("VLLM_") and k not in NOT_COMPILED_IN}
    return repr(sorted(factors.items()))


def main(argv: list[str]) -> int:
    """Run the `vllm` command or its module entry point."""
    if argv[:1] in (["--version"], ["-v"]):
        print(cli.VERSION)
        return 0
    return Server(cli.parse(argv)).run()
