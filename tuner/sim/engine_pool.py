"""Engines of one server behind its API servers: choice of an engine, and the time that API servers take.

Source: vLLM 0.32.0, v1/engine/core_client.py DPLBAsyncMPClient. A request goes to the engine with the fewest waiting
and running requests. Waiting ones count more where the KV cache is over half full. The search for it begins at
another engine each time. vLLM's counts are up to 100 ms old, these are not.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Hashable, Sequence

from tuner.sim.engine_loop import EngineDeadError, EngineLoop, Stream
from tuner.sim.frontend import Frontend

CROWDED_USAGE, CROWDED_WEIGHT = 0.5, 6.0
"""KV usage from which waiting requests count more, and by how much (core_client.py)."""

Load = tuple[int, int, float]
"""Waiting requests, running requests and KV usage of an engine."""


def least_loaded(loads: Sequence[Load], first: int) -> int:
    """Choose an engine. Of equals it is the one that comes first from `first` on."""

    def score(index: int) -> float:
        waiting, running, usage = loads[index]
        return waiting + running + waiting * CROWDED_WEIGHT * max(0.0, usage - CROWDED_USAGE)

    return min(((first + i) % len(loads) for i in range(len(loads))), key=score)


class EnginePool:
    """Engines of one server. Its `frontends` are the API servers in front of several engines; one engine has none:
    there the stand-in's own API server takes the time that it takes."""

    def __init__(self, engines: Sequence[EngineLoop], frontends: Sequence[Frontend] = ()) -> None:
        self.engines = tuple(engines)
        self.started = engines[0].started
        self._frontends = tuple(frontends)
        self._turns = itertools.count()

    @property
    def dead(self) -> bool:
        """Return True if an engine died. vLLM then answers for none of them."""
        return any(engine.dead for engine in self.engines)

    async def submit(
        self, prompt_tokens: int, output_tokens: int, keys: Sequence[Hashable], sent_s: float, reason: str = "length"
    ) -> Stream:
        """Hand a request to an engine, through the next API server. Raises EngineDeadError."""
        turn = next(self._turns)
        frontend = self._frontends[turn % len(self._frontends)] if self._frontends else None
        if frontend is not None:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(max(0.0, frontend.read(loop.time()) - loop.time()))
        if self.dead:
            raise EngineDeadError
        loads = [engine.load for engine in self.engines]
        engine = self.engines[least_loaded(loads, turn % len(loads))]
        return engine.submit(prompt_tokens, output_tokens, keys, sent_s, reason, frontend)

    def abort(self, stream: Stream) -> None:
        """Abort a request between two steps of its engine."""
        for engine in self.engines:
            engine.abort(stream)

    def die(self) -> None:
        """End every stream of every engine with an error for good."""
        for engine in self.engines:
            engine.die()

    def forget_prefixes(self) -> bool:
        """Drop the cached content. Returns False, and drops nothing, if a request holds blocks."""
        if any(engine.scheduler.running for engine in self.engines):
            return False
        for engine in self.engines:
            engine.scheduler.pool.forget()
        return True

    async def run(self, hung: Callable[[int], bool]) -> None:
        """Step all engines until they die. `hung` tells if one has stopped for good (a fault)."""

        def is_hung(rank: int) -> Callable[[], bool]:
            return lambda: hung(rank)

        await asyncio.gather(*(engine.run(is_hung(rank)) for rank, engine in enumerate(self.engines)))
