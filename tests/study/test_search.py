from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution

from tests.study.builders import REFUSAL, level, plan, record
from tuner.candidate import Candidate
from tuner.server.diagnosis import Bound, Cause
from tuner.study.learnt import LearntRule
from tuner.study.optuna_storage import reopened
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.search import Proposal, Search
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults

DEFAULTS = vllm_defaults("0.32.0", ())


def search(folder: Path) -> Search:
    made = plan(folder)
    setting = StudySetting.of(made, DEFAULTS)
    return Search(setting, seeds(setting))


def answered(proposal: Proposal, trial: int, qps: float) -> TrialRecord:
    return record(trial, proposal.candidate, (level(qps),), role=proposal.role, search_trial=proposal.number)


def refused(proposal: Proposal, trial: int, cause: Cause) -> TrialRecord:
    made = record(trial, proposal.candidate, role=proposal.role, search_trial=proposal.number, cause=cause)
    return replace(made, outcome=TrialOutcome.REFUSED)


def test_the_default_configuration_comes_first_without_any_flag(tmp_path: Path) -> None:
    first = search(tmp_path / "s").ask()
    assert first.role is Role.DEFAULT
    assert first.candidate == Candidate()


def test_no_candidate_is_started_twice(tmp_path: Path) -> None:
    asked = search(tmp_path / "s")
    seen = []
    for i in range(25):
        proposal = asked.ask()
        seen.append(proposal.candidate.id)
        asked.tell(answered(proposal, i, 10.0 + i % 3))
    assert len(set(seen)) == len(seen)


def test_a_refused_start_is_complete_and_infeasible_for_optuna_never_failed(tmp_path: Path) -> None:
    asked = search(tmp_path / "s")
    asked.tell(answered(asked.ask(), 0, 10.0))
    proposal = asked.ask()
    asked.tell(record(1, proposal.candidate, outcome=TrialOutcome.REFUSED, cause=REFUSAL, search_trial=proposal.number))
    study = optuna.load_study(study_name="s", storage=plan(tmp_path / "s").storage)
    refused = study.trials[proposal.number]
    assert refused.state is optuna.trial.TrialState.COMPLETE
    assert refused.constraints["start"] > 0
    assert refused.user_attrs["imputed"] is True
    assert study.best_trial.number == 0


def test_parameters_have_their_vllm_names_for_the_dashboard(tmp_path: Path) -> None:
    asked = search(tmp_path / "s")
    asked.tell(answered(asked.ask(), 0, 10.0))
    study = optuna.load_study(study_name="s", storage=plan(tmp_path / "s").storage)
    assert set(study.trials[0].params) == {"max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization"}


def test_a_killed_search_goes_on_with_the_interrupted_candidate(tmp_path: Path) -> None:
    first = search(tmp_path / "s")
    finished = answered(first.ask(), 0, 10.0)
    first.tell(finished)
    interrupted = first.ask()
    second = search(tmp_path / "s")
    second.restore([finished])
    queue = [second.ask() for _ in range(4)]
    assert interrupted.candidate in [p.candidate for p in queue]
    assert finished.candidate not in [p.candidate for p in queue]


def test_a_trial_that_was_interrupted_by_a_fault_of_another_group_is_queued_again(tmp_path: Path) -> None:
    first = search(tmp_path / "s")
    finished = answered(first.ask(), 0, 10.0)
    first.tell(finished)
    interrupted = first.ask()
    record = replace(answered(interrupted, 1, 0.0), outcome=TrialOutcome.INTERRUPTED, levels=(), best=None)
    second = search(tmp_path / "s")
    second.restore([finished, record])
    assert interrupted.candidate in [second.ask().candidate for _ in range(4)]


def test_a_record_written_before_the_kill_is_reported_on_resume(tmp_path: Path) -> None:
    first = search(tmp_path / "s")
    saved = answered(first.ask(), 0, 12.5)
    second = search(tmp_path / "s")
    second.restore([saved])
    study = optuna.load_study(study_name="s", storage=plan(tmp_path / "s").storage)
    assert study.trials[0].value == 12.5


def test_the_installed_optuna_reopens_a_running_trial_by_its_private_constructor(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    asked = optuna.create_study(study_name="s", storage=storage, direction="maximize").ask(
        {"x": FloatDistribution(0, 1)}
    )
    study = optuna.load_study(study_name="s", storage=storage)
    (frozen,) = study.get_trials(deepcopy=False)
    trial = reopened(study, frozen)
    assert (trial.number, trial.params) == (asked.number, asked.params)
    trial.set_constraint("start", 1.0)
    study.tell(trial, 2.0)
    (finished,) = optuna.load_study(study_name="s", storage=storage).trials
    assert (finished.value, finished.constraints) == (2.0, {"start": 1.0})


SCARCE = replace(REFUSAL, kind="memory-wanted", bounds=(Bound("max-num-batched-tokens", "<=", 2048),))
"""Made up: rules out two thirds of the space and the seed with a large budget, and not the default."""


def after_refusals(folder: Path) -> tuple[Search, list[TrialRecord]]:
    """A search whose first seed was refused for SCARCE."""
    asked = search(folder)
    records = [answered(asked.ask(), 0, 10.0)]
    asked.tell(records[0])
    seed = asked.ask()
    records.append(refused(seed, 1, SCARCE))
    asked.tell(records[1])
    return asked, records


def until_a_rule_applies(asked: Search) -> tuple[Proposal, list[TrialRecord]]:
    """Return the first proposal for which a rule was used, and the records before it."""
    records: list[TrialRecord] = []
    while not (proposal := asked.ask()).newly_applied:
        records.append(answered(proposal, 2 + len(records), 10.0))
        asked.tell(records[-1])
    return proposal, records


def ruled_out(folder: Path) -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name="s", storage=plan(folder).storage)
    return [t for t in study.trials if "ruled_out" in t.user_attrs]


def test_what_a_rule_forbids_is_not_started_seeds_included(tmp_path: Path) -> None:
    asked, _ = after_refusals(tmp_path / "s")
    for trial in range(2, 8):
        proposal = asked.ask()
        assert float(proposal.candidate.as_dict()["max-num-batched-tokens"]) <= 2048
        asked.tell(answered(proposal, trial, 10.0))
    (rule,) = asked.learnt
    assert (rule.trial, rule.cause) == (1, "memory-wanted")
    assert rule.saved == len(ruled_out(tmp_path / "s")) > 1
    assert {t.user_attrs["role"] for t in ruled_out(tmp_path / "s")} >= {Role.SEED}


def test_a_seed_beyond_a_bound_of_the_message_is_started_at_the_bound(tmp_path: Path) -> None:
    asked = search(tmp_path)
    proposals: list[Proposal] = []
    for trial in range(9):
        proposals.append(asked.ask())
        tokens = float(proposals[-1].candidate.as_dict().get("max-num-batched-tokens", 0))
        asked.tell(refused(proposals[-1], trial, SCARCE) if tokens > 2048 else answered(proposals[-1], trial, 10.0))
    started = [p.candidate.as_dict() for p in proposals]
    seeds_of = [p.candidate.as_dict() for p in proposals if p.role is Role.SEED]
    refused_seed = next(c for c in seeds_of if float(c["max-num-batched-tokens"]) > 2048)
    assert {**refused_seed, "max-num-batched-tokens": 2048} in started


def test_an_avoided_start_is_reported_as_a_violated_constraint_and_marked_as_not_measured(tmp_path: Path) -> None:
    asked, _ = after_refusals(tmp_path / "s")
    proposal, _ = until_a_rule_applies(asked)
    assert [rule.trial for rule in proposal.newly_applied] == [1]
    avoided = ruled_out(tmp_path / "s")
    assert avoided
    for trial in avoided:
        assert trial.state is optuna.trial.TrialState.COMPLETE
        assert trial.constraints["start"] > 0
        assert trial.user_attrs["imputed"] is True
        assert "trial 0001" in trial.user_attrs["ruled_out"]
        assert "trial" not in trial.user_attrs  # no start, no record
    assert optuna.load_study(study_name="s", storage=plan(tmp_path / "s").storage).best_trial.number == 0


def test_a_rule_is_announced_once(tmp_path: Path) -> None:
    asked, _ = after_refusals(tmp_path / "s")
    announced: list[LearntRule] = []
    for trial in range(2, 8):
        proposal = asked.ask()
        announced += proposal.newly_applied
        asked.tell(answered(proposal, trial, 10.0))
    assert len(announced) == 1


def test_the_default_is_started_whatever_the_rules_say(tmp_path: Path) -> None:
    asked = search(tmp_path / "s")
    interrupted = asked.ask()
    asked.tell(refused(asked.ask(), 1, replace(SCARCE, bounds=(Bound("gpu-memory-utilization", "<=", 0.5),))))
    asked.requeue(interrupted.number)
    proposal = asked.ask()
    assert proposal.role is Role.DEFAULT
    assert asked.learnt[0].rules_out({"gpu-memory-utilization": 0.92})


def test_rules_and_what_they_avoided_survive_a_restart(tmp_path: Path) -> None:
    first, records = after_refusals(tmp_path / "s")
    proposal, more = until_a_rule_applies(first)
    records += [*more, answered(proposal, 2 + len(more), 10.0)]
    first.tell(records[-1])
    second = search(tmp_path / "s")
    second.restore(records)
    assert second.learnt == first.learnt
    assert second.learnt[0].saved > 0
    assert second.ask().newly_applied == ()
    avoided = {json.dumps(t.user_attrs["flags"]) for t in ruled_out(tmp_path / "s")}
    assert len(avoided) == len(ruled_out(tmp_path / "s"))


def test_rules_against_all_that_is_left_are_put_to_the_test(tmp_path: Path) -> None:
    asked = search(tmp_path / "s")
    asked.tell(refused(asked.ask(), 0, replace(SCARCE, bounds=(Bound("gpu-memory-utilization", "<=", 0.5),))))
    proposal = asked.ask()
    assert asked.learnt[0].saved > 0
    asked.tell(answered(proposal, 1, 10.0))
    assert asked.learnt[0].withdrawn_by == 1
    assert asked.ask().newly_applied == ()
