"""What a study takes over from an earlier one."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.candidate import Candidate, Value
from tuner.study.rule import LearntRule


@dataclass(frozen=True, slots=True)
class Rechecked:
    """Winner of a finished study, to be compared with the default once more.

    Attributes:
        study: Name of that study.
        candidate: Its winner.
        qps: The winner's figure there.
        gain: Its gain over the default there, as the low, middle and high share. None if none was measured.
        vllm_version: Version of vLLM behind these figures.
    """

    study: str
    candidate: Candidate
    qps: float
    gain: tuple[float, float, float] | None
    vllm_version: str
    tuner_version: str
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class Differs:
    """Value that an earlier study had, and the later one's. None stands for vLLM's own choice, or for no value."""

    what: str
    was: Value | None
    now: Value | None


@dataclass(frozen=True, slots=True)
class EarlierCandidate:
    """One of an earlier study's best candidates, in the later study's space.

    Attributes:
        trial: Trial of the earlier study that measured it, with `qps` of its whole machine.
        changed: Values that the later space does not have, moved to the nearest one that it has.
    """

    candidate: Candidate
    trial: int
    qps: float
    changed: tuple[Differs, ...] = ()


@dataclass(frozen=True, slots=True)
class BeginsWith:
    """What a search begins with, from an earlier study on the same GPUs.

    Attributes:
        candidates: Its best candidates, the best first.
        without_layout: Trials of best candidates whose layout is not searched here.
        not_searched: Flags that it searched and this study does not.
        rules: Its rules, as limits on the flags of this study.
        stale_rules: Number of rules that may not hold any more, because of `stale_by`.
        constants: Constants of 1 / QPS, as mechanics.py lists its terms. 0 for one that is not known here.
    """

    study: str
    vllm_version: str
    candidates: tuple[EarlierCandidate, ...] = ()
    without_layout: tuple[int, ...] = ()
    not_searched: tuple[str, ...] = ()
    rules: tuple[LearntRule, ...] = ()
    stale_rules: int = 0
    stale_by: tuple[Differs, ...] = ()
    constants: tuple[float, ...] = ()
