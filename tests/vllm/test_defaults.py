"""Defaults of vLLM that depend on its version and the GPUs."""

from __future__ import annotations

import pytest

from tuner.environment import Gpu
from tuner.kv.layers import LatentPacking
from tuner.vllm.defaults import latent_packing

IF_QUANTISED, NEVER, ALWAYS = LatentPacking.IF_QUANTISED, LatentPacking.NEVER, LatentPacking.ALWAYS


@pytest.mark.parametrize(
    ("name", "version", "backend", "expected"),
    [
        ("NVIDIA B200", "0.32.0", None, NEVER),
        ("NVIDIA GB300", "0.18.1", None, NEVER),
        ("NVIDIA B200", "0.17.0", None, IF_QUANTISED),
        ("NVIDIA B200", "0.32.0", "FLASHMLA_SPARSE", IF_QUANTISED),
        ("NVIDIA B200", "0.17.0", "flashinfer_mla_sparse", NEVER),
        ("NVIDIA H200", "0.32.0", None, IF_QUANTISED),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "0.32.0", None, ALWAYS),
        ("NVIDIA GeForce RTX 5090", "0.32.0", None, ALWAYS),
        ("NVIDIA GB10", "0.32.0", None, ALWAYS),
        ("NVIDIA RTX 6000 Ada Generation", "0.32.0", None, IF_QUANTISED),
    ],
)
def test_the_gpu_and_the_backend_decide_how_sparse_attention_is_kept(
    name: str, version: str, backend: str | None, expected: LatentPacking
) -> None:
    values = {} if backend is None else {"attention-backend": backend}
    assert latent_packing(version, (Gpu(0, name, 180.0, "GPU-0"),), values) is expected
    assert latent_packing(version, (), values) is IF_QUANTISED
