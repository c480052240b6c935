"""The live screen: fed with events, and in a real terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console as Terminal

from tests.cli.conftest import HOSTILE
from tests.cli.support import TUNER, short_search, tuner
from tests.fakes import ScriptedClock
from tests.study.builders import REFUSAL, level, plan, record, with_start
from tests.study.open_server import open_level, open_plan
from tuner.bench.measured import Remark
from tuner.cli.console import Console
from tuner.cli.folders import State
from tuner.cli.progress import Look, progress
from tuner.cli.screen import Drawn, Screen
from tuner.launch import Door
from tuner.layout import Layout, PlacedLayout
from tuner.placement import GpuGroup
from tuner.study.events import (
    GroupQuarantined,
    GroupsCompared,
    LevelMeasured,
    PhaseChanged,
    TrialFinished,
    TrialStarted,
)
from tuner.study.record import Role, TrialOutcome

WIDTHS = (80, 200)
BOTH = GpuGroup(workers=(0, 1), cores=("0", "1"))


def text_of(screen: Screen, width: int = 80) -> str:
    terminal = Terminal(file=io.StringIO(), width=width, height=24, color_system=None)
    with terminal.capture() as captured:
        terminal.print(Drawn(screen.picture()))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    """Two groups: one under load on its second trial, one that has just had a start refused."""
    the_plan, clock = plan(tmp_path / "s", starts=12, groups=2), ScriptedClock()
    screen = Screen(the_plan, "0.32.0", (), clock)
    default, other = the_plan.baseline, the_plan.space.candidate({"max-num-seqs": 64}, {})
    gpu0, gpu1 = the_plan.groups
    screen.show(TrialStarted(0, Role.DEFAULT, default, gpu0.name, 1, 16))
    clock.sleep(24)
    screen.show(TrialFinished(record(0, default, (level(10.0),), role=Role.DEFAULT, group=gpu0), is_best=True))
    screen.show(TrialStarted(1, Role.SEARCH, other, gpu0.name, 2, 16))
    screen.show(TrialStarted(2, Role.SEARCH, other, gpu1.name, 3, 16))
    refused = record(2, other, outcome=TrialOutcome.REFUSED, cause=REFUSAL, group=gpu1)
    screen.show(TrialFinished(refused, is_best=False))
    screen.show(PhaseChanged(1, gpu0.name, "measuring"))
    one = level(14.3, p99_ms=412)
    screen.show(LevelMeasured(1, gpu0.name, one.measurement, one.verdict))
    clock.sleep(43)
    return screen


@pytest.mark.parametrize("width", WIDTHS)
def test_the_screen_shows_group_phase_level_default_and_causes_in_any_width(width: int, screen: Screen) -> None:
    text = text_of(screen, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "2 of 16 starts (4 confirm), 1 min 7 s spent" in text
    assert re.search(r"gpu0 +trial 0001 search  measuring 43 s", text)
    assert "14.3 req/s, P99 TTFT 412 ms, KV 50 % at 8 concurrent" in text
    assert re.search(r"gpu1 +idle", text)
    assert re.search(r"best so far +the default", text)
    assert re.search(r"default +10.0 req/s  P99 TTFT 300 ms", text)
    assert re.search(r"0002  search +refused +not enough KV cache memory", text)


def test_the_gain_over_the_default_is_shown_once_something_is_better(screen: Screen) -> None:
    the_plan = screen.picture().plan
    better = record(1, the_plan.space.candidate({"max-num-seqs": 64}, {}), (level(14.3),), group=the_plan.groups[0])
    screen.show(TrialFinished(better, is_best=True))
    text = text_of(screen)
    assert re.search(r"best so far +14.3 req/s  P99 TTFT 300 ms  at 8 concurrent  \+43 %", text)


def test_before_the_first_trial_is_over_nothing_is_said_to_break_the_limits(tmp_path: Path) -> None:
    screen = Screen(plan(tmp_path / "s"), "0.32.0", ())
    text = text_of(screen)
    assert re.search(r"best so far +not measured yet", text)
    assert re.search(r"default +not measured yet", text)


@pytest.mark.parametrize("groups", [1, 8])
def test_the_screen_fits_a_terminal_of_24_lines(groups: int, tmp_path: Path) -> None:
    the_plan = plan(tmp_path / "s", groups=groups)
    screen = Screen(the_plan, "0.32.0", ())
    better = the_plan.space.candidate({"max-num-seqs": 64}, {})
    for trial in range(6):
        made = record(trial, better, (level(9.0 + trial),), group=the_plan.groups[0])
        screen.show(TrialFinished(made, is_best=True))
    for trial, group in enumerate(the_plan.groups, 6):
        screen.show(TrialStarted(trial, Role.SEARCH, the_plan.baseline, group.name, trial, 16))
    assert len(text_of(screen).splitlines()) <= 24


def test_words_of_unknown_origin_cannot_steer_the_terminal(screen: Screen) -> None:
    the_plan = screen.picture().plan
    cause = type(REFUSAL)(HOSTILE, REFUSAL.fault, HOSTILE, HOSTILE, HOSTILE)
    screen.show(PhaseChanged(1, "gpu0", HOSTILE))
    hostile = record(3, the_plan.baseline, outcome=TrialOutcome.DIED, cause=cause, group=the_plan.groups[1])
    screen.show(TrialFinished(hostile, is_best=False))
    text = text_of(screen, 200)
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert "\u202e" not in text
    assert "red next[bold]line[/bold]" in text.replace("2J", "").replace("  ", " ")


def test_a_long_cause_is_cut_and_not_what_stands_before_it(screen: Screen) -> None:
    the_plan = screen.picture().plan
    cause = replace(REFUSAL, explanation="long " * 100)
    refused = record(3, the_plan.baseline, outcome=TrialOutcome.REFUSED, cause=cause, group=the_plan.groups[1])
    screen.show(TrialFinished(refused, is_best=False))
    lines = text_of(screen).splitlines()
    assert [line for line in lines if re.match(r"0003  search   refused   long long .*…$", line)]
    assert all(cell_len(line) <= 80 for line in lines)


def test_a_group_that_is_out_of_use_says_why(screen: Screen) -> None:
    the_plan = screen.picture().plan
    dirty = with_start(record(1, the_plan.baseline, group=the_plan.groups[0]), dirty="GPU memory")
    screen.show(TrialFinished(dirty, is_best=False))
    assert "quarantined: trial 0001 left GPU memory" in text_of(screen)


def test_the_time_left_is_the_pace_so_far_within_the_budget(screen: Screen) -> None:
    # 2 of 12 searched in 24 s each: the default alone, the other on one of two groups. One runs, longer than expected.
    # 4 confirm one after the other.
    assert screen.picture().left_s == pytest.approx(24 * (9 * (1 + 1 / 2) / 2 + 4))


def layouts_screen(tmp_path: Path) -> Screen:
    """Two workers: layouts of one server on each, and of one server on both."""
    workers = tuple(GpuGroup(workers=(i,), cores=(str(i),)) for i in range(2))
    placed = (PlacedLayout(Layout(2, 1), workers), PlacedLayout(Layout(1, 2), (BOTH,)))
    the_plan = replace(plan(tmp_path / "s"), layouts=placed, own_layout=Layout(1, 2), doors=(Door.NGINX,))
    return Screen(the_plan, "0.32.0", (), ScriptedClock())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_trial_over_several_units_is_one_row_and_leaves_none_of_them_idle(width: int, tmp_path: Path) -> None:
    screen = layouts_screen(tmp_path)
    the_plan = screen.picture().plan
    default = the_plan.default_of(Layout(1, 2))
    screen.show(TrialStarted(0, Role.DEFAULT, default, "cpu0-1", 1, 16))
    text = text_of(screen, width)
    assert re.search(r"cpu0-1 +trial 0000 default 1x2  starting", text)
    assert "idle" not in text
    screen.show(TrialFinished(record(0, default, (level(10.0),), role=Role.DEFAULT, group=BOTH), is_best=True))
    assert [(g.group, g.phase) for g in screen.picture().groups] == [("cpu0", "idle"), ("cpu1", "idle")]


def test_a_server_that_stands_for_several_says_so_and_its_neighbour_is_idle(tmp_path: Path) -> None:
    screen = layouts_screen(tmp_path)
    screen.show(TrialStarted(1, Role.SEARCH, screen.picture().plan.default_of(Layout(2, 1)), "cpu1", 2, 16, replicas=2))
    one = level(14.3, p99_ms=412)
    screen.show(LevelMeasured(1, "cpu1", one.measurement, one.verdict))
    text = text_of(screen, 200)
    assert re.search(r"cpu0 +idle\n+cpu1 +trial 0001 search 2x1  starting", text)
    assert "2 × 14.3 req/s, P99 TTFT 412 ms, KV 50 % at 2 × 8 concurrent" in text


def test_a_confirmation_of_the_whole_machine_names_its_places_and_its_door(tmp_path: Path) -> None:
    screen = layouts_screen(tmp_path)
    candidate = screen.picture().plan.default_of(Layout(2, 1))
    started = TrialStarted(1, Role.CONFIRM, candidate, "cpu0+cpu1", 2, 16, door=Door.NGINX)
    screen.show(started)
    text = text_of(screen)
    assert re.search(r"cpu0\+cpu1 +trial 0001 confirm 2x1 through nginx  starting", text)
    assert "idle" not in text
    out = io.StringIO()
    Console(out).show(started)
    Console(out).show(replace(started, group="+".join(f"gpu{i}" for i in range(8))))
    assert "trial 0001 confirm on cpu0+cpu1 through nginx: 2x1 · vLLM's defaults" in out.getvalue()
    assert " on gpu0+…+gpu7 through nginx: " in out.getvalue()


def test_a_place_that_is_out_of_use_takes_all_its_units_out(tmp_path: Path) -> None:
    screen = layouts_screen(tmp_path)
    made = record(0, screen.picture().plan.baseline, (level(10.0),), role=Role.DEFAULT, group=BOTH)
    screen.show(TrialFinished(with_start(made, dirty="GPU memory"), is_best=False))
    assert [g.group for g in screen.picture().groups] == ["cpu0-1"]
    assert "quarantined: trial 0000 left GPU memory" in text_of(screen)


def test_a_comparison_of_a_layouts_servers_is_one_line() -> None:
    out = io.StringIO()
    Console(out).show(GroupsCompared(Layout(2, 1), 10.0, 9.7, 2))
    assert out.getvalue().splitlines() == [
        "layout 2x1, all at once: -3.0 % QPS on the slowest of 2 servers against one alone",
    ]


def test_lines_instead_of_the_screen_where_stderr_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_plan = plan(tmp_path / "s")

    def chosen(look: Look = Look.FITTING, *, tty: bool = True, **env: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stderr.isatty", lambda: tty)
            patch.delenv("NO_COLOR", raising=False)
            for name, value in {"TERM": "xterm", **env}.items():
                patch.setenv(name, value)
            return type(progress(the_plan, "0.32.0", (), look)).__name__

    assert chosen() == "Screen"
    assert {chosen(Look.PLAIN), chosen(tty=False), chosen(NO_COLOR="1"), chosen(TERM="dumb")} == {"Console"}


def test_a_terminal_that_went_away_does_not_end_the_study() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        Console(gone).say("nobody reads this")
        Console(gone).show(GroupQuarantined("gpu0", 1, "GPU memory"))
        os.dup2(os.open(os.devnull, os.O_WRONLY), gone.fileno())


def test_plain_lines_hold_no_control_characters_of_a_log() -> None:
    out = io.StringIO()
    Console(out).say(f"  {HOSTILE}")
    assert not [c for c in out.getvalue() if ord(c) < 32 and c != "\n"]
    assert out.getvalue().startswith("  red")


# --- in a real terminal


class Tmux:
    """A terminal of its own server, so that nobody's sessions are touched."""

    def __init__(self, socket: Path, width: int, height: int, command: str) -> None:
        self._tmux = ("tmux", "-f", "/dev/null", "-S", str(socket))
        size = ("-x", str(width), "-y", str(height))
        subprocess.run([*self._tmux, "new-session", "-d", *size, command], check=True)

    def text(self) -> str:
        shown = subprocess.run([*self._tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True)
        return shown.stdout

    def press(self, key: str) -> None:
        subprocess.run([*self._tmux, "send-keys", key], check=True)

    def wait_for(self, pattern: str, limit_s: float = 90) -> str:
        deadline = time.monotonic() + limit_s
        while not re.search(pattern, text := self.text()):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{text}"
            time.sleep(0.3)
        return text

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)


@pytest.fixture
def searching(tiny_model: str, tmp_path: Path) -> Iterator[tuple[Tmux, Path]]:
    if shutil.which("tmux") is None:
        pytest.skip("no tmux")
    words = short_search(tiny_model, tmp_path / "studies", "seen")
    line = f"env TUNER_SIM_SPEED=20 TERM=screen-256color {shlex.join((*TUNER, 'search', *words))}; echo ended $?; cat"
    terminal = Tmux(tmp_path / "tmux", 80, 50, line)
    try:
        yield terminal, tmp_path / "studies"
    finally:
        terminal.press("C-c")
        terminal.close()


def test_a_search_in_a_terminal_shows_its_live_screen_and_ends_with_the_result(searching: tuple[Tmux, Path]) -> None:
    terminal, studies = searching
    running = terminal.wait_for(r"cpu +trial 0001 \w+")
    assert all(cell_len(line) <= 80 for line in running.splitlines())
    assert re.search(r"1 of 2 starts \(0 confirm\)", running)
    assert re.search(r"0000 +default +feasible +[\d.]+ req/s", running)
    status = tuner("status", "seen", "--studies", str(studies))
    assert status.returncode == 0
    assert "of 2 starts (0 confirm)" in status.stdout  # it may have ended while the other shell was starting
    ended = terminal.wait_for(r"ended \d")
    assert "ended 0" in ended
    assert "start.sh" in ended
    assert tuner("status", "seen", "--studies", str(studies)).stdout.splitlines()[2].split()[1] == State.COMPLETE


def test_ctrl_c_on_the_live_screen_ends_the_search_and_leaves_the_terminal_usable(
    searching: tuple[Tmux, Path],
) -> None:
    terminal, _ = searching
    terminal.wait_for(r"cpu +trial 0001 \w+")
    terminal.press("C-c")
    text = terminal.wait_for(r"ended \d+")
    assert "ended 130" in text
    assert "SIGINT: ending the running servers" in text
    assert "hint: go on with: tuner resume seen" in text
    assert "Traceback" not in text


def test_status_on_a_terminal_is_cut_to_its_width_and_without_colour_where_none_is_wanted(studies: Path) -> None:
    def shown(**env: str) -> str:
        ours, theirs = pty.openpty()
        words = [*TUNER, "status", "hostile", "--studies", str(studies)]
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color", **env}
        with subprocess.Popen(words, stdout=theirs, env=environment) as command:
            os.close(theirs)
            read = b""
            while select.select([ours], [], [], 60)[0]:
                try:
                    read += os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
            assert command.wait() == 0
        os.close(ours)
        return read.decode()

    coloured, plain = shown(), shown(NO_COLOR="1")
    assert "\x1b[" in coloured
    assert "\x1b" not in plain
    assert all(cell_len(line) <= 80 for line in plain.splitlines())
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_an_open_loop_study_shows_its_rates_and_who_is_behind(tmp_path: Path) -> None:
    the_plan = open_plan(tmp_path / "s")
    screen = Screen(the_plan, "0.32.0", ())
    group = the_plan.groups[0].name
    screen.show(TrialStarted(1, Role.SEARCH, the_plan.baseline, group, 1, 16))
    one = open_level(31.4159)
    screen.show(LevelMeasured(1, group, one.measurement, one.verdict))
    behind = record(0, the_plan.baseline, (level(40.0),), outcome=TrialOutcome.BEHIND)
    screen.show(
        TrialFinished(
            replace(with_start(behind, group="none"), trial=0, notes=(Remark("a closed loop gives less"),)),
            is_best=False,
        )
    )
    text = text_of(screen, 200)
    assert re.search(r"Poisson arrivals, \d+ s a rate; claims 3 × 2 min", text)
    assert "31.4 req/s, P99 TTFT 300 ms, KV 50 % at 31.4 requests/s" in text
    assert re.search(r"0000  search  behind  a closed loop gives less", text)
