"""Failures that no pattern knows: an experiment decides whose they are, and no wording ends a run by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from tests.study.builders import MACHINE, REFUSAL, landscape, layouts_plan, plan, trial_of, with_start
from tests.study.study_run import StudyRun
from tuner.bench.task import RunLadder
from tuner.candidate import Candidate
from tuner.errors import EnvironmentFaultError
from tuner.layout import Layout
from tuner.study.assignment import Assignment
from tuner.study.events import Explained, Unexplained
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.unread import of_every_start, questions, settled
from tuner.vllm.cause import Cause, Fault

_PIDS = itertools.count(4000)


def unread(words: str = "RuntimeError: cutlass_moe: no tactic for tile 64x128") -> Cause:
    """Make a cause that no pattern knows, with another process id and time each."""
    pid = next(_PIDS)
    line = f"(EngineCore pid={pid}) ERROR 11-29 02:{pid % 60:02d}:01 [core.py:1093] {words}"
    return Cause("engine-failed", Fault.UNKNOWN, line, "The engine did not start.", "see the end of the log")


def striking(
    run: Callable[[], StudyRun], strike: Callable[[Assignment, list[TrialRecord]], Cause | None]
) -> tuple[StudyRun, list[Assignment]]:
    """Let `strike` choose the refusal of each start, from its assignment and the records so far."""
    made, seen = run(), list[Assignment]()

    def run_trial(assignment: Assignment) -> TrialRecord:
        seen.append(assignment)
        cause = strike(assignment, list(made.store.records()))
        return landscape(assignment) if cause is None else trial_of(assignment, cause)

    made.run_trial = run_trial
    return made, seen


@pytest.mark.parametrize(
    "words",
    ["RuntimeError: cutlass_moe: no tactic for tile 64x128", "ptxas fatal   : Value 'sm_131' is not defined", ""],
)
def test_an_unread_refusal_is_the_candidates_if_what_ran_before_starts(tmp_path: Path, words: str) -> None:
    run, seen = striking(
        lambda: StudyRun(plan(tmp_path / "s", starts=8)),
        lambda a, _: unread(words) if a.trial == 2 else None,
    )
    result = run.loop.run()
    assert result.complete
    experiment = seen[3]
    assert (experiment.role, experiment.candidate) == (Role.EXPERIMENT, seen[1].candidate)
    refused = settled(run.loop.plan, run.store.records())[2]
    assert refused.outcome is TrialOutcome.REFUSED
    assert all(rule.trial != 2 for rule in result.learnt), "a refusal without words teaches no bound"
    study = optuna.load_study(study_name="s", storage=run.loop.plan.storage)
    assert refused.search_trial is not None
    told = study.trials[refused.search_trial]
    assert told.constraints["start"] > 0 and told.user_attrs["imputed"]
    assert sum(a.candidate == refused.candidate for a in seen) == 1
    assert sum(a.search_trial is not None for a in seen) == 8
    said = [e for e in run.events if isinstance(e, (Unexplained, Explained))]
    assert [type(e) for e in said] == [Unexplained, Explained]
    assert isinstance(said[0], Unexplained) and said[0].known is not None and said[0].known.trial == 1


def test_a_failure_that_the_experiment_repeats_ends_the_run_and_quotes_vllm(tmp_path: Path) -> None:
    run, seen = striking(
        lambda: StudyRun(plan(tmp_path / "s")),
        lambda a, _: unread("OSError: the array is gone") if a.trial > 2 else None,
    )
    with pytest.raises(EnvironmentFaultError, match="the array is gone") as caught:
        run.loop.run()
    assert caught.value.exit_code == 4
    assert [a.role for a in seen[3:]] == [seen[3].role, Role.EXPERIMENT]


def test_a_machine_that_recovers_lets_the_failed_candidate_be_decided_anew(tmp_path: Path) -> None:
    """The experiment fails for a reason that is known to be the machine's: it is made again."""
    run, seen = striking(
        lambda: StudyRun(plan(tmp_path / "s", starts=6)),
        lambda a, _: unread() if a.trial == 2 else MACHINE if a.trial == 3 else None,
    )
    assert run.loop.run().complete
    assert [a.role for a in seen[3:5]] == [Role.EXPERIMENT] * 2


@pytest.mark.parametrize("cut_at", [3, 4])
def test_a_study_is_resumed_in_the_middle_of_an_experiment(tmp_path: Path, cut_at: int) -> None:
    made = plan(tmp_path / "s", starts=6)
    run, _ = striking(lambda: StudyRun(made), lambda a, _: unread() if a.trial == 2 else None)
    inner = run.run_trial

    def stopped(assignment: Assignment) -> TrialRecord:
        record = inner(assignment)
        if assignment.trial == cut_at - 1:
            run.stop.set()  # after the refusal, or while the experiment runs
        return replace(record, outcome=TrialOutcome.INTERRUPTED) if assignment.trial == 3 else record

    run.run_trial = stopped
    assert not run.loop.run().complete
    again, seen = striking(lambda: StudyRun(made), lambda a, _: None)
    result = again.loop.run()
    records = settled(made, again.store.records())
    assert result.complete
    assert records[2].outcome is TrialOutcome.REFUSED
    if cut_at == 3:
        assert seen[0].role is Role.EXPERIMENT
    assert all(a.candidate != records[2].candidate for a in seen)


@pytest.mark.parametrize(
    ("cause", "starts"),
    [
        (unread("ValueError: the config has no text part"), 3),
        (replace(REFUSAL, kind="unknown-flag", line="vllm: error: unrecognized arguments: oops", bounds=()), 3),
        (replace(REFUSAL, fault=Fault.STUDY, line="trust_remote_code is not set"), 1),
    ],
)
def test_what_keeps_default_and_first_candidates_from_starting_is_the_studys(
    tmp_path: Path, cause: Cause, starts: int
) -> None:
    run, seen = striking(lambda: StudyRun(plan(tmp_path / "s", starts=60)), lambda a, _: cause)
    with pytest.raises(EnvironmentFaultError) as caught:
        run.loop.run()
    assert len(seen) == starts
    assert cause.line.split("] ")[-1] in caught.value.message
    assert len({a.candidate for a in seen}) == starts, "no start is spent on a refusal that is known"


def test_a_default_that_is_refused_does_not_end_a_study_whose_candidates_start(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=8)
    run, seen = striking(lambda: StudyRun(made), lambda a, _: unread() if a.candidate == made.baseline else None)
    result = run.loop.run()
    assert result.complete and result.winner is not None
    assert sum(a.candidate == made.baseline for a in seen) == 1
    assert all(a.role is not Role.EXPERIMENT for a in seen), "the next candidate was the experiment"


def test_a_cause_of_the_study_is_put_to_the_test_once_something_runs(tmp_path: Path) -> None:
    """The table cannot be right: what all starts share has started."""
    of_study = replace(unread("fp8 needs compute capability 8.9"), fault=Fault.STUDY)
    run, seen = striking(
        lambda: StudyRun(plan(tmp_path / "s", starts=6)), lambda a, _: of_study if a.trial == 2 else None
    )
    assert run.loop.run().complete
    assert seen[3].role is Role.EXPERIMENT


def test_a_cause_of_the_study_ends_no_run_before_the_default_is_tried(tmp_path: Path) -> None:
    of_study = replace(unread("fp8 needs compute capability 8.9"), fault=Fault.STUDY)
    run, _ = striking(lambda: StudyRun(plan(tmp_path / "s", starts=6)), lambda a, _: of_study)
    with pytest.raises(EnvironmentFaultError):
        run.loop.run()
    default = run.store.records()[0]
    other = replace(default, candidate=Candidate.of({"max-num-seqs": 9}))
    assert [of_every_start(run.loop.plan, [r]) for r in (other, default)] == [None, of_study]


def test_different_refusals_of_the_first_candidates_do_not_end_the_run(tmp_path: Path) -> None:
    """As where each asks for another amount of memory: a later one may fit."""
    lines = iter(["needs 8.1 GiB", "needs 7.2 GiB", "needs 6.3 GiB", "needs 5.4 GiB"])
    run, _ = striking(
        lambda: StudyRun(plan(tmp_path / "s", starts=8)),
        lambda a, _: replace(REFUSAL, line=next(lines)) if a.trial < 4 else None,
    )
    assert run.loop.run().complete


def test_a_death_under_load_is_repeated_before_it_counts(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=6)
    run, seen = striking(lambda: StudyRun(made), lambda a, _: None)
    inner = run.run_trial

    def dying(assignment: Assignment) -> TrialRecord:
        record = inner(assignment)
        if assignment.candidate != seen[2].candidate if len(seen) > 2 else True:
            return record
        return replace(with_start(record, cause=unread()), outcome=TrialOutcome.INFRASTRUCTURE, levels=(), best=None)

    run.run_trial = dying
    assert run.loop.run().complete
    roles = [(a.role, a.candidate == seen[2].candidate) for a in seen]
    mine = [i for i, (_, is_mine) in enumerate(roles) if is_mine]
    assert len(mine) == 2
    assert seen[mine[1] + 1].role is Role.EXPERIMENT
    outcomes = [r.outcome for r in settled(made, run.store.records()) if r.candidate == seen[2].candidate]
    assert outcomes == [TrialOutcome.INFRASTRUCTURE, TrialOutcome.DIED]


def test_a_start_on_another_gpu_decides_nothing(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", groups=2)

    def start(trial: int, group: int, seqs: int, cause: Cause | None) -> TrialRecord:
        assignment = Assignment(
            trial, Role.SEARCH, Candidate.of({"max-num-seqs": seqs}), (made.groups[group],),
            RunLadder((8,), 1.0), 0.0, trial,
        )  # fmt: skip
        return landscape(assignment) if cause is None else trial_of(assignment, cause)

    refused = start(1, 0, 16, unread())
    elsewhere, here = start(2, 1, 32, None), start(3, 0, 64, None)
    assert [r.trial for r in questions(settled(made, (refused, elsewhere)))] == [1]
    assert questions(settled(made, (refused, elsewhere, here))) == []


@pytest.mark.parametrize("kind", ["model-unsupported", "too-few-gpus", "experts-not-divisible"])
def test_what_may_be_one_layouts_fault_does_not_end_a_study_whose_other_layout_starts(
    tmp_path: Path, kind: str
) -> None:
    of_layout = replace(unread("AssertionError: heads"), kind=kind, fault=Fault.STUDY)
    made = layouts_plan(tmp_path / "s", [Layout(1), Layout(2)], gpus=2, starts=12)
    run, seen = striking(
        lambda: StudyRun(made), lambda a, _: of_layout if made.layout_of(a.candidate) == Layout(2) else None
    )
    result = run.loop.run()
    assert any(made.layout_of(a.candidate) == Layout(2) for a in seen)
    assert result.complete and result.winner is not None
