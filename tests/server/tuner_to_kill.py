"""A tuner for others to kill: `tuner_to_kill.py FOLDER [--in-record] [server words...]` serves until it dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.server.support import fake_running
from tuner.server import running_file


def main() -> None:
    folder, *words = sys.argv[1:]
    if words[:1] == ["--in-record"]:
        del words[0]
        # The worst moment: the child exists and nothing is on disk.
        running_file.write = lambda folder, marker: os.kill(os.getpid(), signal.SIGKILL)
    with fake_running(Path(folder), *words) as server:
        sys.stdout.write(f"{server.pid}\n")
        sys.stdout.flush()
        time.sleep(600)


if __name__ == "__main__":
    main()
