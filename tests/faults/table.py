"""Matrix as data: fault × moment → what the search learns, and the cause that the record names."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from tests.faults.moments import OPEN_LOOP, Moment


class Learnt(StrEnum):
    """Feedback to the search about a start that a fault struck."""

    VIOLATED = "violated constraint"
    AGAIN = "FAIL, and queued again"
    MEASURED = "measured, not feasible"
    UNAFFECTED = "unaffected"
    NOTHING = "nothing, done again"  # a confirmation is no trial of the search
    REFUTED = "refutes the candidate"  # of a confirmation
    NOT_AGAIN = "nothing, the other one counts"  # a check of all places is made once


class Servers(StrEnum):
    """Servers that run at once when the fault strikes. Of several, one is struck or their door."""

    ONE = "1"
    SIDE_BY_SIDE = "2 side by side"
    NGINX = "2 behind nginx"
    ENGINES = "1 with 2 engines"


class Row(NamedTuple):
    """One case. `fault` is one of tuner.sim's, or an act of tests/faults/acts.py; `cause` is the record's kind, ""
    for none."""

    fault: str
    moment: Moment
    learnt: Learnt
    cause: str = ""
    servers: Servers = Servers.ONE

    @property
    def name(self) -> str:
        return name_of(self.fault, self.moment, self.servers)

    @property
    def run(self) -> str:
        """Name the study in which this fault strikes one start."""
        if self.servers is Servers.ENGINES:
            return "several engines"
        if self.servers is not Servers.ONE:
            if self.learnt is Learnt.REFUTED:
                return "several servers, refuting"
            return f"several servers, {'starting' if self.moment in BEFORE_LOAD else 'loaded'}"
        if self.moment in OPEN_LOOP:
            return f"servers in an open loop, {'confirming' if self.moment is Moment.CLAIMING else 'searching'}"
        return f"servers, {self.moment}"


def name_of(fault: str, moment: Moment, servers: Servers = Servers.ONE) -> str:
    several = "" if servers is Servers.ONE else f" {servers}"
    return f"{fault} {moment}{several}".replace(" ", "-")


_S, _W, _M, _D = Moment.STARTING, Moment.WARMING_UP, Moment.MEASURING, Moment.DRAINING
_STOP, _C, _WRITE = Moment.STOPPING, Moment.CONFIRMING, Moment.WRITING
_SATURATING, _RACING, _STEPPING, _CLAIMING = OPEN_LOOP
BEFORE_LOAD = (Moment.BEFORE_START, Moment.STARTING, Moment.ONE_IS_READY)
_AGAIN, _VIOLATED, _MEASURED, _UNAFFECTED, _NOTHING = (
    Learnt.AGAIN, Learnt.VIOLATED, Learnt.MEASURED, Learnt.UNAFFECTED, Learnt.NOTHING,
)  # fmt: skip

SERVER_ROWS: tuple[Row, ...] = (
    # ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("die-before-ready", _S, _AGAIN, "killed"),
    Row("hang-before-ready", _S, _AGAIN, "start-limit"),
    Row("slow-start:1", _S, _UNAFFECTED),
    Row("port-taken", _S, _AGAIN, "port-in-use"),
    Row("foreign listener", _S, _AGAIN, "foreign-listener"),
    Row("log-flood:20", _S, _UNAFFECTED),
    Row("memory held by others", _S, _AGAIN, "memory-wanted"),
    Row("command is gone", _S, _AGAIN, "command-not-found"),
    Row("KV cache too small", _S, _VIOLATED, "kv-too-small"),
    Row("refused value", _S, _VIOLATED, "bad-argument"),
    Row("kill -9 server", _S, _AGAIN, "killed"),
    Row("kill -9 engine", _S, _AGAIN, "killed"),
    Row("SIGTERM server", _S, _AGAIN, "terminated"),
    Row("freeze server", _S, _AGAIN, "start-limit"),
    # ── warming up ──────────────────────────────────────────────────────────────────────────────────────────────────
    Row("die-under-load:3", _W, _AGAIN, "ended"),
    Row("exit-zero-under-load:3", _W, _AGAIN, "ended"),
    Row("engine-dies-under-load:3", _W, _AGAIN, "gpu-crash"),
    Row("oom-under-load:3", _W, _VIOLATED, "oom-under-load"),
    Row("orphan-engine:3", _W, _AGAIN, "killed"),
    Row("hung-engine:3", _W, _AGAIN, "hung"),
    Row("kill -9 server", _W, _AGAIN, "killed"),
    Row("kill -9 engine", _W, _AGAIN, "engine-died"),
    Row("SIGTERM server", _W, _AGAIN, "terminated"),
    Row("freeze server", _W, _AGAIN, "hung"),
    # ── measuring ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row("kill -9 server", _M, _AGAIN, "killed"),
    Row("kill -9 engine", _M, _AGAIN, "engine-died"),
    Row("SIGTERM server", _M, _AGAIN, "terminated"),
    Row("freeze server", _M, _AGAIN, "hung"),
    Row("error-chunk:10", _M, _MEASURED),
    Row("reset-mid-stream:10", _M, _MEASURED),
    Row("truncated-output:10", _M, _MEASURED),
    Row("role-only:10", _M, _MEASURED),
    Row("metrics-missing", _M, _MEASURED),
    Row("metrics-late:0.3", _M, _UNAFFECTED),
    Row("metrics-old", _M, _UNAFFECTED),
    Row("bursts:4", _M, _UNAFFECTED),
    Row("stall:0.3", _M, _UNAFFECTED),
    Row("ttft-leak:1", _M, _UNAFFECTED),
    # ── draining ────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("kill -9 server", _D, _AGAIN, "killed"),
    Row("kill -9 engine", _D, _AGAIN, "engine-died"),
    Row("SIGTERM server", _D, _AGAIN, "terminated"),
    Row("freeze server", _D, _AGAIN, "hung"),
    # ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("ignore-sigterm", _STOP, _UNAFFECTED),
    Row("orphan-on-stop", _STOP, _UNAFFECTED),
    Row("kill -9 server", _STOP, _UNAFFECTED),
    Row("kill -9 engine", _STOP, _UNAFFECTED),
    Row("freeze server", _STOP, _UNAFFECTED),
    # ── confirming ──────────────────────────────────────────────────────────────────────────────────────────────────
    Row("kill -9 server", _C, _NOTHING, "killed"),
    Row("kill -9 engine", _C, _NOTHING, "engine-died"),
    Row("SIGTERM server", _C, _NOTHING, "terminated"),
    Row("freeze server", _C, _NOTHING, "hung"),
    # ── open loop: the closed loop before it, the race against the best, the steps to the answer, a claim ───────────
    Row("kill -9 server", _SATURATING, _AGAIN, "killed"),
    Row("kill -9 server", _RACING, _AGAIN, "killed"),
    Row("kill -9 server", _STEPPING, _AGAIN, "killed"),
    Row("metrics gone", _STEPPING, _MEASURED),
    Row("kill -9 server", _CLAIMING, _NOTHING, "killed"),
    Row("freeze server", _CLAIMING, _NOTHING, "hung"),
    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("SQLite locked for a moment", _WRITE, _UNAFFECTED),
)


_FIRST = Moment.ONE_IS_READY
_NGINX, _ENGINES, _CHECK, _REFUTED = Servers.NGINX, Servers.ENGINES, Servers.SIDE_BY_SIDE, Learnt.REFUTED

SEVERAL_ROWS: tuple[Row, ...] = (
    # ── the check: the default on all places at once ────────────────────────────────────────────────────────────────
    Row("kill -9 server", _S, Learnt.NOT_AGAIN, "killed", _CHECK),
    Row("kill -9 server", _M, Learnt.NOT_AGAIN, "killed", _CHECK),
    # ── a confirmation of the whole machine, starting ───────────────────────────────────────────────────────────────
    Row("kill -9 replica", _S, _NOTHING, "killed", _NGINX),
    Row("freeze replica", _S, _REFUTED, "start-limit", _NGINX),
    Row("SIGTERM replica", _S, _NOTHING, "terminated", _NGINX),
    Row("port-taken", _S, _NOTHING, "port-in-use", _NGINX),
    Row("foreign listener", _S, _NOTHING, "foreign-listener", _NGINX),
    Row("memory of one GPU held by others", _S, _NOTHING, "memory-wanted", _NGINX),
    Row("KV cache too small", _S, _REFUTED, "kv-too-small", _NGINX),
    Row("refused value", _S, _REFUTED, "bad-argument", _NGINX),
    Row("slow-start:1", _S, _UNAFFECTED, "", _NGINX),
    Row("kill -9 door", _S, _NOTHING, "door-refused", _NGINX),
    Row("door's port taken", _S, _NOTHING, "foreign-listener", _NGINX),
    Row("kill -9 replica", _FIRST, _NOTHING, "killed", _NGINX),
    # ── under load ──────────────────────────────────────────────────────────────────────────────────────────────────
    Row("kill -9 replica", _W, _NOTHING, "killed", _NGINX),
    Row("freeze replica", _W, _NOTHING, "hung", _NGINX),
    Row("kill -9 door", _W, _NOTHING, "door-died", _NGINX),
    Row("kill -9 replica", _C, _NOTHING, "killed", _NGINX),
    Row("kill -9 engine of a replica", _C, _NOTHING, "engine-died", _NGINX),
    Row("freeze replica", _C, _NOTHING, "hung", _NGINX),
    Row("kill -9 door", _C, _NOTHING, "door-died", _NGINX),
    Row("freeze door", _C, _NOTHING, "hung", _NGINX),
    Row("kill -9 replica", _D, _NOTHING, "killed", _NGINX),
    Row("error-chunk:5", _C, _REFUTED, "", _NGINX),
    Row("metrics-missing", _C, _NOTHING, "", _NGINX),
    Row("another model's name", _C, _REFUTED, "", _NGINX),
    Row("oom-under-load:3", _C, _REFUTED, "oom-under-load", _NGINX),
    # ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("kill -9 replica", _STOP, _UNAFFECTED, "", _NGINX),
    Row("freeze replica", _STOP, _UNAFFECTED, "", _NGINX),
    Row("orphan-on-stop", _STOP, _UNAFFECTED, "", _NGINX),
    Row("kill -9 door", _STOP, _UNAFFECTED, "", _NGINX),
    Row("freeze door", _STOP, _UNAFFECTED, "", _NGINX),
    # ── vLLM's own data parallelism ─────────────────────────────────────────────────────────────────────────────────
    Row("die-before-ready%engine1", _S, _NOTHING, "killed", _ENGINES),
    Row("kill -9 one engine", _S, _NOTHING, "killed", _ENGINES),
    Row("kill -9 server", _W, _NOTHING, "killed", _ENGINES),
    Row("kill -9 one engine", _C, _NOTHING, "engine-died", _ENGINES),
    Row("hung-engine:3%engine1", _C, _NOTHING, "hung", _ENGINES),
    Row("kill -9 one API server", _C, _NOTHING, "killed", _ENGINES),
    Row("kill -9 server", _STOP, _UNAFFECTED, "", _ENGINES),
)


class Ends(StrEnum):
    """End of the tuner that the fault struck. The next one then completes the study."""

    KILLED = "killed"
    RESUMABLE = "130, resumable"
    ENVIRONMENT = "4, environment"
    USAGE = "2, usage"
    COMPLETE = "0, complete"


class TunerRow(NamedTuple):
    """Fault of the tuner's own process or of its files. `words` must be in what it prints. With several servers it
    strikes in a confirmation of the whole machine."""

    fault: str
    moment: Moment
    ends: Ends
    words: str = ""
    servers: Servers = Servers.ONE

    @property
    def name(self) -> str:
        return name_of(self.fault, self.moment, self.servers)

    @property
    def run(self) -> str:
        if self.servers is not Servers.ONE:
            alone = self.fault in ("kill -9 tuner", "disk full")
            return f"{self.fault if alone else 'tuner'}, several servers"
        if self.fault.startswith(("torn", "garbled")):
            return "damaged files"
        if self.moment in OPEN_LOOP:
            return "tuner in an open loop"
        return self.fault


_LOADED = (_S, _W, _M, _D, _STOP, _WRITE, _C)

TUNER_ROWS: tuple[TunerRow, ...] = (
    *(TunerRow("kill -9 tuner", moment, Ends.KILLED) for moment in _LOADED),
    *(TunerRow("SIGTERM tuner", moment, Ends.RESUMABLE, "tuner resume") for moment in _LOADED),
    *(TunerRow("SIGINT tuner", moment, Ends.RESUMABLE, "tuner resume") for moment in _LOADED),
    TunerRow("SIGINT tuner", _CLAIMING, Ends.RESUMABLE, "tuner resume"),
    TunerRow("kill -9 tuner", _CLAIMING, Ends.KILLED),
)

_UP = (_S, _C, _STOP)
"""Moments at which all servers and their door run."""

SEVERAL_TUNER_ROWS: tuple[TunerRow, ...] = (
    # First: a confirmation that is struck while it stops may count, and then none is left to strike.
    TunerRow("nginx is gone", Moment.BEFORE_START, Ends.ENVIRONMENT, "nginx", _NGINX),
    *(TunerRow("kill -9 tuner", moment, Ends.KILLED, "", _NGINX) for moment in _UP),
    *(TunerRow("SIGTERM tuner", moment, Ends.RESUMABLE, "tuner resume", _NGINX) for moment in _UP),
    *(TunerRow("SIGINT tuner", moment, Ends.RESUMABLE, "tuner resume", _NGINX) for moment in _UP),
    TunerRow("kill -9 tuner", _WRITE, Ends.KILLED, "", _NGINX),
    TunerRow("disk full", _C, Ends.ENVIRONMENT, "No space left", _NGINX),
)

FILE_ROWS: tuple[TunerRow, ...] = (
    TunerRow("report cannot be drawn", _WRITE, Ends.COMPLETE, "could not be written yet"),
    TunerRow("disk full", _WRITE, Ends.ENVIRONMENT, "No space left"),
    TunerRow("disk nearly full", Moment.BEFORE_START, Ends.ENVIRONMENT, "nearly full"),
    TunerRow("trial folder read-only", _WRITE, Ends.ENVIRONMENT, "Read-only file system"),
    TunerRow("torn record.json", _WRITE, Ends.COMPLETE),
    TunerRow("torn result.json", _WRITE, Ends.COMPLETE),
    TunerRow("torn plan.json", _WRITE, Ends.USAGE, "plan.json"),
    TunerRow("torn environment.json", _WRITE, Ends.USAGE, "environment.json"),
    TunerRow("torn running.json", _WRITE, Ends.ENVIRONMENT, "running.json"),
    TunerRow("garbled study.db", _WRITE, Ends.ENVIRONMENT, "storage"),
)

MEMORY_ROWS: tuple[TunerRow, ...] = (
    TunerRow("GPU memory stays in use, one group", _STOP, Ends.ENVIRONMENT, "no GPU group is usable"),
    TunerRow("GPU memory stays in use, two groups", _STOP, Ends.COMPLETE),
    TunerRow("GPU memory stays in use, 2x1 and 1x2 on three GPUs", _STOP, Ends.COMPLETE, "", _CHECK),
    TunerRow("GPU memory stays in use, 2x1 on two GPUs", _STOP, Ends.ENVIRONMENT, "no GPU group is usable", _NGINX),
)
