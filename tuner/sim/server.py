"""Parent process of `vllm serve`, from arguments to exit code.

Exit codes are vLLM's. 2: argparse. 1: refused start. 0: SIGTERM or SIGINT while serving, and death of the engine
core (the watchdog lets the server return normally). Killed by SIGINT: SIGTERM while starting. With several API servers
the death of an engine core, of the coordinator or of an API server is exit code 1 (vllm/v1/utils.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from aiohttp import web

from tuner.kv.config_json import UnknownModelError
from tuner.model import ModelShape
from tuner.sim import arguments as cli
from tuner.sim.api import Api
from tuner.sim.children import EngineChild, FailedStartError, Helper, wait_until_started
from tuner.sim.configuration import EngineConfig, Origin, Refused, resolve
from tuner.sim.engine_loop import EngineLoop
from tuner.sim.engine_pool import EnginePool
from tuner.sim.engine_process import EngineTask
from tuner.sim.faults import ActiveFaults, Place, bound_cores, count_start, faults_of_start
from tuner.sim.frontend import Frontend
from tuner.sim.gpu_memory import visible_gpus
from tuner.sim.hardware import Device, Hardware
from tuner.sim.log import Log
from tuner.sim.metrics import Metrics, MetricsPage
from tuner.sim.model import load_model
from tuner.sim.neighbours import Neighbours
from tuner.sim.remains import Remains
from tuner.sim.reports import describe_cache, report
from tuner.sim.startup import Started
from tuner.sim.tokens import TextEncoder

WATCHDOG_S = 5.0
"""Seconds between two checks of the engine (vLLM, launcher.py)."""

CPU_CORES = "VLLM_CPU_OMP_THREADS_BIND"
"""Variable with the cores of each worker on a CPU, such as `0-3|4-7`."""

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


class Server:
    """One `vllm serve` from arguments to exit code."""

    def __init__(self, serve: cli.ServeArguments) -> None:
        self._serve = serve
        self._log = Log("APIServer")
        self._start = count_start(serve.sim.state_dir)
        self._hardware, gpus = _visible(serve.sim.hardware)
        self._places = _places(serve, gpus)
        faults = faults_of_start(serve.sim.faults, self._places, serve.sim.state_dir, self._start)
        self._faults = ActiveFaults(faults)
        self._engine_faults = [
            ActiveFaults(fault for fault in faults if fault.where is None or place.is_at(fault.where))
            for place in self._places
        ]
        self._engines: list[EngineChild] = []
        self._helpers: list[Helper] = []
        self._remains: Remains | None = None
        self._stopping = asyncio.Event()
        self._page = MetricsPage(serve.served_names[0])
        self._exit_code = 0

    def run(self) -> int:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return self._run()
        except KeyboardInterrupt:
            self._end_children()
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
        refusal = resolve(serve.engine, self._hardware, model)
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
        try:
            started = self._start_engines(model, scale)
        except FailedStartError as error:
            self._log.traceback("v1/engine/utils.py:1431", "RuntimeError", str(error))
            self._end_children(0.2)
            return 1
        self._start_helpers(started[0].config)
        return asyncio.run(self._serve_until_stopped(listener, started, model))

    # ---------------------------------------------------------------- child processes

    def _start_engines(self, model: ModelShape, scale: float) -> list[Started]:
        """Spawn all engines and wait until they are ready. Raises FailedStartError if one ended instead."""
        sim, several = self._serve.sim, len(self._places) > 1
        for rank, place in enumerate(self._places):
            task = EngineTask(
                arguments=self._serve.engine,
                hardware=self._hardware,
                model=model,
                gpus=place.gpus,
                gpu_dir=sim.gpu_dir,
                compile_dir=_cache_root() / "torch_compile_cache",
                environment_key=_environment_key(),
                faults=self._engine_faults[rank],
                scale=scale,
                startup_s=sim.startup_s,
                segment=self._remains.segment if self._remains is not None else None,
                rank=rank if several else None,
                cores_bound=os.environ.get(CPU_CORES, "auto") != "auto",
            )
            self._engines.append(EngineChild.spawn(task))
        return wait_until_started(self._engines)

    def _start_helpers(self, config: EngineConfig) -> None:
        """Start what vLLM starts beside several engines. A single API server is the parent itself."""
        if config.data_parallel_size == 1:
            return
        count = config.api_server_count if config.api_server_count > 1 else 0
        self._helpers = [Helper.fork(name) for name in ("DPCoordinator", *(f"APIServer_{i}" for i in range(count)))]
        if count:
            self._log.info("utils.py:260", f"Started {count} API server processes")

    def _end_children(self, patience_s: float = 2.0) -> None:
        for helper in self._helpers:
            helper.end()
        for engine in self._engines:
            engine.process.terminate()
        for engine in self._engines:
            engine.end(patience_s)

    # ---------------------------------------------------------------- serving

    async def _serve_until_stopped(self, listener: socket.socket, started: list[Started], model: ModelShape) -> int:
        serve = self._serve
        pool = self._pool(started, model)
        api_key = serve.given.get("api_key")
        api = Api(
            pool,
            TextEncoder(serve.model, model.vocab),
            self._page,
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
            self._end_children()
            return 1
        stepping = asyncio.create_task(pool.run(lambda rank: self._is_due("hung-engine", rank)))
        reporting = asyncio.create_task(report(pool, self._log, serve.sim.hardware.device.name))
        watching = asyncio.create_task(self._watch(pool))
        await self._stopping.wait()
        pool.die()
        for task in (stepping, reporting, watching):
            task.cancel()
        self._log.info("launcher.py:270", "[shutdown] API server: stopping engine client mode=abort timeout=0s")
        await asyncio.to_thread(self._end_children, serve.shutdown_timeout_s + 2.0)
        self._log.info("launcher.py:296", "[shutdown] API server: shutting down FastAPI HTTP server")
        await runner.cleanup()
        self._log.raw("INFO:     Application shutdown complete.")
        return self._exit_code

    def _pool(self, started: list[Started], model: ModelShape) -> EnginePool:
        serve, sim, config = self._serve, self._serve.sim, started[0].config
        several = len(started) > 1
        share = sim.hardware.disturbance if sim.disturbance is None else sim.disturbance
        now_s = asyncio.get_running_loop().time
        engines = []
        for rank, one in enumerate(started):
            metrics = Metrics(self._page, rank)
            describe_cache(metrics, one)
            key = f"{sim.seed} {serve.engine} {self._start}" + (f" {rank}" if several else "")
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
            slowed = Neighbours(sim.gpu_dir, share, len(started) - 1, now_s).factor
            engines.append(
                EngineLoop(
                    one, sim.hardware, model, metrics, self._faults,
                    speed=sim.speed, noise=sim.noise, seed=seed, slowed=slowed,
                )
            )  # fmt: skip
        frontends = [Frontend(sim.hardware, sim.speed) for _ in range(config.api_server_count)] if several else []
        return EnginePool(engines, frontends)

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
        servers = [Log(helper.name.replace("API", "Api")) for helper in self._helpers[1:]] or [self._log]
        for log in servers:
            log.raw("INFO:     Application startup complete.")

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

    def _is_due(self, fault: str, rank: int) -> bool:
        """Return True if a fault under load is due at an engine."""
        return self._engine_faults[rank].get(fault) is not None and self._faults.after_requests(fault)

    def _strike(self) -> None:
        """Carry out the faults that end a process."""
        faults = self._faults
        if faults.after_requests("die-under-load"):
            self._end_children(0.2)
            os._exit(1)
        if faults.after_requests("exit-zero-under-load"):
            self._end_children(0.2)
            os._exit(0)
        if faults.after_requests("orphan-engine"):
            os.kill(os.getpid(), signal.SIGKILL)
        for rank, engine in enumerate(self._engines):
            if self._is_due("engine-dies-under-load", rank):
                engine.order(b"die")
            if self._is_due("oom-under-load", rank):
                engine.order(b"oom")

    async def _watch(self, pool: EnginePool) -> None:
        """Stop the server when one of its processes dies."""
        dead: str | None = None
        while dead is None:
            await asyncio.sleep(0.02)
            dead = next((engine.name for engine in self._engines if engine.process.poll() is not None), None)
            ended = next(((helper, code) for helper in self._helpers if (code := helper.exit_code()) is not None), None)
            if ended is not None:
                helper, code = ended
                self._fail_whole(f"Process {helper.name} (PID: {helper.pid}) died with exit code {code}")
                return
        text = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        error = "vllm.v1.engine.exceptions.EngineDeadError"
        self._log.exception("async_llm.py:906", "AsyncLLM output_handler failed.", error, text)
        exited = "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup"
        self._log.warning("core_client.py:818", exited)
        pool.die()
        if len(self._helpers) > 1:
            self._fail_whole(f"Engine core process {dead} died unexpectedly.")
            return
        await asyncio.sleep(WATCHDOG_S / self._serve.sim.speed)
        self._stopping.set()

    def _fail_whole(self, text: str) -> None:
        """End the launcher of several API servers (vllm/v1/utils.py wait_for_completion_or_failure)."""
        headline = f"Exception occurred while running API servers: {text}"
        self._log.exception("utils.py:470", headline, "RuntimeError", text)
        self._log.traceback("cli/serve.py:420", "RuntimeError", text)
        self._exit_code = 1
        self._stopping.set()


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


def _places(serve: cli.ServeArguments, gpus: tuple[int, ...]) -> list[Place]:
    """Return where each engine runs. vLLM gives each the next GPUs."""
    arguments = serve.engine
    ranks = max(1, arguments.tensor_parallel_size * arguments.pipeline_parallel_size)
    index = os.environ.get("TUNER_SIM_INDEX", "")
    cores = bound_cores(os.environ.get(CPU_CORES, ""))
    return [
        Place(
            port=serve.port,
            gpus=gpus[rank * ranks : (rank + 1) * ranks] if serve.sim.hardware.device is Device.GPU else gpus,
            cores=cores,
            engine=rank,
            index=int(index) if index.isdigit() else None,
        )
        for rank in range(max(1, arguments.data_parallel_size))
    ]


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
