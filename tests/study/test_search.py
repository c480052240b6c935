from __future__ import annotations

import os
from pathlib import Path

import optuna

from tests.study.builders import REFUSAL, level, plan, record
from tuner.candidate import Candidate
from tuner.space.defaults import vllm_defaults
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.search import Proposal, Search
from tuner.study.seeds import seeds

DEFAULTS = vllm_defaults("0.32.0", ())


def search(folder: Path) -> Search:
    made = plan(folder)
    return Search(made, seeds(made, DEFAULTS), DEFAULTS)


def answered(proposal: Proposal, trial: int, qps: float) -> TrialRecord:
    return record(trial, proposal.candidate, (level(qps),), role=proposal.role, search_trial=proposal.number)


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
    told = study.trials[proposal.number]
    assert told.state is optuna.trial.TrialState.COMPLETE
    assert told.constraints["start"] > 0
    assert told.user_attrs["imputed"] is True
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


def test_a_record_written_before_the_kill_is_told_on_the_way_back(tmp_path: Path) -> None:
    first = search(tmp_path / "s")
    saved = answered(first.ask(), 0, 12.5)
    second = search(tmp_path / "s")
    second.restore([saved])
    study = optuna.load_study(study_name="s", storage=plan(tmp_path / "s").storage)
    assert study.trials[0].value == 12.5


def test_the_servers_do_not_inherit_the_samplers_thread_limit(tmp_path: Path) -> None:
    search(tmp_path / "s").ask()
    assert "OMP_NUM_THREADS" not in os.environ
