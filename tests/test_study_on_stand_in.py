"""A whole study on the stand-in, where the best configuration is known: it must be found, and the claim be true."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from tests.fakes import ScriptedClock
from tests.study.builders import plan
from tests.virtual_machine import VirtualMachine
from tuner.candidate import Candidate
from tuner.environment import Gpu, describe
from tuner.load.workload import workload
from tuner.study.fleet import LocalFleet
from tuner.study.loop import Loop
from tuner.study.plan import Ladder
from tuner.study.result import Decision
from tuner.study.search import Search
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults

DEFAULTS = vllm_defaults("0.32.0", (Gpu(0, "NVIDIA GeForce RTX 4090", 24.0, "GPU-0"),))


def test_a_study_finds_at_least_95_percent_of_the_known_optimum(tmp_path: Path) -> None:
    planned = replace(
        plan(tmp_path / "s", starts=24),
        workload=workload("random:100-400,80-200"),
        load=Ladder((32, 48, 64, 72, 80, 88, 96, 112, 128), 30.0, 0.0),
    )
    machine = VirtualMachine(planned, "rtx4090", "Qwen/Qwen3-8B")
    # More memory never hurts on this machine, so the best lies at the top of that range.
    optimum = max(
        machine.true_qps(
            Candidate.of({"max-num-seqs": seqs, "max-num-batched-tokens": tokens, "gpu-memory-utilization": 0.97})
        )
        for seqs, tokens in itertools.product((64, 96, 128, 256, 512), (512, 1024, 2048, 8192))
    )
    store = Store(tmp_path / "s")
    store.create()
    store.save_plan(planned, describe("0.32.0", planned.model, (), None))
    setting = StudySetting.of(planned, DEFAULTS)
    search = Search(setting, seeds(setting))
    fleet = LocalFleet(planned.groups, machine.run_trial, store)
    loop = Loop(plan=planned, store=store, search=search, fleet=fleet, clock=ScriptedClock())
    result = loop.run()
    assert optimum > 0
    assert result.decision is Decision.WINNER
    assert result.winner is not None and result.winner.fresh
    truth = machine.true_qps(result.winner.candidate)
    assert truth >= 0.95 * optimum
    assert abs(result.winner.qps / truth - 1) < 0.06
