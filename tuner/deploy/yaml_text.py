"""Values → YAML text with a comment on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml

Node = str | int | float | bool | Sequence["Node"] | Mapping[str, "Node"]


def comment(lines: Iterable[str]) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


class _Dumper(yaml.SafeDumper):
    """Dumper without anchors, which are hard to read and to edit."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def document(value: Mapping[str, Node]) -> str:
    """Write keys in the given order. Strings that YAML would read as something else are quoted."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False
    )
    return text
