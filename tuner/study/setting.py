"""Flag values of a study's servers, in one precedence.

From the weakest to the strongest: vLLM's defaults, the study's constant flags, the candidate's own values, the
user's own words. The last three are the order of the words that tuner/launch.py writes, of which argparse takes the
last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuner.candidate import Candidate, Value
from tuner.environment import Gpu
from tuner.layout import Layout, split_layout
from tuner.study.plan import StudyPlan
from tuner.vllm import knobs

SERVER_SIZES = frozenset({knobs.TENSOR_PARALLEL, knobs.PIPELINE_PARALLEL})
"""Flags for the GPUs of one server. A candidate without one has 1."""


@dataclass(frozen=True, slots=True)
class StudySetting:
    """Values that a study's servers share or vary.

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
        searched = {p.flag for p in plan.parameters}
        sizes: dict[str, Value] = dict.fromkeys(SERVER_SIZES & searched, 1)
        base = _of_one_server({**sizes, **defaults, **dict(plan.base.fixed)})
        constant = {f: v for f, v in {**base, **dict(plan.space.fixed), **plan.given}.items() if f not in searched}
        return cls(plan, gpus, base, plan.given, constant)

    @property
    def searched(self) -> frozenset[str]:
        """The flags that tell candidates apart."""
        return frozenset(p.flag for p in self.plan.parameters)

    def values(self, candidate: Candidate) -> dict[str, Value]:
        """Return the known values of one of a candidate's servers. Their number is none of them."""
        return {**self.base, **_of_one_server(candidate.as_dict()), **self.given}

    def candidate(self, values: Mapping[str, Value]) -> Candidate:
        """Build a candidate within vLLM's argument rules."""
        return self.plan.space.candidate(self._laid_out(values), {**dict(self.plan.base.fixed), **self.given})

    def _laid_out(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values with a planned layout: the one of these sizes, else of this tensor-parallel size."""
        if not self.plan.searches_layouts:
            return dict(values)
        asked = Layout.of(values)
        planned = [p.layout for p in self.plan.layouts if p.layout.tensor_parallel == asked.tensor_parallel]
        layout = min(planned, key=lambda layout: layout.pipeline_parallel != asked.pipeline_parallel)
        _, others = split_layout(values)
        return {**others, **layout.flags}

    def on(self, layout: Layout) -> dict[str, Value]:
        """Return the flags that a candidate of a layout has. None where all candidates share one."""
        return layout.flags if self.plan.searches_layouts else {}

    def is_like_the_others(self, values: Mapping[str, Value]) -> bool:
        """Return False for a default without the constant flags."""
        return all(values.get(flag) == value for flag, value in self.constant.items())


def _of_one_server(values: Mapping[str, Value]) -> dict[str, Value]:
    return {flag: value for flag, value in values.items() if flag != knobs.DATA_PARALLEL}
