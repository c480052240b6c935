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
from tests.virtual_machine import VirtualMachine
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
"""Space in which no request of 2,048 tokens fits below 288 MiB, and the GPU is full above some 6 GiB."""
STARTS = 12
ASKED = tuple(
    Candidate.of({"max-num-seqs": 256, "max-num-batched-tokens": 8192, "kv-cache-memory-bytes": mib << 20})
    for mib in (64, 8192, 48, 10240, 32, 12288)
)
"""Seeds that are all refused, the later ones for the same reasons as the first two."""


class ForgetfulSearch(Search):
    """The same search, without the rules."""

    def _rule_violated_by(self, candidate: Candidate) -> LearntRule | None:
        return None


class Simulated:
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
        search, clock = kind(StudySetting.of(self.plan, DEFAULTS, GPUS), ASKED), ScriptedClock()
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
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Simulated, Simulated]]:
    """The same two studies with the rules and without, both asked to start what the rules forbid."""
    folder = tmp_path_factory.mktemp("studies")
    return [(Simulated(folder / f"w{i}", Search, i), Simulated(folder / f"o{i}", ForgetfulSearch, i)) for i in (1, 2)]


def test_fewer_starts_are_refused_with_the_rules_than_without(
    studies: list[tuple[Simulated, Simulated]],
) -> None:
    learning, forgetful = (sum(pair[i].refused for pair in studies) for i in (0, 1))
    assert forgetful >= STARTS // 2
    assert learning <= 0.75 * forgetful


def test_every_start_that_was_avoided_would_have_been_refused(
    studies: list[tuple[Simulated, Simulated]],
) -> None:
    for study, _ in studies:
        assert study.saved
        assert not [c for c in study.saved if study.machine.would_start(c)]
        assert sum(rule.saved for rule in study.result.learnt) == len(study.saved)
        assert {rule.cause for rule in study.result.learnt} >= {CAPACITY, "oom"}
        assert not [rule for rule in study.result.learnt if rule.withdrawn_by is not None]


def test_what_was_avoided_is_in_no_record_and_no_figure(studies: list[tuple[Simulated, Simulated]]) -> None:
    for study, _ in studies:
        assert study.result.starts == len(study.records) == STARTS
        assert not {r.candidate for r in study.records} & set(study.saved)
        measured = {r.search_trial for r in study.records if r.levels}
        stored = optuna.load_study(study_name=study.plan.study, storage=study.plan.storage)
        own = [t for t in stored.trials if t.user_attrs.get("imputed") is False]
        reported = {t.number for t in own if "flags" in t.user_attrs}  # others repeat a candidate, with its figures
        assert reported == measured
