"""Helpers that the tests of this room share: launches of the fake server, and looks at the process table."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from tuner.clock import RealClock
from tuner.launch import LaunchSpec
from tuner.placement import GpuGroup
from tuner.server import proctable
from tuner.server.gpu_memory import GpuMemory, NoGpuMemory
from tuner.server.running_file import Marker
from tuner.server.service import Deployment, RunningServer, Service, ServiceRequest, serving

FAKE = Path(__file__).with_name("fake_server.py")
MODEL = "/models/fake"


def fake_spec(*words: str, env: tuple[tuple[str, str], ...] = ()) -> LaunchSpec:
    return LaunchSpec((), (sys.executable, str(FAKE), "serve"), (MODEL, *words), env)


@contextmanager
def fake_running(
    folder: Path,
    *words: str,
    spec: LaunchSpec | None = None,
    model: str = MODEL,
    start_limit_s: float = 30.0,
    should_stop: Callable[[], bool] | None = None,
    gpu_memory: GpuMemory | None = None,
    group: GpuGroup | None = None,
) -> Iterator[RunningServer]:
    """Serve one fake server, or the one of `spec`."""
    launch = spec or fake_spec(*words)
    deployment = Deployment((replace(launch, gpus=group.gpus) if group else launch,))
    with fake_serving(
        folder,
        deployment,
        model=model,
        start_limit_s=start_limit_s,
        should_stop=should_stop,
        gpu_memory=gpu_memory,
    ) as service:
        yield service.servers[0]


def fake_serving(
    folder: Path,
    deployment: Deployment,
    *,
    model: str = MODEL,
    start_limit_s: float = 30.0,
    should_stop: Callable[[], bool] | None = None,
    gpu_memory: GpuMemory | None = None,
) -> AbstractContextManager[Service]:
    """Serve a deployment as a trial does."""
    return serving(
        ServiceRequest(
            deployment=deployment,
            folder=folder,
            model=model,
            start_limit_s=start_limit_s,
            clock=RealClock(),
            gpu_memory=gpu_memory or NoGpuMemory(),
            should_stop=should_stop or (lambda: False),
        )
    )


def runs(pid: int) -> bool:
    process = proctable.entry(pid)
    return process is not None and not process.is_zombie


def session(leader: int) -> list[proctable.ProcessEntry]:
    """Return the living processes of a server or of nginx."""
    return [p for p in proctable.table().values() if p.session == leader and not p.is_zombie]


def listens(port: int) -> bool:
    return bool(proctable.listening_inodes(port))


def eventually(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def bystander(*words: str) -> Iterator[int]:
    """Somebody else's process with our server's words, in a session of its own. Yields its pid."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)", *words]
    process = subprocess.Popen(sleeper, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


_children_before: set[tuple[int, int]] = set()


def note_children() -> None:
    """Called before each test: what is there already (a pool of another test file, say) is none of the test's."""
    _children_before.clear()
    _children_before.update((p.pid, p.start_ticks) for p in proctable.table().values() if p.ppid == os.getpid())


def children_of_ours() -> list[proctable.ProcessEntry]:
    """Children that this test process got during the test, zombies and adopted orphans included."""
    ours = (p for p in proctable.table().values() if p.ppid == os.getpid())
    return [p for p in ours if (p.pid, p.start_ticks) not in _children_before]


def as_nobody(work: Callable[[], object]) -> str:
    """Do something in a child that is another user, and return the repr of the error that it raised."""
    readable, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            work()
        except BaseException as error:
            os.write(written, repr(error).encode())
        finally:
            os._exit(0)
    os.close(written)
    with os.fdopen(readable) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def record_of(process: proctable.ProcessEntry, **changes: object) -> Marker:
    """A record as a dead tuner would have left it of `process`."""
    record = Marker(
        boot_id=proctable.boot_id(),
        pid=process.pid,
        start_ticks=process.start_ticks,
        session=process.session,
        port=1,
        log_device=0,
        log_inode=0,
        scratch="/tmp/tuner-00000000",
        started_unix_ns=0,
        tuner_pid=2**22 - 1,
        tuner_start_ticks=0,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def entry(pid: int) -> proctable.ProcessEntry:
    found = proctable.entry(pid)
    assert found is not None
    return found
