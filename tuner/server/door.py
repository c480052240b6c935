"""nginx in front of the servers of a service, from its start to its end."""

from __future__ import annotations

import errno
import functools
import os
import pwd
import resource
import shutil
import subprocess
from collections.abc import Sequence

from tuner.errors import EnvironmentFaultError
from tuner.server import leftovers, logtext
from tuner.server.child import Child, ChildSpec
from tuner.server.diagnosis import foreign_listener, over_limit, signal_name
from tuner.server.nginx_conf import OPEN_FILES, site_conf, whole_conf
from tuner.server.ports import HOST, fresh_port
from tuner.server.readiness import Endpoint, NotReady, Ready, Watch
from tuner.server.request import ServiceRequest
from tuner.server.shutdown import StopReport
from tuner.vllm.cause import Cause, Fault

LOG_NAME = "door.log"
GRACE_S = 5.0
"""Seconds for nginx to obey SIGTERM. It cuts open streams off."""

_USUAL_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin")
"""Folders that only root has in PATH."""
_PROBE_LIMIT_S = 10.0
_ADDRESS_IN_USE = f"({errno.EADDRINUSE}:"
"""Beginning of nginx's reason for a port that another process listens on."""


def nginx_program() -> str | None:
    """Find nginx; None if it is not installed."""
    return shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(_USUAL_FOLDERS))


def required_nginx() -> str:
    """Find nginx. Raises EnvironmentFaultError if it is not installed."""
    if (program := nginx_program()) is None:
        raise EnvironmentFaultError(
            "several servers need nginx in front of them, and it is not installed",
            hint="install nginx (Debian, Ubuntu: apt install nginx-light), or choose --door vllm",
        )
    return program


class NginxDoor:
    """nginx of our own: its files are in its scratch folder, and it needs no root."""

    def __init__(self, request: ServiceRequest, program: str, servers: Sequence[Endpoint]) -> None:
        """Start nginx. Raises OSError if the machine cannot do so, and leaves nothing behind then."""
        port = fresh_port()
        listen = f"{HOST}:{port}"
        scratch = leftovers.new_scratch()
        _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        open_files = OPEN_FILES if most_files == resource.RLIM_INFINITY else min(OPEN_FILES, most_files)
        site = site_conf([f"{HOST}:{server.port}" for server in servers], listen)
        spec = ChildSpec(
            argv=_argv(program, str(scratch)),
            env=os.environ,
            log_name=LOG_NAME,
            port=port,
            scratch=scratch,
            files=(("nginx.conf", whole_conf(site, open_files)),),
        )
        self.endpoint = Endpoint(f"http://{listen}", port, request.model, servers[0].api_key)
        self._clock = request.clock
        self._child = Child(request, len(servers), spec)
        self.process = self._child.process
        self._watch = Watch(self.process, self.endpoint, self._child.log_path, request.on_phase, in_container=False)

    def look(self, *, servers_are_ready: bool) -> Ready | NotReady | None:
        """Look once; None if it is still on its way. Asks nothing through it before the servers answer: nginx would
        take them for dead."""
        if not servers_are_ready:
            return None if self.alive() else NotReady.DIED
        return self._watch.look()

    def seconds(self) -> float:
        """Return the seconds since the fork."""
        return self._child.seconds()

    def refusal(self, outcome: NotReady, limit_s: float) -> Cause:
        """Explain a door that did not open."""
        if outcome is NotReady.FOREIGN_LISTENER:
            return foreign_listener(self.endpoint.port)
        if outcome is NotReady.OVER_LIMIT:
            return over_limit(limit_s, self._cause("door-closed", "The door (nginx) does not lead to the servers."))
        refused = self._cause("door-refused", f"The door (nginx) did not open: it {self._ended()}.")
        # nginx gives up by itself after some attempts. Servers that are slower let it, and the cause is the same.
        return foreign_listener(self.endpoint.port) if _ADDRESS_IN_USE in refused.line else refused

    def alive(self) -> bool:
        """Tell whether nginx runs."""
        return self.process.exit_code() is None

    def died(self) -> Cause | None:
        """Explain why requests were lost; None if nginx runs."""
        if self.alive():
            return None
        return self._cause("door-died", f"The door (nginx) died: it {self._ended()}.")

    def end(self) -> StopReport:
        """End nginx and remove what it leaves. Its running file stays if something survives."""
        begun_ns = self._clock.now_ns()
        ended = self.process.stop(GRACE_S)
        if not ended.left:
            self._child.remove_files()
        return StopReport(
            seconds=(self._clock.now_ns() - begun_ns) / 1e9,
            killed=ended.killed,
            left=ended.left,
            exit_code=self.process.exit_code(),
        )

    def _ended(self) -> str:
        code = self.process.exit_code() or 0
        return f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"

    def _cause(self, kind: str, explanation: str) -> Cause:
        lines = logtext.read(self._child.log_path).split("\n")
        line = next((line for line in lines if "[emerg]" in line), next(filter(None, reversed(lines)), ""))
        return Cause(kind, Fault.ENVIRONMENT, logtext.shorten(line), explanation, f"see {LOG_NAME} of the trial")


def _argv(program: str, folder: str) -> tuple[str, ...]:
    # As root nginx would hand its workers to another user, whose processes we may not be allowed to look into.
    user = f" user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
    log = ("-e", "stderr") if _takes_error_log(program) else ()
    return (program, *log, "-p", folder, "-c", f"{folder}/nginx.conf", "-g", f"daemon off;{user}")


@functools.cache
def _takes_error_log(program: str) -> bool:
    """Ask whether `-e` is known: nginx 1.18 does not have it, and complains that /var/log is not ours."""
    try:
        answer = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=_PROBE_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "-e filename" in answer.stdout + answer.stderr
