"""The model behind proposals knows nothing but what a study saw: these tests make servers up that obey its physics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.study.builders import REFUSAL, layouts_plan, level, plan, record, with_start
from tests.study.test_kv_budget import DEFAULTS as ON_H100
from tests.study.test_kv_budget import H100, planned
from tuner.candidate import Candidate
from tuner.load.workload import workload
from tuner.space.axis import ParameterAxis
from tuner.study.lifetimes import Lifetimes
from tuner.study.may_start import MayStart
from tuner.study.mechanics import Mechanics, fitted
from tuner.study.proposer import Proposer
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.residents import kv_forecast
from tuner.study.setting import StudySetting
from tuner.study.surrogate import Ends, FullServer, Seen, Surrogate
from tuner.vllm.defaults import vllm_defaults
from tuner.vllm.facts import StartFacts

GIB = 1 << 30
DEFAULTS = vllm_defaults("0.32.0", ())


def on_a_cpu(folder: Path) -> StudySetting:
    return StudySetting.of(plan(folder), DEFAULTS)


def on_an_h100(folder: Path, load: str = "random:1000-3000,500") -> StudySetting:
    return StudySetting.of(replace(planned(folder), workload=workload(load)), ON_H100, H100)


def axes(setting: StudySetting) -> tuple[ParameterAxis, ...]:
    return tuple(ParameterAxis(parameter) for parameter in setting.plan.parameters)


def candidate(sequences: int, tokens: int, share: float = 0.9) -> Candidate:
    values = {"max-num-seqs": sequences, "max-num-batched-tokens": tokens, "gpu-memory-utilization": share}
    return Candidate.of(values)


def started(trial: int, of: Candidate, kv_tokens: int) -> TrialRecord:
    return with_start(record(trial, of, (level(10.0),)), facts=StartFacts(kv_tokens=kv_tokens))


def refused(trial: int, of: Candidate, kind: str) -> TrialRecord:
    made = record(trial, of, cause=replace(REFUSAL, kind=kind, bounds=()))
    return replace(made, outcome=TrialOutcome.REFUSED)


# ---------------------------------------------------------------- traffic and KV cache


def test_a_resident_request_holds_its_prompt_and_half_its_answer() -> None:
    lives = Lifetimes.of(workload("random:1000-3000,500"))
    assert lives.resident == pytest.approx(2000 + 250)
    assert lives.spread == pytest.approx(math.hypot(2000 / math.sqrt(12), 500 / math.sqrt(12)))


def test_fewer_requests_nearly_always_fit_than_fit_on_average() -> None:
    lives = Lifetimes.of(workload("random:1000-3000,500"))
    n = lives.surely_fit(100_000)
    assert n * lives.resident + 3 * lives.spread * math.sqrt(n) == pytest.approx(100_000)


@pytest.mark.parametrize("token_bytes_more", [0, 40_000, 120_000])
def test_the_forecast_of_a_kv_cache_follows_the_logs_of_starts(token_bytes_more: int, tmp_path: Path) -> None:
    setting = on_an_h100(tmp_path)
    layout = setting.plan.own_layout
    before = kv_forecast(setting, (), layout)
    assert before is not None

    def leaves(of: Candidate) -> float:
        tokens = float(setting.values(of)["max-num-batched-tokens"])
        return 0.9 * before.kv_bytes(setting.values(of))[0] - token_bytes_more * tokens

    starts = [candidate(256, 2048), candidate(256, 8192, 0.95), candidate(512, 16384, 0.85)]
    records = [started(i, c, int(leaves(c) / before.token_bytes)) for i, c in enumerate(starts)]
    after, new = kv_forecast(setting, records, layout), candidate(256, 12288, 0.92)
    assert after is not None
    far, near = (abs(f.kv_bytes(setting.values(new))[0] - leaves(new)) for f in (before, after))
    assert near < 0.25 * far
    assert after.kv_bytes(setting.values(new))[1] < 0.5 * before.kv_bytes(setting.values(new))[1]


def test_of_a_model_that_is_not_at_hand_the_first_log_tells_the_kv_cache(tmp_path: Path) -> None:
    setting = StudySetting.of(replace(plan(tmp_path / "s"), model="org/unknown"), ON_H100, H100)
    layout = setting.plan.own_layout
    assert kv_forecast(setting, (), layout) is None
    facts = StartFacts(kv_tokens=100_000, kv_memory_gib=10.0)
    first = with_start(record(0, candidate(64, 2048), (level(10.0),)), facts=facts)
    found = kv_forecast(setting, [first], layout)
    assert found is not None
    assert found.token_bytes == pytest.approx(10 * GIB / 100_000)
    more = found.kv_bytes(setting.values(candidate(64, 2048, 0.95)))[0]
    assert more == pytest.approx(10 * GIB + 0.05 * H100[0].memory_gib * GIB, rel=0.02)


# ---------------------------------------------------------------- the mean


def test_the_constants_are_those_that_the_figures_were_made_with_and_none_is_negative() -> None:
    draw = np.random.default_rng(0)
    terms = draw.uniform(0.1, 2.0, (30, 4))
    constants = np.array([0.02, 0.5, 0.0, 0.1])
    qps = 1 / (terms @ constants) * np.exp(draw.normal(0.0, 0.01, 30))
    found = fitted(terms, qps)
    assert found == pytest.approx(constants, abs=0.02)
    assert (found >= 0).all()


def test_sequences_stand_over_what_fits_and_memory_as_its_logarithm(tmp_path: Path) -> None:
    mechanics = Mechanics(on_an_h100(tmp_path), axes(on_an_h100(tmp_path)), ())
    small, same, large = (
        mechanics.view(candidate(n, 2048, share)).place for n, share in ((64, 0.90), (128, 0.90), (64, 0.95))
    )
    assert same[1] == pytest.approx(small[1] + 1, abs=0.02)
    assert large[1] < small[1]
    assert large[2] > small[2] > same[2] > small[2] - 0.02


def test_what_the_log_says_counts_where_a_candidate_started(tmp_path: Path) -> None:
    setting = on_an_h100(tmp_path)
    known = candidate(64, 2048)
    told = Mechanics(setting, axes(setting), [started(0, known, 77_777)])
    forecast = told.forecast(setting.plan.own_layout)
    assert forecast is not None
    assert told.view(known).place[2] == pytest.approx(math.log2(77_777 * forecast.token_bytes))


def test_without_knowledge_of_the_kv_cache_its_flag_is_an_axis_of_its_own(tmp_path: Path) -> None:
    setting = on_a_cpu(tmp_path / "s")
    mechanics = Mechanics(setting, axes(setting), ())
    assert mechanics.forecast(setting.plan.own_layout) is None
    less, more = (mechanics.view(candidate(64, 2048, share)).place for share in (0.85, 0.95))
    assert len(less) == len(setting.plan.parameters)
    assert sum(a != b for a, b in zip(less, more, strict=True)) == 1


def test_servers_of_several_sizes_share_constants(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s")
    setting = StudySetting.of(made, DEFAULTS)
    mechanics = Mechanics(setting, axes(setting), ())
    views = [mechanics.view(made.default_of(placed.layout)) for placed in made.layouts]
    half = len(views[0].terms) // 2
    assert len({view.terms[:half] for view in views}) == 1
    assert len({view.terms[half:] for view in views}) == len({p.layout.tensor_parallel for p in made.layouts})


def test_the_model_foresees_what_it_has_not_seen(tmp_path: Path) -> None:
    setting = on_an_h100(tmp_path)
    mechanics = Mechanics(setting, axes(setting), ())

    def qps(of: Candidate) -> float:
        n = min(float(of.as_dict()["max-num-seqs"]), 190.0)
        return 1 / (0.02 + 1.5 / n + 20 / float(of.as_dict()["max-num-batched-tokens"]))

    known = [candidate(n, t) for n, t in ((16, 2048), (32, 8192), (64, 1024), (128, 4096), (24, 16384), (90, 2048))]
    new = [candidate(n, t) for n, t in ((20, 4096), (48, 2048), (100, 8192))]
    views = [mechanics.view(c) for c in (*known, *new)]
    model = Surrogate(
        [Seen(view, qps(c), 0.01, 1) for view, c in zip(views, known, strict=False)],
        [FullServer(view.full, qps(c)) for view, c in zip(views, known, strict=False)],
        Ends.of(views),
        seed=0,
    )
    mean, _ = model.predict(views[len(known) :])
    assert np.exp(mean) == pytest.approx([qps(c) for c in new], rel=0.07)


# ---------------------------------------------------------------- will it start?


@pytest.mark.parametrize("kind", ["oom", "oom-warm-up", "oom-profiling"])
def test_the_more_memory_is_wanted_the_less_likely_is_a_start_after_a_refusal(kind: str, tmp_path: Path) -> None:
    setting = on_a_cpu(tmp_path / "s")
    records = [record(0, candidate(64, 2048, 0.85), (level(10.0),)), refused(1, candidate(256, 8192, 0.95), kind)]
    starts = MayStart(setting, axes(setting), records, Mechanics(setting, axes(setting), records))
    tried = [(64, 2048, 0.85), (100, 3000, 0.88), (180, 6000, 0.93), (256, 8192, 0.95), (256, 8192, 0.97)]
    found = list(starts.probabilities([candidate(*values) for values in tried], 0))
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.7 > 0.5 > found[-1]


def test_without_a_refusal_what_fits_is_sure_to_start(tmp_path: Path) -> None:
    setting = on_an_h100(tmp_path)
    starts = MayStart(setting, axes(setting), (), Mechanics(setting, axes(setting), ()))
    assert starts.probabilities([candidate(64, 2048)], 0) == pytest.approx([1.0], abs=0.01)


def test_a_refusal_for_too_little_kv_makes_what_leaves_less_of_it_unlikely(tmp_path: Path) -> None:
    setting = on_an_h100(tmp_path)
    refusal = refused(1, candidate(64, 2048, 0.90), "kv-too-small")
    setting = replace(setting, given={**setting.given, "max-model-len": 30_000})
    starts = MayStart(setting, axes(setting), [refusal], Mechanics(setting, axes(setting), [refusal]))
    less, same, more = starts.probabilities([candidate(64, 2048, share) for share in (0.85, 0.90, 0.97)], 0)
    assert less <= same < 0.1 < 0.9 < more


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("kv-too-small", TrialOutcome.REFUSED),
        ("never-heard-of", TrialOutcome.REFUSED),
        ("", TrialOutcome.REFUSED),
        ("oom", TrialOutcome.DIED),
    ],
)
def test_a_start_beside_failures_that_nothing_explains_is_unlikely(
    kind: str, outcome: TrialOutcome, tmp_path: Path
) -> None:
    setting = on_a_cpu(tmp_path / "s")
    well = [(16, 2048, 0.92), (32, 8192, 0.90), (64, 1024, 0.85), (24, 4096, 0.93)]
    ill = [(24, 9216, 0.95), (200, 2048, 0.96), (64, 4096, 0.945)]
    records = [record(trial, candidate(*values), (level(10.0),)) for trial, values in enumerate(well)]
    cause = replace(REFUSAL, kind=kind, bounds=()) if kind else None
    for values in ill:
        failed = record(len(records), candidate(*values), cause=cause)
        records.append(replace(failed, outcome=outcome))
    starts = MayStart(setting, axes(setting), records, Mechanics(setting, axes(setting), records))
    beside, away = starts.probabilities([candidate(40, 3000, 0.955), candidate(40, 3000, 0.89)], 0)
    assert beside < 0.4
    assert away > 0.7


# ---------------------------------------------------------------- the choice


def untried(tried: set[Candidate]) -> Callable[[Candidate], bool]:
    return lambda candidate: candidate not in tried


def at(setting: StudySetting, numbers: dict[str, float]) -> Candidate:
    return setting.candidate({axis.parameter.flag: axis.parameter.decode(numbers[axis.parameter.flag])
                              for axis in axes(setting)})  # fmt: skip


def study(setting: StudySetting, qps: Callable[[Candidate], float | None], starts: int) -> list[TrialRecord]:
    """Search from three candidates on; where `qps` is None a server is refused for memory."""
    proposer = Proposer(setting, axes(setting))
    records: list[TrialRecord] = []
    first = [candidate(16, 2048, 0.85), candidate(64, 4096, 0.90), candidate(32, 1024, 0.88)]
    for trial in range(starts):
        tried = {r.candidate for r in records}
        numbers = None if trial < len(first) else proposer.propose(records, (), untried(tried), trial)
        asked = first[trial] if numbers is None else at(setting, numbers)
        found = qps(asked)
        records.append(refused(trial, asked, "oom") if found is None
                       else record(trial, asked, (level(found),), role=Role.SEARCH))  # fmt: skip
    return records


def test_a_ridge_is_found_within_a_dozen_starts(tmp_path: Path) -> None:
    setting = on_a_cpu(tmp_path / "s")

    def qps(of: Candidate) -> float:
        values = of.as_dict()
        n, tokens = float(values["max-num-seqs"]), float(values["max-num-batched-tokens"])
        return 10 * math.exp(-(math.log2(n / 150) ** 2) / 4 - math.log2(tokens / 1500) ** 2 / 8)

    assert max(r.qps or 0.0 for r in study(setting, qps, 15)) > 9.5


def test_refusals_are_kept_away_from_and_what_starts_beside_them_is_found(tmp_path: Path) -> None:
    setting = on_a_cpu(tmp_path / "s")

    def qps(of: Candidate) -> float | None:
        share = float(of.as_dict()["gpu-memory-utilization"])
        return None if share > 0.91 else 10 + 20 * (share - 0.80)

    records = study(setting, qps, 18)
    assert sum(r.outcome is TrialOutcome.REFUSED for r in records) <= len(records) / 2
    assert max(r.qps or 0.0 for r in records) > 12.0


def test_the_same_records_give_the_same_proposal_and_what_runs_is_not_proposed_beside_itself(tmp_path: Path) -> None:
    setting = on_a_cpu(tmp_path / "s")
    records = study(setting, lambda of: float(of.as_dict()["max-num-seqs"]) ** 0.3, 6)
    proposer = Proposer(setting, axes(setting))
    first, again = (proposer.propose(records, (), lambda c: True, 7) for _ in range(2))
    assert first is not None
    assert first == again
    running = at(setting, first)
    beside = proposer.propose(records, [running], lambda c: True, 7)
    assert beside is not None
    assert beside != first


def test_limits_that_were_broken_are_kept_away_from(tmp_path: Path) -> None:
    setting = on_a_cpu(tmp_path / "s")
    kept = [(16, 2048, 0.9), (32, 8192, 0.85), (64, 1024, 0.95), (90, 4096, 0.9)]
    broken = [(200, 1024, 0.85), (300, 16384, 0.95), (250, 4096, 0.82), (500, 2048, 0.93)]
    records = [
        record(trial, candidate(n, tokens, share), (level(math.sqrt(n), p99_ms=4.0 * n),), role=Role.SEARCH)
        for trial, (n, tokens, share) in enumerate(kept + broken)
    ]
    assert [r.qps is None for r in records] == 4 * [False] + 4 * [True]
    proposer = Proposer(setting, axes(setting))
    for seed in range(3):
        numbers = proposer.propose(records, (), lambda c: c.as_dict()["max-num-seqs"] != 90, seed)
        assert numbers is not None
        assert numbers["max-num-seqs"] < 200
