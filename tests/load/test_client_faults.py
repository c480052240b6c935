"""Faults of the client itself, in processes that are stopped or short of descriptors. They are not the server's."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.load.scripted_server import answer, serving
from tests.load.test_drive import requests
from tuner.load.drive import FROZEN_S, LevelProgress, drive_closed, drive_open
from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.load.sockets import own_lack
from tuner.load.stream import Failure, Target
from tuner.measurement import Load, LoadKind, measure
from tuner.slo import parse_slo
from tuner.verdict import Outcome, judge

CLIENT = """
import resource, sys
from tests.load.test_drive import requests
from tuner.load.drive import drive_closed
from tuner.load.stream import Target
url, soft, hard, clients, seconds = sys.argv[1], *map(float, sys.argv[2:])
if soft:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
print("ready", flush=True)
samples = drive_closed(Target(url, "m"), requests(int(20 * clients)), int(clients), seconds, drain_s=0.5)
print(samples.aborted and samples.aborted.kind, *sorted({str(r.failure) for r in samples.requests}))
"""


def client(url: str, *figures: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, *map(str, figures)], stdout=subprocess.PIPE, text=True
    )  # fmt: skip


def answered(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.communicate(timeout=60)[0].split()[-3:]


@pytest.mark.parametrize("answer_s", [0.02, 0.4], ids=["between answers", "during answers"])
def test_a_client_that_was_stopped_says_so_and_blames_no_request(answer_s: float) -> None:
    with serving(answer(5, answer_s, 0)) as server, client(server.url, 0, 0, 4, 1.5) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        while not server.served:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(FROZEN_S + 1.5)  # the level and its drain are over by then
        os.kill(process.pid, signal.SIGCONT)
        said = answered(process)
    assert said[0] == EarlyEndKind.CLIENT_FROZEN
    assert set(said[1:]) <= {"None", "cut"}, "the timeouts of the pause are nobody's"


def test_whatever_else_fails_in_a_level_with_a_gap_it_is_invalid() -> None:
    def stuck(progress: LevelProgress) -> EarlyEnd | None:
        time.sleep(1.5 * FROZEN_S)
        return EarlyEnd(EarlyEndKind.REQUEST_FAILED)

    with serving(answer(5, 0.01, 0)) as server:
        samples = drive_open(Target(server.url, "m"), requests(3), [0.0, 0.4, 0.8], 1.0, watch=stuck)
    slos = [parse_slo("p99 ttft <= 500ms")]
    verdict = judge(measure(samples, None, Load(LoadKind.OPEN, 3.0), slos=slos), slos)
    assert verdict.outcome is Outcome.INVALID
    assert "stood still for" in str(verdict.reasons[0])


def test_a_busy_moment_is_no_gap() -> None:
    def busy(progress: LevelProgress) -> EarlyEnd | None:
        time.sleep(0.2)
        return None

    with serving(answer(5, 0.01, 0)) as server:
        samples = drive_closed(Target(server.url, "m"), requests(9), 1, 0.5, watch=busy)
    assert samples.aborted is None


def test_the_soft_limit_of_descriptors_is_no_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(answer(5, 0.3, 0)) as server, client(server.url, 40, hard, 90, 1.0) as process:
        assert answered(process) == ["ready", "None", "None"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_without_descriptors_the_client_says_so_and_no_request_failed(host: str) -> None:
    """A name cannot even be resolved then."""
    with (
        serving(answer(5, 0.3, 0)) as server,
        client(server.url.replace("127.0.0.1", host), 40, 40, 90, 1.0) as process,
    ):
        said = answered(process)
    assert said == ["ready", EarlyEndKind.NO_DESCRIPTORS, Failure.CUT]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, EarlyEndKind.NO_DESCRIPTORS),
        (errno.ENFILE, EarlyEndKind.NO_DESCRIPTORS),
        (errno.EADDRNOTAVAIL, EarlyEndKind.NO_PORTS),
        (errno.ENOBUFS, EarlyEndKind.NO_SOCKET_MEMORY),
        (errno.ENOMEM, EarlyEndKind.NO_SOCKET_MEMORY),
        (errno.ECONNREFUSED, None),
        (errno.ECONNRESET, None),
        (errno.EHOSTUNREACH, None),
        (errno.ETIMEDOUT, None),
    ],
)
def test_what_the_client_lacks_is_told_from_what_the_server_refuses(number: int, kind: EarlyEndKind | None) -> None:
    assert own_lack(OSError(number, os.strerror(number))) is kind
