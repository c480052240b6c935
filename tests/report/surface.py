"""A made-up server: how QPS, P99 TTFT, KV use and refusals follow from the flags. Used only to make sample studies.

`PLAN` is a model on one GPU each in two groups. `LAYOUTS_PLAN` is the same model on four GPUs without NVLink.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from tuner.bench.level import Level
from tuner.candidate import Candidate
from tuner.launch import Door, LaunchBase
from tuner.layout import Layout, PlacedLayout, RuledOut
from tuner.load.workload import Lengths, Share, Workload
from tuner.measurement import (
    Caution,
    CautionKind,
    ClientLoad,
    Distribution,
    GpuLoad,
    Load,
    LoadKind,
    Measurement,
    ServerLoad,
)
from tuner.placement import GpuGroup
from tuner.server.diagnosis import Bound, Cause, Fault
from tuner.slo import Metric, Slo
from tuner.space.parameter import Kind, Parameter
from tuner.space.space import Dropped, Space
from tuner.study.plan import Ladder, StudyPlan
from tuner.telemetry.cautions import Observation, Sign
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict

GROUPS = (
    GpuGroup((0,), ("numactl", "--cpunodebind=0", "--membind=0"), 0),
    GpuGroup((1,), ("numactl", "--cpunodebind=1", "--membind=1"), 1),
)
PARAMETERS = (
    Parameter("enable-chunked-prefill", Kind.FLAG),
    Parameter("gpu-memory-utilization", Kind.FLOAT, 0.78, 0.98),
    Parameter("long-prefill-token-threshold", Kind.CHOICE, choices=(0, 512, 2048)),
    Parameter("max-num-batched-tokens", Kind.LOG_INT, 512, 16384, multiple_of=128),
    Parameter("max-num-seqs", Kind.LOG_INT, 16, 1024),
)
PLAN = StudyPlan(
    study="qwen3-32b-h100",
    model="Qwen/Qwen3-32B",
    slos=(Slo(Metric.TTFT, 0.99, 500.0),),
    workload=Workload("chat", "preset", (Share(1.0, Lengths(120, 900), Lengths(150, 256), shared_prefix=64),)),
    space=Space("chat", PARAMETERS),
    dropped=(Dropped("max-num-partial-prefills", "vLLM 0.32.0 does not have it, or takes only its default"),),
    base=LaunchBase(
        command=("vllm", "serve"),
        model="Qwen/Qwen3-32B",
        flags=("max-num-seqs", "max-num-batched-tokens", "shutdown-timeout"),
        fixed=(("max-model-len", 2048),),
        extra=("--disable-uvicorn-access-log",),
        env=(("VLLM_CACHE_ROOT", "/data/studies/qwen3-32b-h100/cache"),),
        secret_env=("HF_TOKEN",),
    ),
    layouts=(PlacedLayout(Layout(), GROUPS),),
    load=Ladder(levels=(8, 16, 32, 48, 64, 96, 128), level_s=60.0, warm_up_s=20.0),
    starts=61,
    confirm_starts=3,
    time_budget_s=8 * 3600.0,
    start_limit_s=900.0,
    seed=0,
    storage="sqlite:///studies/qwen3-32b-h100/study.db",
    created_at="2026-11-20T21:29:41+00:00",
)
FOUR_ONE, TWO_TWO, ONE_FOUR = Layout(4, 1), Layout(2, 2), Layout(1, 4)
LAYOUTS_PLAN = replace(
    PLAN,
    study="qwen3-32b-four-h100",
    space=Space("chat", (Parameter("tensor-parallel-size", Kind.CHOICE, choices=(1, 2, 4)), *PARAMETERS)),
    layouts=(
        PlacedLayout(FOUR_ONE, tuple(GpuGroup((gpu,)) for gpu in range(4))),
        PlacedLayout(TWO_TWO, (GpuGroup((0, 1)), GpuGroup((2, 3)))),
        PlacedLayout(ONE_FOUR, (GpuGroup((0, 1, 2, 3)),), ("no P2P between GPU 1 and GPU 2",)),
    ),
    own_layout=ONE_FOUR,
    ruled_out=(RuledOut(Layout(1, 3), "64 attention heads do not divide by 3"),),
    doors=(Door.NGINX,),
)


def refusal(candidate: Candidate) -> Cause | None:
    values = candidate.as_dict()
    batched, seqs = int(values.get("max-num-batched-tokens", 8192)), int(values.get("max-num-seqs", 1024))
    if batched < seqs:
        return Cause(
            kind="batched-below-seqs",
            fault=Fault.CANDIDATE,
            line=f"max_num_batched_tokens ({batched}) must be greater than or equal to max_num_seqs ({seqs}).",
            explanation="vLLM wants at least one token of the step's budget for every sequence.",
            hint="raise max-num-batched-tokens or lower max-num-seqs",
        )
    utilization = float(values.get("gpu-memory-utilization", 0.92))
    if utilization > 0.955:
        return Cause(
            kind="gpu-memory-occupied",
            fault=Fault.CANDIDATE,
            line="Free memory on device (75.9/79.6 GiB) on startup is less than desired GPU memory utilization "
            f"({utilization}, {79.6 * utilization:.1f} GiB)",
            explanation="The GPU has less free memory than this share of it.",
            hint="lower gpu-memory-utilization",
            bounds=(Bound("gpu-memory-utilization", "<=", 0.953),),
        )
    if kv_tokens(utilization, Layout.of(values)) < 2048:
        return Cause(
            kind="kv-too-small",
            fault=Fault.CANDIDATE,
            line="No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            explanation="After the weights, no memory is left for the KV cache of one request of max-model-len.",
            hint="raise gpu-memory-utilization or lower max-model-len",
            bounds=(Bound("gpu-memory-utilization", ">=", round(utilization + 0.001, 3)),),
        )
    return None


def kv_tokens(utilization: float, layout: Layout) -> int:
    """What is left of 80 GB cards after 61.5 GiB of weights and 2 GiB of work space each, at 256 KiB a token."""
    free_gib = layout.ranks * (79.6 * utilization - 2) - 61.5
    return int(free_gib * 2**30 / (256 * 1024))


@dataclass(frozen=True, slots=True)
class Server:
    """One start. `noise` multiplies its speed (starts differ by about 1 %), `speed` scales every figure. `servers`
    share the load behind a door that costs 2 %."""

    candidate: Candidate
    noise: float
    speed: float
    servers: int = 1

    @property
    def layout(self) -> Layout:
        return Layout.of(self.candidate.as_dict())

    @property
    def kv_tokens(self) -> int:
        return kv_tokens(float(self.candidate.as_dict().get("gpu-memory-utilization", 0.92)), self.layout)

    def level(self, concurrency: int, plan: StudyPlan, rng: random.Random) -> Level:
        measurement = self._measure(concurrency, plan, rng)
        limit = plan.slos[0].limit_ms
        assert measurement.ttft_ms is not None
        margin = math.log(measurement.ttft_ms.p99 / limit)
        reasons = []
        if margin > 0:
            reasons.append(
                Reason(
                    ReasonKind.LIMIT_BROKEN, measurement.ttft_ms.p99, float(measurement.completed), str(plan.slos[0])
                )
            )
        if measurement.server.preemptions:
            reasons.append(Reason(ReasonKind.PREEMPTIONS, float(measurement.server.preemptions)))
        if reasons:
            return Level(measurement, Verdict(Outcome.INFEASIBLE, tuple(reasons), margin, 0.99))
        if abs(margin) < 0.02:
            return Level(
                measurement,
                Verdict(Outcome.UNDECIDED, (Reason(ReasonKind.REQUESTS_MISSING, 900.0, 1000.0),), margin, 0.7, 900),
            )
        return Level(measurement, Verdict(Outcome.FEASIBLE, (), margin, 0.99))

    def _measure(self, concurrency: int, plan: StudyPlan, rng: random.Random) -> Measurement:
        values = self.candidate.as_dict()
        clients, servers = concurrency, self.servers
        concurrency = concurrency // servers
        seqs = int(values.get("max-num-seqs", 1024))
        batched = int(values.get("max-num-batched-tokens", 8192))
        running = min(concurrency, seqs)
        # Each doubling of the GPUs of one server makes it 1.2 times as fast: all-reduce over PCIe.
        speed = self.speed * 1.2 ** math.log2(self.layout.ranks)
        # Decode steps get slower with the batch; big prefill steps delay first tokens, small ones starve prefill.
        step_ms = 21 + running * 0.13
        prefill = 0.8 + 0.2 * math.exp(-(math.log2(batched / 3200) ** 2) / 3)
        if values.get("enable-chunked-prefill") is False:
            prefill *= 0.93
        kv = running * 560 / self.kv_tokens
        preemptions = int(max(0.0, kv - 1) * 90)
        prefill /= 1 + preemptions / 300
        step_ms /= speed / self.speed
        door = 1.0 if servers == 1 else 0.98
        qps = (
            servers * door * 1000 * running / (203 * step_ms) * prefill * self.noise * self.speed * rng.gauss(1, 0.006)
        )
        queued = max(0, concurrency - seqs)
        p50 = (62 + batched * 0.011 + running * 0.9 + queued * 150 + preemptions * 21) / speed
        p99 = p50 * (1.9 + batched / 12000) * rng.gauss(1, 0.03)
        assert isinstance(plan.load, Ladder)
        level_s = plan.load.level_s
        sent = int(qps * level_s)
        kv_usage = min(1.0, kv)
        cautions: tuple[Caution, ...] = ()
        if sent < 300:
            cautions = (Caution(CautionKind.FEW_REQUESTS, (Observation(Sign.COMPLETED, float(sent)),)),)
        return Measurement(
            load=Load(LoadKind.CLOSED, clients),
            seed=1000 + clients,
            planned_s=level_s,
            window_s=level_s - 6,
            sent=sent,
            completed=sent,
            failed=(),
            qps=qps,
            output_tokens_per_s=qps * 203,
            prompt_tokens=sent * 540,
            output_tokens=sent * 203,
            ttft_ms=_distribution(sent, p50, p99),
            tpot_ms=_distribution(sent, step_ms, step_ms * 1.4),
            itl_ms=_distribution(sent * 203, step_ms, step_ms * 2.2),
            e2e_ms=_distribution(sent, step_ms * 203, step_ms * 260),
            server=ServerLoad(
                preemptions=preemptions,
                kv_usage_peak=kv_usage,
                kv_usage_mean=kv_usage * 0.93,
                running_peak=float(servers * min(running, int(running / max(kv, 1)))),
                running_mean=servers * running * 0.97,
                waiting_peak=float(servers * (queued + 2 + int(max(0.0, running - running / max(kv, 1))))),
                waiting_mean=servers * (queued * 0.95 + max(0.0, running - running / max(kv, 1))),
                prefix_hit_rate=0.11,
                queue_ms_mean=queued * 40.0,
                requests_succeeded=sent,
                prompt_tokens=sent * 540,
                generation_tokens=sent * 203,
            ),
            client=ClientLoad(cpu_share=min(0.9, qps * 0.011), lag_p99_ms=1.8, late_p99_ms=None, host_cpu_share=0.08),
            gpu=GpuLoad(min(0.99, 0.7 + running / 250), 75.1, 430.0 + running * 2, 64.0, 1755.0),
            cautions=cautions,
        )


def _distribution(count: int, p50: float, p99: float) -> Distribution:
    return Distribution(
        count=count,
        mean=p50 * 1.08,
        p50=p50,
        p90=p50 + (p99 - p50) * 0.42,
        p95=p50 + (p99 - p50) * 0.62,
        p99=p99,
        max=p99 * 1.3,
        p99_low=p99 * 0.94,
        p99_high=p99 * 1.07 if count >= 300 else None,
    )
