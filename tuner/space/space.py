"""Space of a search_spaces file, and what the installed vLLM leaves of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tuner.candidate import Candidate, Value
from tuner.errors import UsageError
from tuner.space.parameter import Kind, Parameter
from tuner.vllm import knobs
from tuner.vllm.argument_rules import adapted

WORKLOAD = "workload"
"""Placeholder for a number in a file: the tokens of the workload's longest request."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Flag of the space that is not searched here, with the reason."""

    flag: str
    why: str


@dataclass(frozen=True, slots=True)
class Space:
    """Searched parameters with their surroundings. `baseline` is what the default configuration gets (usually
    nothing). `fixed` goes to every candidate but the default, `always` to the default too, `env` to every server."""

    name: str
    parameters: tuple[Parameter, ...]
    baseline: tuple[tuple[str, Value], ...] = ()
    fixed: tuple[tuple[str, Value], ...] = ()
    always: tuple[tuple[str, Value], ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    file: str | None = field(default=None, compare=False)
    """Absolute path of a space that is no preset."""

    def on(self, flags: Collection[str], version: str, given: Collection[str]) -> tuple[Space, tuple[Dropped, ...]]:
        """Return the space on a vLLM that has `flags`. Flags in `given` are the user's, and so not searched."""
        dropped = []
        for flag in self.flags:
            if flag in given:
                dropped.append(Dropped(flag, "set by you, the same for every candidate"))
            elif flag == knobs.GPU_MEMORY_UTILIZATION and knobs.KV_CACHE_MEMORY_BYTES in given:
                dropped.append(Dropped(flag, f"vLLM ignores it beside your {knobs.KV_CACHE_MEMORY_BYTES}"))
            elif flag not in flags:
                dropped.append(Dropped(flag, f"vLLM {version} does not have it, or takes only its default"))
        gone = {d.flag for d in dropped}
        space = replace(
            self,
            parameters=tuple(p for p in self.parameters if p.flag not in gone),
            baseline=tuple((f, v) for f, v in self.baseline if f not in gone),
            fixed=tuple((f, v) for f, v in self.fixed if f not in gone),
            always=tuple((f, v) for f, v in self.always if f not in gone),
        )
        if not space.parameters:
            raise UsageError(
                f"nothing is left to search in space {self.name!r}",
                hint="; ".join(f"{d.flag}: {d.why}" for d in dropped) or "add a parameter to it",
            )
        return space, tuple(dropped)

    @property
    def flags(self) -> tuple[str, ...]:
        named = [p.flag for p in self.parameters]
        named += [flag for flag, _ in (*self.baseline, *self.fixed, *self.always)]
        return tuple(dict.fromkeys(named))

    @property
    def default(self) -> Candidate:
        """The default configuration."""
        return Candidate.of(dict(self.baseline))

    def candidate(self, values: Mapping[str, Value], given: Mapping[str, Value]) -> Candidate:
        """Build a candidate with the space's fixed flags, changed to fit vLLM's argument rules."""
        point = adapted({**dict(self.fixed), **values}, {**dict(self.always), **given})
        if point.get(knobs.LONG_PREFILL_TOKEN_THRESHOLD) == 0:
            point.pop(knobs.LONG_PREFILL_TOKEN_THRESHOLD_ADAPTIVE, None)  # it floors a cap that is not there
        return Candidate.of(point)

    def fixing(self, flag: str, value: Value) -> Space:
        """Return the space with `flag` the same for every candidate; the default configuration goes without it."""
        return replace(self, fixed=(*((f, v) for f, v in self.fixed if f != flag), (flag, value)))

    def requiring(self, flag: str, value: Value) -> Space:
        """Return the space with `flag` the same for every server, the default configuration's too."""
        rest = {name: tuple((f, v) for f, v in getattr(self, name) if f != flag) for name in ("baseline", "fixed")}
        always = (*((f, v) for f, v in self.always if f != flag), (flag, value))
        return replace(self, baseline=rest["baseline"], fixed=rest["fixed"], always=always)

    def without(self, flag: str) -> Space:
        """Return the space without the parameter `flag`."""
        return replace(self, parameters=tuple(p for p in self.parameters if p.flag != flag))

    def up_to(self, flag: str, most: float) -> Space:
        """Return the space with a range that ends at `most` at the latest. One that would be empty stays."""
        parameters = tuple(
            replace(p, high=most) if p.flag == flag and not p.choices and p.low < most < p.high else p
            for p in self.parameters
        )
        return replace(self, parameters=parameters)

    def needs_at_least(self, tokens: int) -> Space:
        """Replace `workload` by `tokens`. A max-model-len range below that is lifted to it."""
        return replace(
            self,
            parameters=tuple(_lifted(p, tokens) if p.flag == knobs.MAX_MODEL_LEN else p for p in self.parameters),
            baseline=_resolved(self.baseline, tokens),
            fixed=_resolved(self.fixed, tokens),
            always=_resolved(self.always, tokens),
        )


def _lifted(parameter: Parameter, tokens: int) -> Parameter:
    if parameter.kind is Kind.CHOICE:
        kept = tuple(c for c in parameter.choices if isinstance(c, int) and c >= tokens)
        return replace(parameter, choices=kept or (tokens,))
    return replace(parameter, low=max(parameter.low, tokens), high=max(parameter.high, tokens))


def _resolved(values: tuple[tuple[str, Value], ...], tokens: int) -> tuple[tuple[str, Value], ...]:
    return tuple((flag, tokens if value == WORKLOAD else value) for flag, value in values)
