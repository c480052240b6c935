"""Values → YAML text with a comment on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml

Node = str | int | float | bool | Sequence["Node"] | Mapping[str, "Node"]


def comment(lines: Iterable[str]) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def document(value: Mapping[str, Node]) -> str:
    """Keys in the order given; strings that YAML would read as something else are quoted."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False)
