"""Failures of a real server, on demand and by name.

Written NAME[:ARGUMENT][@START][%WHERE]. START 2 means only the second start that uses the same TUNER_SIM_STATE folder.
WHERE strikes one of several servers or engines, and START then counts its starts alone. Given as `--fault`, or
comma-separated in TUNER_SIM_FAULTS.

| WHERE | strikes |
|---|---|
| port8001 | the server on this port |
| gpu2 | the server, and of several engines the one, that uses this GPU |
| core1 | the server whose VLLM_CPU_OMP_THREADS_BIND names this core |
| engine1 | this engine of a server with data parallelism |
| index1 | the server whose TUNER_SIM_INDEX is this |
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FAULTS: Mapping[str, tuple[str, str]] = {
    # name: (argument's default, what happens)
    "hang-before-ready": ("", "the start never ends"),
    "die-before-ready": ("", "the engine core is killed while it loads"),
    "slow-start": ("5", "ready ARG wall seconds later"),
    "port-taken": ("", "another listener takes the port between bind and listen"),
    "refuse-memory-held": ("1000", "another process holds ARG GiB of every GPU (at most all of it)"),
    "die-under-load": ("20", "the whole server dies with exit code 1 after ARG requests"),
    "exit-zero-under-load": ("20", "the server exits with code 0 after ARG requests"),
    "engine-dies-under-load": ("20", "the engine core dies after ARG requests; the API server then exits with 0"),
    "oom-under-load": ("20", "CUDA out of memory in the engine core after ARG requests"),
    "orphan-engine": ("20", "SIGKILL of the API server after ARG requests; its engine lives on"),
    "orphan-on-stop": ("", "on SIGTERM the API server is killed; the engine lives and holds its memory"),
    "ignore-sigterm": ("", "SIGTERM does nothing"),
    "hung-engine": ("20", "no token comes after ARG requests; /health stays 200"),
    "metrics-missing": ("", "/metrics is 404"),
    "metrics-gone": ("", "/metrics is 404 from SIGUSR1 on"),
    "metrics-late": ("5", "/metrics answers after ARG wall seconds"),
    "metrics-old": ("", "/metrics with the names of vLLM 0.10"),
    "refuse-ignore-eos": ("", "400 for every request that names ignore_eos, as of strict servers"),
    "error-chunk": ("10", "every ARG-th stream ends with an error chunk inside its 200"),
    "reset-mid-stream": ("10", "every ARG-th stream is reset after its first tokens"),
    "stall": ("3", "every 10th stream pauses ARG wall seconds after its first token"),
    "truncated-output": ("10", "every ARG-th stream ends early: no finish reason, no usage, no [DONE]"),
    "role-only": ("10", "every ARG-th stream has the role chunk and no content"),
    "bursts": ("8", "ARG tokens in one chunk"),
    "ttft-leak": ("5", "every request waits ARG wall milliseconds longer than the one before"),
    "log-flood": ("100", "ARG MB of log while loading"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """One engine and its server, for WHERE. `cores` are those that its workers are bound to."""

    port: int
    gpus: tuple[int, ...] = ()
    cores: tuple[int, ...] = ()
    engine: int = 0
    index: int | None = None

    def is_at(self, where: str) -> bool:
        """Return True if a fault's WHERE means this engine."""
        match = re.fullmatch(r"(port|gpu|core|engine|index)(\d+)", where)
        assert match is not None, where
        number = int(match[2])
        numbers = {"port": (self.port,), "gpu": self.gpus, "core": self.cores, "engine": (self.engine,)}
        return number in numbers.get(match[1], (self.index,))


def bound_cores(words: str) -> tuple[int, ...]:
    """Parse VLLM_CPU_OMP_THREADS_BIND, such as `0-3|4,5`. Empty if it binds nothing."""
    ends = re.findall(r"(\d+)(?:-(\d+))?", words)
    return tuple(core for first, last in ends for core in range(int(first), int(last or first) + 1))


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. A `start` of None means every start, a `where` of None every server."""

    name: str
    argument: str
    start: int | None
    where: str | None = None

    @property
    def number(self) -> float:
        return float(self.argument)


def parse_fault(text: str) -> Fault:
    """Parse one fault. Raises ValueError with the known names, or with what a number must be."""
    rest, _, where = text.strip().partition("%")
    rest, _, start = rest.partition("@")
    name, _, argument = rest.partition(":")
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; there are {', '.join(FAULTS)}")
    default, _ = FAULTS[name]
    if start and not start.isdigit():
        raise ValueError(f"fault {text!r}: the start after @ should be a whole number")
    if where and not re.fullmatch(r"(port|gpu|core|engine|index)\d+", where):
        raise ValueError(f"fault {text!r}: {where!r} should be port, gpu, core, engine or index with its number")
    if argument and not default:
        raise ValueError(f"fault {name} takes no argument")
    fault = Fault(name, argument or default, int(start) if start else None, where or None)
    if fault.argument:
        try:
            fault.number  # noqa: B018 - raises for a bad number
        except ValueError:
            raise ValueError(f"fault {text!r}: {argument!r} is not a number") from None
    return fault


def count_start(state_dir: Path | None, where: str | None = None) -> int:
    """Count this start, from 1, in a shared file: of all servers, or of those at `where`. Always 1 without a folder."""
    if state_dir is None:
        return 1
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / ("starts" if where is None else f"starts-{where}")).open("a+") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        counter.seek(0)
        start = int(counter.read() or 0) + 1
        counter.seek(0)
        counter.truncate()
        counter.write(str(start))
    return start


def faults_of_start(
    faults: Iterable[Fault], places: Sequence[Place], state_dir: Path | None, start: int
) -> list[Fault]:
    """Return the faults of a server's start, the `start`-th of all, whose engines are at `places`."""
    here = [fault for fault in faults if fault.where is None or any(place.is_at(fault.where) for place in places)]
    counted = {fault.where for fault in here if fault.where is not None and fault.start is not None}
    starts: dict[str | None, int] = {where: count_start(state_dir, where) for where in sorted(counted)}
    starts[None] = start
    return [fault for fault in here if fault.start in (None, starts.get(fault.where))]


class ActiveFaults:
    """Faults of one start and the state that triggers them."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._faults = {fault.name: fault for fault in faults}
        self.requests = 0
        self.signalled = False

    def get(self, name: str) -> Fault | None:
        return self._faults.get(name)

    def after_requests(self, name: str) -> bool:
        """Return True if a fault under load is due."""
        fault = self._faults.get(name)
        return fault is not None and self.requests >= fault.number

    def every(self, name: str, nth: float | None = None) -> bool:
        """Return True for every ARG-th, or `nth`, request."""
        fault = self._faults.get(name)
        if fault is None:
            return False
        period = max(1, int(fault.number if nth is None else nth))
        return self.requests % period == 0
