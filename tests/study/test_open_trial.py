"""Open-loop trials against the stand-in as a process: search, race, screen and claim, with every file they leave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pyarrow.parquet as pq
import pytest

from tests.faults.study_run import make_plan
from tuner import jsonfile
from tuner.bench.capacity_search import Ended, Incumbent, SearchSettings
from tuner.bench.measured import FellBehind
from tuner.bench.task import ClaimRate, SearchCapacity
from tuner.candidate import Candidate
from tuner.clock import RealClock
from tuner.measurement import LoadKind
from tuner.study.assignment import Assignment
from tuner.study.events import Event, LevelMeasured
from tuner.study.local_servers import local_trials
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.store import Store
from tuner.study.trial import TrialRunner
from tuner.telemetry.gpu import gpu_adapter

RULES = SearchSettings(
    saturation_s=1.0, probe_s=1.0, longest_probe_s=1.5, most_probes=2, claim_s=1.0, claim_requests=1.0, claim_traces=2
)
"""Too short to know a capacity: what is told, and where it is written, is what these tests are about."""

CANDIDATE = Candidate.of({"max-num-seqs": 4})


@dataclass
class Machine:
    plan: StudyPlan
    store: Store
    runner: TrialRunner
    events: list[Event] = field(default_factory=list)

    def run(self, trial: int, role: Role = Role.SEARCH, **more: object) -> TrialRecord:
        group = self.plan.groups[0]
        assignment = Assignment(trial, role, CANDIDATE, (group,), SearchCapacity(RULES), 0.2, trial)
        return self.runner.run(replace(assignment, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("open") / "s"
    plan = make_plan(folder, tiny_model, starts=1, confirm_starts=0)
    env = tuple((k, "0.1" if k == "TUNER_SIM_STARTUP_S" else v) for k, v in plan.base.env)
    plan = replace(plan, base=replace(plan.base, env=env), load=OpenSearch(0.2, RULES))
    store, events = Store(folder), list[Event]()
    store.create()
    runner = local_trials(plan, store, RealClock(), gpu_adapter(), events.append, threading.Event())
    yield Machine(plan, store, runner, events)


@pytest.fixture(scope="module")
def searched(machine: Machine) -> TrialRecord:
    return machine.run(0, Role.DEFAULT)


def test_a_search_starts_with_the_closed_loop_and_ends_with_a_rate_that_passed(searched: TrialRecord) -> None:
    kinds = [level.measurement.load.kind for level in searched.levels]
    assert kinds[0] is LoadKind.CLOSED and set(kinds[1:]) == {LoadKind.OPEN}
    assert searched.levels[0].measurement.load.level == 5, "a few more clients than the four sequences"
    assert searched.outcome is TrialOutcome.FEASIBLE and searched.start.cause is None
    assert searched.capacity is not None and searched.qps == searched.capacity.rate
    assert searched.best_level is not None and searched.best_level.load.level == searched.capacity.passed
    assert searched.saturation == searched.capacity.saturation > 0


def test_every_level_is_an_event_a_table_and_part_of_a_record_that_can_be_read_back(
    machine: Machine, searched: TrialRecord
) -> None:
    told = [e.measurement for e in machine.events if isinstance(e, LevelMeasured) and e.trial == 0]
    assert told == [level.measurement for level in searched.levels]
    folder = machine.store.trial_folder(0)
    rows = pq.read_table(folder / "requests.parquet", columns=["kind", "level"]).to_pylist()
    assert list(dict.fromkeys((r["kind"], r["level"]) for r in rows)) == [
        (str(m.load.kind), m.load.level) for m in told
    ]
    assert set(pq.read_table(folder / "telemetry.parquet")["level"].to_pylist()) <= {m.load.level for m in told}
    assert jsonfile.loads(jsonfile.dumps(searched), TrialRecord) == searched


def test_a_hopeless_candidate_ends_after_its_closed_loop(machine: Machine, searched: TrialRecord) -> None:
    full = searched.saturation or 0.0
    record = machine.run(1, task=SearchCapacity(RULES, incumbent=Incumbent(10 * full, 10 * full)))
    assert record.outcome is TrialOutcome.BEHIND and record.qps is None
    assert record.capacity is not None and record.capacity.ended is Ended.HOPELESS
    assert [level.measurement.load.kind for level in record.levels] == [LoadKind.CLOSED]
    assert isinstance(record.notes[0], FellBehind)


def test_a_confirming_start_claims_without_a_closed_loop(machine: Machine, searched: TrialRecord) -> None:
    easy = 0.3 * (searched.saturation or 0.0)
    record = machine.run(2, Role.CONFIRM, search_trial=None, task=ClaimRate(easy, RULES), traffic=1)
    assert record.outcome is TrialOutcome.FEASIBLE
    assert record.claim is not None and record.qps == record.claim.rate
    assert record.claim.rate is not None and record.claim.rate <= easy
    assert {level.measurement.load.kind for level in record.levels} == {LoadKind.OPEN}


def test_stopped_in_the_middle_the_trial_is_interrupted(machine: Machine) -> None:
    stop = threading.Event()

    def emit(event: Event) -> None:
        if isinstance(event, LevelMeasured):
            stop.set()

    runner = local_trials(machine.plan, machine.store, RealClock(), gpu_adapter(), emit, stop)
    record = replace(machine, runner=runner).run(4)
    assert record.outcome is TrialOutcome.INTERRUPTED
    assert len(record.levels) == 1 and record.qps is None


@pytest.mark.parametrize(
    ("role", "outcome"), [(Role.SEARCH, TrialOutcome.REFUSED), (Role.CONFIRM, TrialOutcome.INFRASTRUCTURE)]
)
def test_a_refusal_is_the_candidates_unless_it_has_started_before(
    machine: Machine, role: Role, outcome: TrialOutcome
) -> None:
    tiny = Candidate.of({"max-num-seqs": 4, "kv-cache-memory-bytes": 2**20})
    record = machine.run(5 if role is Role.SEARCH else 6, role, candidate=tiny, task=ClaimRate(1.0, RULES))
    assert record.outcome is outcome
    assert record.start.cause is not None and record.start.cause.kind == "kv-too-small"
