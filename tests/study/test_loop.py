from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import ScriptedClock
from tests.study.builders import MACHINE, landscape, plan, trial_of, with_start
from tests.study.study_run import StudyRun
from tuner.errors import EnvironmentFaultError
from tuner.measurement import LoadKind
from tuner.server.diagnosis import Bound
from tuner.study.assignment import Assignment
from tuner.study.events import GroupQuarantined, Paused, RuleApplied
from tuner.study.machine_faults import ATTEMPTS, FAULTS_IN_A_ROW, PAUSES_S
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision


def test_a_run_finds_a_winner_and_confirms_it_in_fresh_starts(tmp_path: Path) -> None:
    run = StudyRun(plan(tmp_path / "s", starts=20))
    result = run.loop.run()
    assert result.decision is Decision.WINNER
    assert result.complete
    assert result.winner is not None and result.winner.fresh and len(result.winner.trials) == 2
    assert result.winner.qps > 90
    assert float(result.winner.candidate.as_dict()["gpu-memory-utilization"]) <= 0.93


def test_each_pair_of_confirmation_runs_has_traffic_of_its_own(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=8, confirm_starts=6)
    assert made.load.kind is LoadKind.CLOSED
    seen: list[Assignment] = []

    def run_trial(assignment: Assignment) -> TrialRecord:
        seen.append(assignment)
        if assignment.candidate != made.baseline:
            return landscape(assignment)
        shown = landscape(replace(assignment, candidate=assignment.candidate.of({"max-num-seqs": 64})))
        return replace(shown, candidate=made.baseline)

    StudyRun(made, run_trial).loop.run()
    confirming = [a for a in seen if a.role is Role.CONFIRM]
    of_default = [a.traffic for a in confirming if a.candidate == made.baseline]
    of_winner = [a.traffic for a in confirming if a.candidate != made.baseline]
    assert of_default == of_winner == [1, 2, 3]
    assert {a.traffic for a in seen if a.role is not Role.CONFIRM} == {0}


def test_the_figure_of_a_default_that_is_kept_comes_from_fresh_starts_too(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=8)

    def worse(assignment: Assignment) -> TrialRecord:
        seqs = 128 if assignment.candidate == made.baseline else 32
        shown = landscape(replace(assignment, candidate=assignment.candidate.of({"max-num-seqs": seqs})))
        return replace(shown, candidate=assignment.candidate)

    run = StudyRun(made, worse)
    result = run.loop.run()
    assert result.decision is Decision.KEEP_DEFAULT
    fresh = [r.trial for r in run.store.records() if r.role is Role.CONFIRM]
    assert result.winner is not None and result.winner.trials == tuple(fresh)
    assert "confirmed in 2 fresh starts" in result.sentence


def test_a_fault_of_the_machine_is_retried_and_gives_no_feedback(tmp_path: Path) -> None:
    spoilt: list[str] = []

    def run_trial(assignment: Assignment) -> TrialRecord:
        if assignment.trial == 2:
            spoilt.append(assignment.candidate.id)
        return trial_of(assignment, MACHINE) if assignment.trial == 2 else landscape(assignment)

    run = StudyRun(plan(tmp_path / "s", starts=8), run_trial)
    run.loop.run()
    again = [r for r in run.store.records() if r.candidate.id == spoilt[0] and r.role is not Role.CONFIRM]
    assert again[0].outcome is TrialOutcome.INFRASTRUCTURE
    assert len(again) == 2
    assert again[1].outcome is not TrialOutcome.INFRASTRUCTURE


def test_faults_in_a_row_end_the_run_with_the_cause_once_no_pause_has_helped(tmp_path: Path) -> None:
    run = StudyRun(plan(tmp_path / "s"), lambda a: trial_of(a, MACHINE))
    with pytest.raises(EnvironmentFaultError) as caught:
        run.loop.run()
    assert "another process has the port" in caught.value.message
    assert len(run.store.records()) == FAULTS_IN_A_ROW + len(PAUSES_S)
    assert [e.seconds for e in run.events if isinstance(e, Paused)] == list(PAUSES_S)


@pytest.mark.parametrize("outage_s", [20.0, 90.0, 500.0])
def test_an_outage_of_the_machine_delays_the_night_and_does_not_end_it(tmp_path: Path, outage_s: float) -> None:
    run = StudyRun(plan(tmp_path / "s", starts=6))
    clock = run.loop.clock

    def run_trial(assignment: Assignment) -> TrialRecord:
        began_s = clock.now_ns() / 1e9
        clock.sleep(2.0)
        return trial_of(assignment, MACHINE) if 5.0 < began_s < 5.0 + outage_s else landscape(assignment)

    run.run_trial = run_trial
    result = run.loop.run()
    assert result.complete
    assert sum(r.counts and r.role is not Role.CONFIRM for r in run.store.records()) == 6


def test_no_pause_goes_beyond_the_time_budget(tmp_path: Path) -> None:
    run = StudyRun(replace(plan(tmp_path / "s"), time_budget_s=500.0), lambda a: trial_of(a, MACHINE))
    with pytest.raises(EnvironmentFaultError, match="another process has the port"):
        run.loop.run()
    assert run.loop.clock.now_ns() <= 500e9


def test_an_interrupt_ends_a_pause(tmp_path: Path) -> None:
    run = StudyRun(plan(tmp_path / "s"), lambda a: trial_of(a, MACHINE))
    run.loop.emit = lambda event: run.stop.set() if isinstance(event, Paused) else None
    assert not run.loop.run().complete
    assert run.loop.clock.now_ns() < PAUSES_S[0] * 1e9


def test_a_candidate_that_the_machine_never_starts_is_given_up_while_others_start(tmp_path: Path) -> None:
    run = StudyRun(plan(tmp_path / "s", starts=6))
    lost: list[str] = []

    def run_trial(assignment: Assignment) -> TrialRecord:
        if assignment.trial == 2:
            lost.append(assignment.candidate.id)
        return trial_of(assignment, MACHINE) if assignment.candidate.id in lost else landscape(assignment)

    run.run_trial = run_trial
    assert run.loop.run().complete
    assert sum(r.candidate.id in lost for r in run.store.records()) == ATTEMPTS


def test_an_interrupted_run_keeps_what_finished_and_goes_on_to_its_target(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=8)
    run = StudyRun(made).cut(4)
    assert not run.store.result().complete
    before = run.store.records()
    second = StudyRun(made)
    result = second.loop.run()
    assert result.complete
    after = second.store.records()
    assert after[: len(before)] == before
    searched = [r for r in after if r.role is not Role.CONFIRM and r.outcome is not TrialOutcome.INTERRUPTED]
    assert len(searched) == 8
    assert before[4].candidate in [r.candidate for r in after[5:]]


def test_a_group_whose_memory_does_not_come_back_is_left_alone_and_the_other_goes_on(tmp_path: Path) -> None:
    def run_trial(assignment: Assignment) -> TrialRecord:
        made = landscape(assignment)
        return with_start(made, dirty="GPU memory") if assignment.trial == 4 else made

    run = StudyRun(plan(tmp_path / "s", starts=10, groups=2), run_trial)
    result = run.loop.run()
    records = run.store.records()
    assert result.complete
    after = {r.start.group for r in records if r.trial > 6}
    assert after == {"gpu0", "gpu1"} - {records[4].start.group}
    (quarantined,) = (e for e in run.events if isinstance(e, GroupQuarantined))
    assert (quarantined.group, quarantined.trial, quarantined.left) == (records[4].start.group, 4, "GPU memory")


def test_a_run_without_a_usable_group_ends_and_says_so(tmp_path: Path) -> None:
    run = StudyRun(plan(tmp_path / "s"), lambda a: with_start(landscape(a), dirty="GPU memory"))
    with pytest.raises(EnvironmentFaultError, match="no GPU group is usable"):
        run.loop.run()


def test_a_disk_that_is_nearly_full_ends_the_run_before_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StudyRun(plan(tmp_path / "s"))
    monkeypatch.setattr("tuner.study.store.LEAST_DISK_BYTES", 2**62)
    with pytest.raises(EnvironmentFaultError, match="nearly full"):
        run.loop.run()
    assert run.store.records() == ()


def test_a_time_budget_leaves_room_for_confirmation(tmp_path: Path) -> None:
    clock = ScriptedClock()

    def run_trial(assignment: Assignment) -> TrialRecord:
        clock.sleep(24)
        return landscape(assignment)

    made = replace(plan(tmp_path / "s", starts=1000), time_budget_s=480.0)
    run = StudyRun(made, run_trial)
    run.loop.clock = clock
    result = run.loop.run()
    assert result.elapsed_s <= 480
    assert result.winner is not None and result.winner.fresh


def test_what_refused_starts_showed_is_said_once_and_stands_in_the_result(tmp_path: Path) -> None:
    def run_trial(assignment: Assignment) -> TrialRecord:
        made = landscape(assignment)
        cause, bound = made.start.cause, Bound("gpu-memory-utilization", "<=", 0.93)
        return with_start(made, cause=cause and replace(cause, kind="memory-wanted", bounds=(bound,)))

    run = StudyRun(plan(tmp_path / "s", starts=12, confirm_starts=0), run_trial)
    result = run.loop.run()
    said = [str(e.rule) for e in run.events if isinstance(e, RuleApplied)]
    saved = [rule for rule in result.learnt if rule.saved]
    assert saved
    assert sorted(said) == sorted(str(rule) for rule in saved)
    refused = [r.trial for r in run.store.records() if r.outcome is TrialOutcome.REFUSED]
    assert [rule.trial for rule in result.learnt] == refused[:1]
    assert len(refused) == 1
    assert run.store.result().learnt == result.learnt
