"""Values → YAML text with a comment on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml

Node = str | int | float | bool | Sequence["Node"] | Mapping[str, "Node"]


def comment(lines: Iterable[str]) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


class Shared(dict[str, "Node"]):
    """Mapping that is written once, at its first place, and named `&server` there. Others refer to it."""


class Merge(str):
    """YAML's key `<<`: the entries of another mapping, under the own ones."""


class Block(str):
    """Text of several lines, which is written as it is."""


class _Dumper(yaml.SafeDumper):
    """Dumper with no anchor but that of `Shared`. Others are hard to read and to edit."""

    def ignore_aliases(self, data: object) -> bool:
        return not isinstance(data, Shared)

    def generate_anchor(self, node: object) -> str:
        return "server"


_Dumper.add_representer(Shared, lambda dumper, data: dumper.represent_dict(data.items()))
_Dumper.add_representer(Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|"))
_Dumper.add_representer(Merge, lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:merge", "<<"))


def document(value: Mapping[str, Node]) -> str:
    """Write keys in the given order. Strings that YAML would read as something else are quoted."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False
    )
    return text
