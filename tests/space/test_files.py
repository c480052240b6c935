from __future__ import annotations

from pathlib import Path

import pytest

from tuner.errors import UsageError
from tuner.space.files import presets, read_space
from tuner.space.parameter import Kind


def test_every_shipped_space_reads() -> None:
    assert {"default", "chat", "rag", "blackwell-5090"} <= set(presets())
    for name in presets():
        assert read_space(name).parameters


def test_a_space_that_is_a_file_reads_as_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "parameters:\n  max-num-seqs: {log-int: [8, 64]}\n  max-model-len: {int: [workload, 4096]}\n"
        "  enable-chunked-prefill: flag\nbaseline: {block-size: 32}\nenv: {NCCL_P2P_DISABLE: '1'}\n"
    )
    space = read_space(str(path)).needs_at_least(1000)
    assert [(p.flag, p.kind) for p in space.parameters] == [
        ("max-num-seqs", Kind.LOG_INT),
        ("max-model-len", Kind.INT),
        ("enable-chunked-prefill", Kind.FLAG),
    ]
    assert space.parameters[1].low == 1000
    assert space.default.values == (("block-size", 32),)
    assert space.env == (("NCCL_P2P_DISABLE", "1"),)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("parameter: {}\n", 1, "unknown key 'parameter'"),
        ("parameters:\n  a: {log-int: [8, 4]}\n", 2, "empty"),
        ("parameters:\n  a: {log-int: [0, 4]}\n", 2, "empty"),
        ("parameters:\n  a: {logint: [8, 4]}\n", 2, "unknown key 'logint'"),
        ("parameters:\n  a: {int: [8]}\n", 2, "a range is"),
        ("parameters:\n  a: {int: [1, 2], float: [1, 2]}\n", 2, "exactly one kind"),
        ("parameters:\n  a: {int: [1.5, 2]}\n", 2, "not a number for int"),
        ("parameters:\n  a: {float: [.nan, 2]}\n", 2, "plain value"),
        ("parameters:\n  --a: flag\n", 2, "dashes"),
        ("parameters:\n  a: {choice: []}\n", 2, "no choices"),
        ("parameters:\n  a: flag\n  a: flag\n", 3, "stands twice"),
        ("parameters:\n  a: {int: [1, 2], multiple-of: 0}\n", 2, "multiple-of"),
        ("fixed: {}\n", 1, "no key 'parameters'"),
        ("- a\n", 1, "a mapping belongs here"),
        ("a: [\n", 2, "not YAML"),
    ],
)
def test_an_error_names_file_line_and_key(tmp_path: Path, text: str, line: int, word: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_space(str(path))
    assert f"{path}:{line}" in caught.value.message
    assert word in caught.value.message
    assert caught.value.hint


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UsageError) as caught:
        read_space("defualt")
    assert "default" in caught.value.hint
