"""Models by name: published shapes, and a folder's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuner.kv.config_json import UnknownModelError, read_config
from tuner.model import ModelShape, shape_from_config

# Shapes from the models' published config.json. Qwen3.6-27B: model card of Qwen3.5/3.6-27B (64 layers, three Gated
# DeltaNet to one gated attention; 16 key and 48 value heads of 128). The attention gate's projection, 0.5 of its 27 B,
# is left out.
PRESETS: Mapping[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("Qwen/Qwen3-0.6B", 28, 28, 1024, 3072, 16, 8, 128, 151936, 40960, tied_embeddings=True),
        ModelShape("Qwen/Qwen3-8B", 36, 36, 4096, 12288, 32, 8, 128, 151936, 40960),
        ModelShape("Qwen/Qwen3-32B", 64, 64, 5120, 25600, 64, 8, 128, 151936, 40960),
        ModelShape(
            "Qwen/Qwen3.6-27B", 64, 16, 5120, 17408, 24, 4, 256, 248320, 262144,
            mixer_parameters=5120 * (2 * 16 * 128 + 3 * 48 * 128),
        ),
        ModelShape("meta-llama/Llama-3.1-8B-Instruct", 32, 32, 4096, 14336, 32, 8, 128, 128256, 131072),
        ModelShape("meta-llama/Llama-3.3-70B-Instruct", 80, 80, 8192, 28672, 64, 8, 128, 128256, 131072),
        ModelShape(
            "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 80, 80, 8192, 28672, 64, 8, 128, 128256, 131072,
            weight_bytes=1.0,
        ),
        ModelShape(
            "Qwen/Qwen3-30B-A3B", 48, 48, 2048, 6144, 32, 4, 128, 151936, 40960,
            experts=128, experts_per_token=8, expert_parameters=3 * 2048 * 768,
        ),
    )
}  # fmt: skip


def load_model(name_or_folder: str, dtype: str = "auto") -> ModelShape:
    """Return a model's shape, by folder or preset. Raises UnknownModelError. `auto` runs everything at 16 bits, FP32
    checkpoints included, as vLLM does."""
    if (Path(name_or_folder) / "config.json").is_file():
        return shape_from_config(name_or_folder, read_config(Path(name_or_folder))).at(dtype)
    if name_or_folder in PRESETS:
        return PRESETS[name_or_folder]
    raise UnknownModelError(
        f"{name_or_folder} is not a local folder and is not a valid model identifier listed on "
        "'https://huggingface.co/models'"
    )
