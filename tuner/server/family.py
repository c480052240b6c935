"""Processes of one server, proven and never guessed."""

from __future__ import annotations

import os

from tuner.server import proctable
from tuner.server.proctable import FileId, ProcessEntry


class Family:
    """Processes of one server, as far as they can be proven to be its own.

    A process belongs to it

    - by session: the leader's number is its session, as long as the leader's entry (a zombie will do) has the recorded
      start time. The kernel reuses no number that is still a session, so all members are ours;
    - by output: its stdout or stderr is the server's log, which only the leader was given. This finds orphans with a
      session of their own, or whose leader is gone and reaped;
    - by descent from one of these, or because it was one of these when last seen (same pid and start time).

    vLLM overwrites argv and environment of its processes (docs/vllm.md), so those prove nothing.
    """

    def __init__(self, leader_pid: int, leader_start_ticks: int, log: FileId) -> None:
        self.leader_pid = leader_pid
        self._leader_start_ticks = leader_start_ticks
        self._log = log
        self._seen: dict[int, int] = {}

    def living(self) -> tuple[ProcessEntry, ...]:
        """Return the running processes, the leader included."""
        return tuple(process for process in self._members() if not process.is_zombie)

    def reap_adopted(self) -> None:
        """Reap adopted orphans (PR_SET_CHILD_SUBREAPER) that ended. The leader is left to its owner."""
        for process in self._members():
            if process.is_zombie and process.ppid == os.getpid() and process.pid != self.leader_pid:
                os.waitpid(process.pid, 0)  # returns at once: see ProcessEntry.is_zombie

    def _members(self) -> list[ProcessEntry]:
        processes = proctable.table()
        # No member is older than the leader. This also avoids a look into most of the machine's processes.
        later = [p for p in processes.values() if p.start_ticks >= self._leader_start_ticks and p.pid != os.getpid()]
        leader = processes.get(self.leader_pid)
        session_is_ours = leader is not None and leader.start_ticks == self._leader_start_ticks
        roots = {
            p.pid
            for p in later
            if (session_is_ours and p.session == self.leader_pid)
            or self._seen.get(p.pid) == p.start_ticks
            or proctable.writes_to(p.pid, self._log)
        }
        if not session_is_ours:
            # Leader reaped, session alive: one proven member proves the session, whose number cannot have been reused.
            proven = {processes[pid].session for pid in roots}
            if self.leader_pid in proven and leader is None:
                roots |= {p.pid for p in later if p.session == self.leader_pid}
        found = roots | proctable.descendants(roots, processes)
        self._seen.update((pid, processes[pid].start_ticks) for pid in found)
        return [processes[pid] for pid in sorted(found)]
