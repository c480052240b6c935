"""CPU time of an API server, which is one thread in series with the engines."""

from __future__ import annotations

from tuner.sim.hardware import Hardware


class Frontend:
    """One API server. Its thread reads requests and writes tokens, one after the other.

    Times are seconds of any one clock that runs `speed` times as fast as the simulated machine.
    """

    __slots__ = ("_request_s", "_token_s", "free_s")

    def __init__(self, hardware: Hardware, speed: float = 1.0) -> None:
        self._request_s = hardware.frontend_s_per_request / speed
        self._token_s = hardware.frontend_s_per_token / speed
        self.free_s = 0.0

    def read(self, now_s: float) -> float:
        """Read a request that came at `now_s`. Returns when it is passed on."""
        self.free_s = max(now_s, self.free_s) + self._request_s
        return self.free_s

    def write(self, now_s: float, tokens: int) -> float:
        """Write a step's tokens that came at `now_s`. Returns when they are sent."""
        self.free_s = max(now_s, self.free_s) + tokens * self._token_s
        return self.free_s
