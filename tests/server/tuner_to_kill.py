"""A tuner for others to kill: `tuner_to_kill.py FOLDER [--in-record | --behind-nginx] [server words...]`.

It serves until it dies, and prints the pids of its leaders."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.server.support import fake_serving, fake_spec
from tuner.launch import Deployment, Door
from tuner.server import running_file


def main() -> None:
    folder, *words = sys.argv[1:]
    if words[:1] == ["--in-record"]:
        del words[0]
        # The worst moment: the child exists and nothing is on disk.
        running_file.write = lambda folder, marker: os.kill(os.getpid(), signal.SIGKILL)
    specs = [fake_spec(*words)]
    if words[:1] == ["--behind-nginx"]:
        specs = [fake_spec(*words[1:]), fake_spec(*words[1:])]
    door = Door.NGINX if len(specs) > 1 else Door.SERVER
    with fake_serving(Path(folder), Deployment(tuple(specs), door)) as service:
        sys.stdout.write(" ".join(map(str, service.pids)) + "\n")
        sys.stdout.flush()
        time.sleep(600)


if __name__ == "__main__":
    main()
