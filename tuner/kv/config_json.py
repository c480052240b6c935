"""Reading of a model's config.json: its nesting, and numbers that may be spelled oddly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

MOST = 1 << 40
"""Largest number that is believed. No width, length or count of a model is near it."""

MOST_LAYERS = 10_000

TEXT_MODELS = ("thinker_config", "text_config", "llm_config", "language_config")
"""Keys under which a multimodal model keeps its language model, the outer one first."""

Config = Mapping[str, object]


class UnknownModelError(ValueError):
    """Missing or unknown config.json, as the text says."""


def read_config(folder: Path) -> dict[str, object]:
    """Read config.json, with a multimodal model's language model on top. Raises UnknownModelError."""
    path = folder / "config.json"
    config = read_object(path)
    for key in TEXT_MODELS:
        if isinstance(text := config.get(key), dict):
            config = {**config, **text}
    return config


def read_object(path: Path) -> dict[str, object]:
    """Read a JSON object. Raises UnknownModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownModelError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnknownModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UnknownModelError(f"{path} is not an object")
    return found


def whole(config: Config, *keys: str, default: int | None = None) -> int:
    """Return the first of several spellings as a whole number. Null means the default, as in many models.

    Raises UnknownModelError if it is no number that a model can have.
    """
    key = next((key for key in keys if config.get(key) is not None), keys[0])
    value = config.get(key)
    number = default if value is None else as_whole(value)
    if number is None:
        raise UnknownModelError(f"config.json: {key} should be a whole number, not {_short(value)}")
    return number


def positive(config: Config, key: str) -> int | None:
    """Return a positive whole number. None for everything else."""
    return as_whole(config.get(key)) or None


def as_whole(value: object) -> int | None:
    """Return a whole number from 0 on, also one that is written as 4096.0. None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST:
        return None
    return int(value) if value == int(value) else None


def mapping(config: Config, key: str) -> Config:
    """Return an object of config.json; an empty one if there is none."""
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def listed(config: Config, key: str) -> Sequence[object] | None:
    """Return a list of config.json. None if there is none, or an empty one."""
    value = config.get(key)
    return value if isinstance(value, list) and value else None


def layer_count(config: Config) -> int:
    """Return the decoder's layers. Raises UnknownModelError."""
    kinds = config.get("layers_block_type") or config.get("hybrid_override_pattern")  # some list them and count nothing
    stated = len(kinds) if isinstance(kinds, (list, str)) and kinds else None
    layers = whole(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers", default=stated)
    if not 0 < layers <= MOST_LAYERS:
        raise UnknownModelError(f"config.json: a model of {layers:,} layers")
    return layers


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
