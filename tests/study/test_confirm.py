from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.study.builders import level, plan, record
from tests.study.open_server import open_level, open_plan
from tuner.bench.capacity_search import Capacity, Claim, Ended
from tuner.bench.level import Level
from tuner.candidate import Candidate
from tuner.measurement import Distribution
from tuner.study import confirm
from tuner.study.gain import gain
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, Figures, Lack

DEFAULT, OTHER = Candidate(), Candidate.of({"max-num-seqs": 64})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return plan(tmp_path_factory.mktemp("plan") / "s")


def of(candidate: Candidate, low: float, high: float) -> Figures:
    return Figures(candidate, (1, 2), "8 concurrent", (low + high) / 2, low, high, 300.0, 0, fresh=True)


@pytest.mark.parametrize(
    ("winner", "default", "decision"),
    [
        (of(OTHER, 110, 120), of(DEFAULT, 90, 100), Decision.WINNER),
        (of(OTHER, 99, 120), of(DEFAULT, 90, 100), Decision.KEEP_DEFAULT),
        (of(DEFAULT, 90, 100), of(DEFAULT, 90, 100), Decision.KEEP_DEFAULT),
        (of(OTHER, 10, 20), None, Decision.WINNER),
        (None, of(DEFAULT, 10, 20), Decision.KEEP_DEFAULT),
        (None, None, Decision.NOTHING_FEASIBLE),
    ],
)
def test_the_default_is_given_up_only_for_what_is_faster_in_every_start(
    winner: Figures | None, default: Figures | None, decision: Decision
) -> None:
    assert confirm.decide(winner, default) is decision


def test_only_fresh_starts_are_quoted_once_there_are_any(made: StudyPlan) -> None:
    found = record(3, OTHER, (level(130.0),))
    fresh = [record(n, OTHER, (level(qps),), role=Role.CONFIRM) for n, qps in ((8, 118.0), (9, 122.0))]
    figures = confirm.figures(made, [found, *fresh], OTHER)
    assert figures is not None
    assert figures.fresh
    assert figures.trials == (8, 9)
    assert (figures.qps_low, figures.qps, figures.qps_high) == (118.0, 120.0, 122.0)


def test_a_fresh_start_that_breaks_a_limit_refutes_the_candidate(made: StudyPlan) -> None:
    found = record(3, OTHER, (level(130.0),))
    refuted = record(8, OTHER, (level(120.0, preemptions=2),), role=Role.CONFIRM)
    assert confirm.figures(made, [found, refuted], OTHER) is None
    assert confirm.finalists(made, [found, refuted]) == []


def test_the_default_is_shown_beside_the_winner_even_when_it_broke_the_limits(made: StudyPlan) -> None:
    broken = record(0, DEFAULT, (level(50.0, p99_ms=900),), role=Role.DEFAULT)
    assert confirm.figures(made, [broken], DEFAULT) is None
    shown = confirm.seen([broken], DEFAULT)
    assert shown is not None and shown.qps == 50.0


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (TrialOutcome.INFEASIBLE, Lack.BREAKS_LIMITS),
        (TrialOutcome.REFUSED, Lack.DOES_NOT_START),
        (TrialOutcome.DIED, Lack.DIES_UNDER_LOAD),
        (TrialOutcome.INVALID, Lack.NOT_MEASURED),
        (TrialOutcome.UNDECIDED, Lack.NOT_MEASURED),
        (TrialOutcome.INFRASTRUCTURE, Lack.NOT_MEASURED),
    ],
)
def test_a_default_without_figures_says_what_its_start_came_to(outcome: TrialOutcome, why: Lack) -> None:
    assert confirm.lack([record(0, DEFAULT, role=Role.DEFAULT, outcome=outcome)], DEFAULT) is why


def test_a_candidate_with_figures_or_without_a_start_lacks_nothing() -> None:
    faulty = record(0, DEFAULT, role=Role.DEFAULT, outcome=TrialOutcome.INFRASTRUCTURE)
    measured = record(1, DEFAULT, (level(50.0),), role=Role.DEFAULT)
    assert confirm.lack([faulty, measured], DEFAULT) is None
    assert confirm.lack([faulty, measured], OTHER) is None


def test_a_fresh_start_that_fails_says_why_though_others_were_well(made: StudyPlan) -> None:
    well = [record(n, OTHER, (level(100.0),), role=role) for n, role in ((3, Role.SEARCH), (9, Role.CONFIRM))]
    broke = record(8, OTHER, (level(120.0, preemptions=2),), role=Role.CONFIRM)
    assert confirm.figures(made, [*well, broke], OTHER) is None
    assert confirm.lack([*well, broke], OTHER) is Lack.BREAKS_LIMITS


def test_preemptions_that_were_not_observed_stay_unobserved(made: StudyPlan) -> None:
    runs = [record(0, OTHER, (level(10.0),)), record(1, OTHER, (level(10.0),))]
    object.__setattr__(runs[1].levels[0].measurement.server, "preemptions", None)
    figures = confirm.figures(made, runs, OTHER)
    assert figures is not None and figures.preemptions is None


def test_an_invalid_fresh_start_neither_confirms_nor_refutes(made: StudyPlan) -> None:
    found = record(3, OTHER, (level(130.0),))
    faulty = record(8, OTHER, (level(20.0, p99_ms=900),), role=Role.CONFIRM, outcome=TrialOutcome.INVALID)
    assert confirm.finalists(made, [found, faulty]) == [found]
    assert confirm.fresh_runs(made, [found, faulty], OTHER) == []


def claimed(trial: int, rate: float | None, p99_ms: float = 300.0) -> TrialRecord:
    shown = record(trial, OTHER, (open_level(rate or 9.0, p99_ms),), role=Role.CONFIRM)
    outcome = TrialOutcome.INFEASIBLE if rate is None else TrialOutcome.FEASIBLE
    return replace(shown, best=None if rate is None else 0, outcome=outcome, claim=Claim(rate, (), 360.0))


def test_the_promise_is_the_lowest_rate_that_a_fresh_start_held(made: StudyPlan) -> None:
    figures = confirm.figures(made, [claimed(8, 9.5, p99_ms=420), claimed(9, 9.2)], OTHER)
    assert figures is not None
    assert (figures.qps, figures.qps_low, figures.qps_high, figures.p99_ttft_ms) == (9.2, 9.2, 9.5, 420)


def test_a_claim_that_held_no_rate_refutes_the_candidate(made: StudyPlan) -> None:
    assert confirm.figures(made, [claimed(8, 9.5), claimed(9, None)], OTHER) is None


def test_a_default_that_kept_no_rate_is_shown_at_the_lowest_one_and_not_in_closed_loop() -> None:
    levels = (level(13.0, p99_ms=4000), open_level(10.0, p99_ms=2000), open_level(5.0, p99_ms=800))
    shown = confirm.seen([record(0, DEFAULT, levels, role=Role.DEFAULT)], DEFAULT)
    assert shown is not None and (shown.qps, shown.level) == (5.0, "5.00 requests/s")


def block(trial: int, candidate: Candidate, rate: float, *, claim: float | None = None) -> TrialRecord:
    """Make a confirmation run whose block found `rate`, with a claim of `claim`, or without one."""
    made = record(trial, candidate, (open_level(rate),), role=Role.CONFIRM)
    found = Capacity(Ended.FOUND, rate, rate, 1.1 * rate, 0.0, 60.0)
    return replace(made, capacity=found, claim=None if claim is None else Claim(claim, (), 360.0))


def night(
    made: StudyPlan, searched: tuple[float, float], pairs: Sequence[tuple[float, float]], *, claims: int = 2
) -> list[TrialRecord]:
    """Records of a night: estimates of default and winner, then pairs of blocks. The first `claims` of them claim 5 %
    less."""
    found = Capacity(Ended.FOUND, None, None, None, 50.0, 60.0)
    records = [
        replace(record(n, candidate, (open_level(rate),), role=role), capacity=replace(found, rate=rate))
        for n, (candidate, rate, role) in enumerate(
            ((DEFAULT, searched[0], Role.DEFAULT), (OTHER, searched[1], Role.SEARCH))
        )
    ]
    for k, rates in enumerate(pairs):
        for candidate, rate in zip((DEFAULT, OTHER), rates, strict=True):
            records.append(block(len(records), candidate, rate, claim=0.95 * rate if k < claims else None))
    return records


@pytest.fixture(scope="module")
def open_made(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return open_plan(tmp_path_factory.mktemp("open") / "s")


def last_word(made: StudyPlan, records: Sequence[TrialRecord]) -> confirm.Answer:
    return confirm.answer(made, records, complete=True)


def test_a_gain_has_the_interval_of_its_pairs_and_decides_by_it(open_made: StudyPlan) -> None:
    clear = last_word(open_made, night(open_made, (12.0, 15.0), [(12.0, 15.1), (12.1, 15.0)]))
    assert clear.decision is Decision.WINNER
    assert clear.gain is not None and 0.15 < clear.gain.low < 0.25 < clear.gain.high < 0.36
    small = last_word(open_made, night(open_made, (12.4, 12.7), [(12.4, 12.7), (12.5, 12.7)]))
    assert small.decision is Decision.KEEP_DEFAULT
    assert small.gain is not None and small.gain.low < 0 < small.gain.middle < 0.03


def test_a_default_that_a_neighbour_slowed_is_measured_again_and_gives_no_false_gain(open_made: StudyPlan) -> None:
    disturbed = night(open_made, (12.4, 12.7), [(9.4, 12.7), (9.5, 12.6)])
    assert last_word(open_made, disturbed).decision is Decision.NOT_CONFIRMED
    due = confirm.next_to_confirm(open_made, disturbed)
    assert due is not None and not due.claims
    pairs = [(9.4, 12.7), (9.5, 12.6), (12.3, 12.6), (12.4, 12.6), (12.3, 12.7)]
    again = night(open_made, (12.4, 12.7), pairs, claims=5)
    settled = last_word(open_made, again)
    assert settled.gain is not None and settled.gain.low < 0.024 < settled.gain.high < 0.1
    assert settled.default is not None and settled.default.qps == pytest.approx(0.95 * 12.3)


def test_runs_far_from_the_others_are_not_quoted_and_their_claim_is_made_again(open_made: StudyPlan) -> None:
    records = night(open_made, (12.4, 15.0), [(9.4, 15.0), (12.4, 15.0), (12.3, 15.1)], claims=1)
    assert confirm.fresh_runs(open_made, records, DEFAULT) == []
    due = confirm.next_to_confirm(open_made, records)
    assert due is not None and due.claims


def test_a_winner_is_not_named_without_fresh_runs_unless_none_were_wanted(open_made: StudyPlan) -> None:
    only_searched = night(open_made, (12.0, 15.0), [])
    assert last_word(open_made, only_searched).decision is Decision.NOT_CONFIRMED
    assert last_word(replace(open_made, confirm_starts=0), only_searched).decision is Decision.WINNER


def test_after_a_machine_slowed_for_good_pairs_still_tell_the_gain(open_made: StudyPlan) -> None:
    pairs = [(12.0, 15.0), (9.6, 15.0), (9.6, 12.0), (9.7, 12.0), (9.6, 12.1)]
    found = last_word(open_made, night(open_made, (12.0, 15.0), pairs, claims=5))
    assert found.gain is not None and found.gain.low < 0.25 < found.gain.high
    assert found.decision is Decision.WINNER


def test_confirmation_runs_end_though_the_pairs_never_agree(open_made: StudyPlan) -> None:
    records = night(open_made, (12.0, 15.0), [(12.0 + 4 * (k % 2), 15.0 - 4 * (k % 3)) for k in range(6)], claims=6)
    assert confirm.next_to_confirm(open_made, records) is None
    assert last_word(open_made, records).decision is Decision.NOT_CONFIRMED


def test_a_default_that_broke_a_limit_has_one_fresh_start_to_keep_it(made: StudyPlan) -> None:
    broken = record(0, DEFAULT, (level(50.0, p99_ms=900),), role=Role.DEFAULT)
    records = [broken, record(1, OTHER, (level(60.0),))]
    turns = []
    while (due := confirm.next_to_confirm(made, records)) is not None:
        turns.append(due.found.candidate)
        p99_ms = 900 if due.found is broken else 300
        records.append(record(len(records), due.found.candidate, (level(60.0, p99_ms),), role=Role.CONFIRM))
    assert turns == [OTHER, DEFAULT, OTHER]
    assert last_word(made, records).decision is Decision.WINNER
    assert confirm.lack(records, DEFAULT) is Lack.BREAKS_LIMITS


@pytest.mark.parametrize("outcome", [TrialOutcome.INVALID, TrialOutcome.UNDECIDED])
def test_a_default_that_decided_nothing_in_the_search_is_compared_by_fresh_starts(
    open_made: StudyPlan, outcome: TrialOutcome
) -> None:
    records = night(open_made, (12.0, 15.0), [])
    records[0] = replace(records[0], outcome=outcome, best=None, capacity=None)
    while (due := confirm.next_to_confirm(open_made, records)) is not None:
        rate = 12.0 if due.found.candidate == DEFAULT else 15.0
        records.append(block(len(records), due.found.candidate, rate, claim=0.95 * rate if due.claims else None))
    found = last_word(open_made, records)
    assert found.gain is not None and found.gain.low < 0.25 < found.gain.high
    assert found.default is not None and found.default.fresh


def test_a_wide_interval_around_no_gain_is_not_stated(open_made: StudyPlan) -> None:
    records = night(open_made, (12.0, 12.5), [(12.0, 18.0), (12.0, 9.0), (12.0, 16.0)], claims=3)
    assert last_word(open_made, records).decision is Decision.NOT_CONFIRMED


def test_a_block_is_compared_though_its_claim_held_nothing(open_made: StudyPlan) -> None:
    """A machine that slows in a claim says nothing of the block before."""
    failed = replace(block(5, OTHER, 12.0, claim=11.0), best=None, outcome=TrialOutcome.INFEASIBLE)
    assert replace(failed, claim=Claim(None, (), 900.0)).block == 12.0


def lengths(e2e_ms: tuple[float, float], level: Level) -> Level:
    """Return a level whose answers took these milliseconds in the median and at P90."""
    p50, p90 = e2e_ms
    e2e = Distribution(600, p50, p50, p90, p90, p90, p90, None, None)
    return replace(level, measurement=replace(level.measurement, e2e_ms=e2e))


@pytest.mark.parametrize("e2e_ms", [(4000.0, 6000.0), (4000.0, 12000.0)])
def test_levels_without_a_request_in_common_tell_a_gain_less_well(made: StudyPlan, e2e_ms: tuple[float, float]) -> None:
    def half_width(clients: tuple[int, int], spread_ms: tuple[float, float] = e2e_ms) -> float:
        shown = [lengths(spread_ms, level(10.0, concurrency=n)) for n in clients]
        runs = [(OTHER, shown[0]), (DEFAULT, shown[1])] * 2
        records = [record(n, candidate, (one,), role=Role.CONFIRM) for n, (candidate, one) in enumerate(runs)]
        found = gain(made, records, OTHER)
        assert found is not None
        return (found.high - found.low) / 2

    assert half_width((32, 32)) < half_width((64, 32))
    assert half_width((64, 32)) < half_width((64, 32), (e2e_ms[0], 2 * e2e_ms[1]))


def confirmed(records: list[TrialRecord], *runs: tuple[Candidate, bool]) -> list[TrialRecord]:
    """Append confirmation runs of candidates that keep the limits or not."""
    for candidate, keeps in runs:
        shown = level(60.0 if candidate == OTHER else 50.0, 300 if keeps else 900)
        records = [*records, record(len(records), candidate, (shown,), role=Role.CONFIRM)]
    return records


SEARCHED = [record(0, DEFAULT, (level(50.0),), role=Role.DEFAULT), record(1, OTHER, (level(60.0),))]


@pytest.mark.parametrize("before", [[(OTHER, True)], [(OTHER, True), (DEFAULT, True), (DEFAULT, True), (OTHER, True)]])
def test_a_default_breaks_the_limits_only_if_the_winner_keeps_them_afterwards(
    made: StudyPlan, before: list[tuple[Candidate, bool]]
) -> None:
    broke = confirmed(SEARCHED, *before, (DEFAULT, False))
    assert last_word(made, broke).decision is Decision.NOT_CONFIRMED
    due = confirm.next_to_confirm(made, confirmed(broke, (DEFAULT, False)))
    assert due is not None and due.found.candidate == OTHER
    kept = last_word(made, confirmed(broke, (OTHER, True)))
    assert kept.decision is Decision.WINNER and kept.default is None


@pytest.mark.parametrize("first", [OTHER, DEFAULT])
def test_limits_that_winner_and_default_both_stopped_keeping_are_the_machines_change(
    made: StudyPlan, first: Candidate
) -> None:
    second = DEFAULT if first == OTHER else OTHER
    found = last_word(made, confirmed(SEARCHED, (OTHER, True), (first, False), (second, False)))
    assert found.decision is Decision.NOT_CONFIRMED
    assert found.default is not None and found.default.qps == 50.0
    assert found.disturbed is not None
