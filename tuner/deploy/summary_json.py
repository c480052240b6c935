"""The winner for programs: launch, figures and cost as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from tuner import jsonfile
from tuner.candidate import Value
from tuner.deploy.recorded import Recorded
from tuner.environment import Environment
from tuner.launch import Door, LaunchSpec
from tuner.measurement import Measurement
from tuner.report.cost import cost
from tuner.report.quote import shell_lines
from tuner.study.result import Figures


@dataclass(frozen=True, slots=True)
class Priced:
    """Costs in the unit of `gpu_price_per_hour`. None without a price or a measurement."""

    figures: Figures | None
    cost_per_million_output_tokens: float | None
    cost_per_thousand_requests: float | None


@dataclass(frozen=True, slots=True)
class Best:
    """Deployment with its figures. `commands` start the servers, on the ports that its door expects. `gpus` are those
    of all servers, and each of them is paid for."""

    study: str
    trial: int
    flags: dict[str, Value]
    layout: str
    door: Door
    commands: tuple[str, ...]
    launches: tuple[LaunchSpec, ...]
    measured_as_a_whole: bool
    chosen: Priced
    default: Priced | None
    gpu_price_per_hour: float | None
    gpus: int
    environment: Environment
    sentence: str
    complete: bool
    schema: int = 2


def best_json(recorded: Recorded, gpu_price: float | None = None) -> str:
    record, result = recorded.record, recorded.result
    gpus, default = len(recorded.gpus), result.default
    default_gpus = gpus
    if default and gpus and recorded.plan.searches_layouts:
        default_gpus = recorded.plan.layout_of(default.candidate).gpus
    return jsonfile.dumps(
        Best(
            study=result.study,
            trial=record.trial,
            flags=record.candidate.as_dict(),
            layout=str(recorded.layout),
            door=recorded.door,
            commands=shell_lines(recorded.launches),
            launches=recorded.launches,
            measured_as_a_whole=recorded.was_whole,
            chosen=_priced(recorded.figures, record.best_level, gpus, gpu_price),
            default=_priced(default, record.best_level, default_gpus, gpu_price) if default else None,
            gpu_price_per_hour=gpu_price,
            gpus=gpus,
            environment=recorded.environment,
            sentence=result.sentence,
            complete=result.complete,
        )
    )


def _priced(figures: Figures | None, level: Measurement | None, gpus: int, gpu_price: float | None) -> Priced:
    """Compute the costs. `level` gives the output tokens of a request, equal for every candidate of a study."""
    if gpu_price is None:
        return Priced(figures, None, None)
    qps = figures.qps if figures else level.qps if level else None
    return Priced(figures, *cost(qps, level, gpus, gpu_price))
