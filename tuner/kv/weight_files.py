"""Bytes of a model's weight files."""

from __future__ import annotations

import re
from pathlib import Path

from tuner.kv.config_json import UnknownModelError, as_whole, mapping, read_object

SHARD = re.compile(r"(.+)-\d+-of-\d+\.safetensors")
BESIDE = ("consolidated", "adapter", "lora", "training_args", "optimizer")
"""Beginnings of names of files that hold the same weights in another format, or no weights of the model."""


def weight_file_bytes(folder: Path) -> int:
    """Return the sum that the index states, else the sum of the files of one set. 0 if there are none.

    A folder may hold a second precision (model.fp16.safetensors) or a LoRA beside the model's own files.
    """
    return _index_bytes(folder) or max(_sets(folder).values(), default=0)


def _sets(folder: Path) -> dict[str, int]:
    """Return the bytes of each set of files. One whole model in a file of its usual name stands for all."""
    files = [path for path in folder.glob("*.safetensors") if path.is_file() and not path.name.startswith(BESIDE)]
    sizes = {path.name: path.stat().st_size for path in files}
    if whole := sizes.get("model.safetensors"):
        return {"model": whole}
    sets: dict[str, int] = {}
    for name, size in sizes.items():
        match = SHARD.fullmatch(name)
        family = match[1] if match else "variant" if name.count(".") > 1 else ""
        sets[family] = sets.get(family, 0) + size
    return {"model": sets["model"]} if "model" in sets else sets


def _index_bytes(folder: Path) -> int:
    """Return the bytes that the index of the weight files states, 0 if there is none."""
    try:
        metadata = mapping(read_object(folder / "model.safetensors.index.json"), "metadata")
    except UnknownModelError:
        return 0
    return as_whole(metadata.get("total_size")) or 0
