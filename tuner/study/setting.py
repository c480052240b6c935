"""Flag values that a server of a study really runs with, in one order of precedence.

From the weakest to the strongest: vLLM's defaults, the study's constant flags, the candidate's own values, the
user's own words. The last three are the order of the words that tuner/launch.py writes, of which argparse takes the
last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuner.candidate import Candidate, Value
from tuner.environment import Gpu
from tuner.study.plan import StudyPlan


@dataclass(frozen=True, slots=True)
class StudySetting:
    """Values that all servers of a study share, and the flags in which they differ.

    `gpus` are those of the servers, none on a CPU. `base` lies under a candidate's values: vLLM's defaults and the
    constant flags of every server. `given` lies above them: the user's own words. `constant` are the values of all
    flags that are not searched, which only the default configuration may lack.
    """

    plan: StudyPlan
    gpus: tuple[Gpu, ...]
    base: Mapping[str, Value]
    given: Mapping[str, Value]
    constant: Mapping[str, Value]

    @classmethod
    def of(cls, plan: StudyPlan, defaults: Mapping[str, Value], gpus: tuple[Gpu, ...] = ()) -> StudySetting:
        """Combine a plan with vLLM's defaults."""
        base = {**defaults, **dict(plan.base.fixed)}
        searched = {p.flag for p in plan.parameters}
        constant = {f: v for f, v in {**base, **dict(plan.space.fixed), **plan.given}.items() if f not in searched}
        return cls(plan, gpus, base, plan.given, constant)

    @property
    def searched(self) -> frozenset[str]:
        """The flags that tell candidates apart."""
        return frozenset(p.flag for p in self.plan.parameters)

    def values(self, candidate: Candidate) -> dict[str, Value]:
        """Return the values that a server with this candidate runs with, as far as they are known."""
        return {**self.base, **candidate.as_dict(), **self.given}

    def candidate(self, values: Mapping[str, Value]) -> Candidate:
        """Build the candidate of searched values, within vLLM's argument rules beside the constant flags."""
        return self.plan.space.candidate(values, {**dict(self.plan.base.fixed), **self.given})

    def is_like_the_others(self, values: Mapping[str, Value]) -> bool:
        """Return False for a default configuration that lacks constant flags of the other candidates."""
        return all(values.get(flag) == value for flag, value in self.constant.items())
