"""--speculative-config → what speculation adds to the KV cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tuner.candidate import Value
from tuner.vllm import knobs


@dataclass(frozen=True, slots=True)
class Draft:
    """Speculation of a server: `tokens` are drafted a step. With `own_head` the model's own further layers draft them
    (multi-token prediction, MTP)."""

    tokens: int = 0
    own_head: bool = False


def draft(values: Mapping[str, Value]) -> Draft:
    """Read the speculation of a server's flags, in one word or as --speculative-config.method and the like."""
    try:
        given = json.loads(str(values.get(knobs.SPECULATIVE_CONFIG, "{}")))
    except ValueError:
        given = {}
    config = dict(given) if isinstance(given, dict) else {}
    beginning = f"{knobs.SPECULATIVE_CONFIG}."
    config |= {flag.removeprefix(beginning): value for flag, value in values.items() if flag.startswith(beginning)}
    tokens = config.get("num_speculative_tokens")
    return Draft(
        tokens if isinstance(tokens, int) and tokens > 0 else 0,
        str(config.get("method", "")).endswith("mtp") and not config.get("model"),
    )
