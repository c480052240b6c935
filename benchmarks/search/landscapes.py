"""Landscapes of the benchmark. A new one is an entry of LANDSCAPES and `python -m benchmarks.search tabulate NAME`.

The space is the product's default preset: max-num-seqs, max-num-batched-tokens, gpu-memory-utilization,
long-prefill-token-threshold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tuner.environment import Gpu
from tuner.flagwords import Value
from tuner.launch import LaunchBase
from tuner.layout import Layout, PlacedLayout
from tuner.load.workload import Lengths, Share, Workload
from tuner.placement import GpuGroup
from tuner.sim import Hardware, ModelShape, hardware_profile, load_model
from tuner.sim.hardware import GIB
from tuner.slo import parse_slo
from tuner.space.files import read_space
from tuner.space.space import Dropped, Space
from tuner.study.plan import OpenSearch, StudyPlan

VLLM = "0.32.0"
TEMPLATE_TOKENS = 128
WARM_UP_S = 15.0


@dataclass(frozen=True, slots=True)
class Landscape:
    """Model, machine and traffic with a known optimum. `held_gib` of each GPU belong to the driver and other
    programs.

    `max_model_len` is the user's own flag, for the default configuration too. None leaves it to vLLM and the space.
    """

    name: str
    about: str
    gpu: str
    model: str
    shares: tuple[Share, ...]
    limit_ms: float
    max_model_len: int | None = 4096
    tensor_parallel: int = 1
    held_gib: float = 0.5
    pipeline_parallel: int = 1

    @property
    def hardware(self) -> Hardware:
        return hardware_profile(self.gpu)

    @property
    def shape(self) -> ModelShape:
        return load_model(self.model)

    @property
    def held_bytes(self) -> int:
        return int(self.held_gib * GIB)

    @property
    def workload(self) -> Workload:
        return Workload(self.name, "benchmarks/search", self.shares)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        ranks = self.tensor_parallel * self.pipeline_parallel
        memory_gib = self.hardware.memory_bytes / GIB
        return tuple(Gpu(i, self.gpu, memory_gib, f"GPU-{i}") for i in range(ranks))

    @property
    def own_flags(self) -> dict[str, int]:
        """Return the user's own words."""
        return {} if self.max_model_len is None else {"max-model-len": self.max_model_len}

    def space(self, folder: Path) -> tuple[Space, tuple[Dropped, ...]]:
        """Return the searched space. `folder` gets the model's config.json, which the seeds read."""
        (folder / "config.json").write_text(json.dumps(config_of(self.shape)))
        return self._whole_space.on(self._vllm_flags, VLLM, list(self.own_flags))

    @property
    def _whole_space(self) -> Space:
        return read_space("default").fixing("max-model-len", self.workload.longest + TEMPLATE_TOKENS)

    @property
    def _vllm_flags(self) -> tuple[str, ...]:
        return self._whole_space.flags

    def plan(self, folder: Path, starts: int, confirm_starts: int, seed: int) -> StudyPlan:
        """Plan the study as `tuner search` would, on the GPUs of one server."""
        layout = Layout(1, self.tensor_parallel, self.pipeline_parallel)
        placed = PlacedLayout(layout, (GpuGroup(tuple(range(layout.ranks))),))
        space, dropped = self.space(folder)
        fixed = tuple((flag, size) for flag, size in layout.flags.items() if size != 1)
        return StudyPlan(
            study=folder.name,
            model=str(folder),
            slos=(parse_slo(f"p99 ttft <= {self.limit_ms:.0f}ms"),),
            workload=self.workload,
            space=space,
            dropped=dropped,
            base=self.base(folder, fixed),
            layouts=(placed,),
            own_layout=layout,
            load=OpenSearch(WARM_UP_S),
            starts=starts,
            confirm_starts=confirm_starts,
            time_budget_s=None,
            start_limit_s=1800,
            seed=seed,
            storage=f"sqlite:///{folder / 'study.db'}",
            created_at="2026-11-25T00:00:00+00:00",
        )

    def base(self, folder: Path, fixed: tuple[tuple[str, Value], ...]) -> LaunchBase:
        """Return what all servers share. `fixed` are the flags of the only layout."""
        return LaunchBase(("vllm", "serve"), str(folder), self._vllm_flags, fixed, _words(self.own_flags), ())


def _words(own: dict[str, int]) -> tuple[str, ...]:
    return tuple(word for flag, value in own.items() for word in (f"--{flag}", str(value)))


def config_of(shape: ModelShape) -> dict[str, object]:
    """Build the config.json of a dense or hybrid model."""
    hybrid: dict[str, object] = {}
    if shape.attention_layers < shape.layers:
        period = shape.layers // shape.attention_layers
        kinds = ["linear_attention"] * (period - 1) + ["full_attention"]
        hybrid = {
            "layer_types": kinds * shape.attention_layers,
            "linear_num_key_heads": 16, "linear_key_head_dim": 128,
            "linear_num_value_heads": 48, "linear_value_head_dim": 128,
        }  # fmt: skip
    quantised = {"quantization_config": {"quant_method": "compressed-tensors", "bits": int(8 * shape.weight_bytes)}}
    return {
        **hybrid,
        **(quantised if shape.weight_bytes < 2 else {}),
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied_embeddings,
    }


def one(prompt: tuple[int, int], output: tuple[int, int]) -> tuple[Share, ...]:
    return (Share(1.0, Lengths(*prompt), Lengths(*output)),)


LANDSCAPES = {
    landscape.name: landscape
    for landscape in (
        Landscape(
            "kv-tight",
            "Qwen3-8B on an RTX 4090: the KV cache holds some 25 requests, and more preempt",
            "rtx4090", "Qwen/Qwen3-8B", one((400, 1200), (200, 400)), 2000,
        ),
        Landscape(
            "ttft-bound",
            "Llama-3.1-8B on an L40S, prompts of 500 to 1,500 tokens under a tight P99 TTFT",
            "l40s", "meta-llama/Llama-3.1-8B-Instruct", one((500, 1500), (50, 150)), 400,
        ),
        Landscape(
            "default-is-right",
            "Qwen3-8B on an H100, chat: vLLM's default has sequences, budget and memory to spare",
            "h100", "Qwen/Qwen3-8B", one((60, 260), (150, 256)), 1000,
        ),
        Landscape(
            "long-and-short",
            "Qwen3-8B on an H100: one request in ten has a prompt of thousands of tokens, the others are short",
            "h100", "Qwen/Qwen3-8B",
            (Share(0.9, Lengths(50, 200), Lengths(50, 150)), Share(0.1, Lengths(4000, 8000), Lengths(50, 150))),
            500, max_model_len=9216,
        ),
        Landscape(
            "refusals",
            "Qwen3-8B on an RTX 4090 beside a desktop: rare requests of 16,000 tokens must fit, and most points do not",
            "rtx4090", "Qwen/Qwen3-8B",
            (
                Share(0.97, Lengths(200, 800), Lengths(100, 300)),
                Share(0.03, Lengths(8000, 15000), Lengths(100, 300)),
            ),
            4000, max_model_len=16384, held_gib=1.4,
        ),
        Landscape(
            "tp4-pcie",
            "Qwen3-32B on four RTX 5090 over PCIe without peer-to-peer: every token of a step is reduced over the bus",
            "rtx5090", "Qwen/Qwen3-32B", one((200, 1000), (100, 300)), 1500, tensor_parallel=4,
        ),
        Landscape(
            "32b-on-h100",
            "Qwen3-32B on an H100: the weights leave a sixth of the memory",
            "h100", "Qwen/Qwen3-32B", one((300, 900), (100, 300)), 1000,
        ),
        Landscape(
            "rag-on-a100",
            "Llama-3.1-8B on an A100: prompts of 3,000 to 8,000 tokens, short answers",
            "a100-80g", "meta-llama/Llama-3.1-8B-Instruct", one((3000, 8000), (80, 200)), 3000, max_model_len=9216,
        ),
        Landscape(
            "moe-on-a100",
            "Qwen3-30B-A3B on an A100: short prompts, answers of some thousand tokens",
            "a100-80g", "Qwen/Qwen3-30B-A3B", one((200, 600), (600, 1400)), 800,
        ),
        Landscape(
            "70b-on-h200",
            "Llama-3.3-70B in FP8 on an H200: one request in five has a prompt of thousands of tokens",
            "h200", "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
            (Share(0.8, Lengths(300, 900), Lengths(100, 300)), Share(0.2, Lengths(2000, 6000), Lengths(200, 500))),
            1500, max_model_len=8192,
        ),
    )
}  # fmt: skip
HOLD_OUTS = ("moe-on-a100", "70b-on-h200")
"""Landscapes that first ran when the search was finished."""
