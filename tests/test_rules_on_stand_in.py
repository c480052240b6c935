"""Studies on the stand-in over a space where half the starts are refused: with the rules learnt, and without them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from tests.fakes import ScriptedClock
from tests.study.builders import plan
from tests.test_capacity import QWEN3_8B
from tests.virtual_night import VirtualMachine
from tuner.candidate import Candidate
from tuner.environment import Gpu, describe
from tuner.load.workload import workload
from tuner.space.parameter import Kind, Parameter
from tuner.space.space import Space
from tuner.study.fleet import LocalFleet
from tuner.study.learnt import CAPACITY, LearntRule
from tuner.study.loop import Loop
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.result import StudyResult
from tuner.study.search import Search
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults

GPUS = (Gpu(0, "NVIDIA GeForce RTX 4090", 23.52, "GPU-0"),)
DEFAULTS = vllm_defaults("0.32.0", GPUS)
SPACE = Space(
    "half is refused",
    (
        Parameter("max-num-seqs", Kind.LOG_INT, 8, 1024),
        Parameter("max-num-batched-tokens", Kind.LOG_INT, 512, 32768, 64),
        Parameter("kv-cache-memory-bytes", Kind.LOG_INT, 16 << 20, 24 << 30, 1 << 20),
    ),
    baseline=(("kv-cache-memory-bytes", 1 << 30), ("max-model-len", 2048)),
    fixed=(("max-model-len", 2048),),
)
"""Below 288 MiB no request of 2,048 tokens fits, above some 6 GiB the GPU's memory is full."""
STARTS = 12


class ForgetfulSearch(Search):
    """The same search, without the rules."""

    def _rule_violated_by(self, candidate: Candidate) -> LearntRule | None:
        return None


class Night:
    def __init__(self, folder: Path, kind: type[Search], seed: int) -> None:
        made = plan(folder, starts=STARTS, confirm_starts=0)
        (folder / "config.json").write_text(json.dumps({**QWEN3_8B, "torch_dtype": "bfloat16"}))
        self.plan: StudyPlan = replace(
            made, seed=seed, space=SPACE, model=str(folder), workload=workload("random:100-400,80-200"),
            load=Ladder((32,), 15.0, 0.0),
        )  # fmt: skip
        self.machine = VirtualMachine(self.plan, "rtx4090", "Qwen/Qwen3-8B", seed)
        store = Store(folder)
        store.create()
        store.save_plan(self.plan, describe("0.32.0", self.plan.model, (), None))
        search, clock = kind(StudySetting.of(self.plan, DEFAULTS, GPUS), ()), ScriptedClock()
        fleet = LocalFleet(self.plan.groups, self.machine.run_trial, store)
        loop = Loop(plan=self.plan, store=store, search=search, fleet=fleet, clock=clock)
        self.result: StudyResult = loop.run()
        self.records: tuple[TrialRecord, ...] = store.records()

    @property
    def refused(self) -> int:
        return sum(r.outcome is TrialOutcome.REFUSED for r in self.records)

    @property
    def saved(self) -> list[Candidate]:
        study = optuna.load_study(study_name=self.plan.study, storage=self.plan.storage)
        return [Candidate.of(t.user_attrs["flags"]) for t in study.trials if "ruled_out" in t.user_attrs]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Night, Night]]:
    """The same two nights with the rules and without; in both the search asks for what the rules forbid."""
    folder = tmp_path_factory.mktemp("nights")
    return [(Night(folder / f"w{i}", Search, i), Night(folder / f"o{i}", ForgetfulSearch, i)) for i in (1, 2)]


def test_fewer_starts_are_refused_with_the_rules_than_without(nights: list[tuple[Night, Night]]) -> None:
    learning, forgetful = (sum(pair[i].refused for pair in nights) for i in (0, 1))
    assert forgetful >= STARTS // 2
    assert learning <= 0.75 * forgetful


def test_every_start_that_was_spared_would_have_been_refused(nights: list[tuple[Night, Night]]) -> None:
    for night, _ in nights:
        assert night.saved
        assert not [c for c in night.saved if night.machine.would_start(c)]
        assert sum(rule.saved for rule in night.result.learnt) == len(night.saved)
        assert {rule.cause for rule in night.result.learnt} >= {CAPACITY, "oom"}
        assert not [rule for rule in night.result.learnt if rule.withdrawn_by is not None]


def test_what_was_spared_is_in_no_record_and_no_figure(nights: list[tuple[Night, Night]]) -> None:
    for night, _ in nights:
        assert night.result.starts == len(night.records) == STARTS
        assert not {r.candidate for r in night.records} & set(night.saved)
        measured = {r.search_trial for r in night.records if r.levels}
        study = optuna.load_study(study_name=night.plan.study, storage=night.plan.storage)
        told = {t.number for t in study.trials if t.user_attrs.get("imputed") is False}
        assert told == measured
