"""`tuner` with a fault of its own: `tuner_to_strike.py FAULT@MOMENT tuner's words…`. FAULT may be `none`.

FAULT@MOMENT@confirm strikes in a confirmation only.

The real command line runs in its own process, with the short limits of tests/faults/moments.py. A note of what
happened is written to TUNER_NOTE.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.moments import OPEN_RULES, Hooks, Moment, short_limits
from tests.server.support import session
from tuner import layout
from tuner.cli import app, console, search
from tuner.report import page
from tuner.server import door, proctable, running_file
from tuner.study import store
from tuner.study.events import Event
from tuner.vllm.flags import InstalledVllm

SIGNALS = {
    "kill -9 tuner": signal.SIGKILL,
    "SIGTERM tuner": signal.SIGTERM,
    "SIGINT tuner": signal.SIGINT,
}


def main() -> None:
    fault, moment, *roles = sys.argv.pop(1).split("@")
    studies = Path(sys.argv[sys.argv.index("--studies") + 1])
    study = sys.argv[sys.argv.index("--study") + 1] if "--study" in sys.argv else sys.argv[2]
    patch = pytest.MonkeyPatch()
    short_limits(patch)

    def look(now: Moment, folder: Path) -> None:
        remember(folder)
        if not roles or hooks.role(folder) in roles:
            strike(fault, moment, now, folder)

    hooks = Hooks(look, studies / study)
    hooks.install(patch)
    show = console.Console.show

    def see(self: console.Console, event: Event) -> None:
        hooks.see(event)
        show(self, event)

    patch.setattr(console.Console, "show", see)
    if fault != "disk nearly full":
        patch.setattr(store, "LEAST_DISK_BYTES", 0)
    patch.setattr("tuner.config.SearchSettings", lambda: OPEN_RULES)
    # Asking the stand-in for its flags takes two seconds a time, and is tested elsewhere.
    patch.setattr(search, "installed_vllm", lambda command, cache: installed())
    patch.setattr("tuner.config.installed_vllm", lambda command, cache: installed())
    real_report = page.write_report

    def write_report(folder: Path) -> Path:
        # Drawn at the end only: these runs do not need a page after each trial.
        if fault == "report cannot be drawn" and not (folder / "report-failed").exists():
            (folder / "report-failed").touch()
            note("struck\n")
            raise ValueError("nothing to draw")
        done = (folder / "result.json").read_text().count('"complete": true')
        return real_report(folder) if done else folder / "report.html"

    patch.setattr(page, "write_report", write_report)
    app.main()


def installed() -> InstalledVllm:
    flags = ("max-model-len", "max-num-seqs", "shutdown-timeout", *layout.FLAGS)
    return InstalledVllm("0.32.0+sim", flags)


def note(text: str) -> None:
    with Path(os.environ["TUNER_NOTE"]).open("a") as file:
        file.write(text)


_struck: list[Moment] = []


def strike(fault: str, wanted: str, now: Moment, folder: Path) -> None:
    if now != wanted or _struck or fault == "none":
        return
    _struck.append(now)
    if fault in SIGNALS:
        note("struck\n")
        os.kill(os.getpid(), SIGNALS[fault])
    elif fault == "disk full":
        note("struck\n")
        fill(folder.parents[1])
    elif fault == "trial folder read-only":
        note("struck\n")
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    elif fault == "nginx is gone":
        note("struck\n")
        os.environ["PATH"] = str(Path(sys.executable).parent)
        pytest.MonkeyPatch().setattr(door, "_USUAL_FOLDERS", ())


def remember(folder: Path) -> None:
    """Note the files that must be gone when the servers have ended."""
    for record in map(running_file.read, running_file.found_below(folder)):
        note(f"{record.scratch}\n")
        for process in session(record.pid):
            for file in proctable.shared_memory_files(process.pid):
                note(f"{file}\n")


def fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


if __name__ == "__main__":
    main()
