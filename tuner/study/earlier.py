"""What a study takes over from an earlier one."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.candidate import Candidate


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
