"""vLLM's flags, metrics, variables and log wordings are spelt in tuner/vllm alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TUNER = Path(__file__).resolve().parents[2] / "tuner"
EXEMPT = ("vllm/", "sim/")
"""Rooms that may spell them: vLLM's own, and the stand-in, which imitates vLLM from outside."""

OWN_OPTIONS = ("model", "seed", "max-model-len", "tensor-parallel-size", "tokenizer", "help")
"""Options that `tuner` itself has under the same name; with their dashes they may be spelt anywhere."""

LOG_WORDINGS = (
    "KV cache size", "Available KV cache memory", "Starting vLLM", "EngineCore", "Engine core", "Loading weights",
    "Model loading took", "Maximum concurrency", "torch.compile", "init engine", "Capturing CUDA", "out of memory",
    "less than desired", "non-default args", "cache blocks", "Worker proc", "API server: ",
)  # fmt: skip


def flags() -> frozenset[str]:
    """Every long flag of vLLM 0.32, without dashes."""
    lines = (TUNER / "sim" / "flags.txt").read_text().splitlines()
    declared = (line.split(" | ")[1] for line in lines if not line.startswith("#"))
    return frozenset(name for part in declared for name in re.findall(r"--([a-z][\w-]+)", part))


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """String literals with their lines, parts of f-strings included, docstrings not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for child in ast.iter_child_nodes(node):
            stands_alone = isinstance(node, ast.Expr)
            if isinstance(child, ast.Constant) and isinstance(child.value, str) and not stands_alone:
                yield child.lineno, child.value


def spelt(text: str, known: frozenset[str]) -> str | None:
    """The first thing of vLLM that a string spells. A name of one word counts with its dashes only: it is English."""
    for dashes, name in re.findall(r"(?<![\w-])(--)?([a-z][a-z0-9]*(?:[-_][a-z0-9]+)*)(?![\w-])", text):
        plain = name.replace("_", "-") if dashes else name
        if plain in known and (dashes or "-" in plain) and not (dashes and plain in OWN_OPTIONS):
            return f"{dashes}{name}"
    found = re.search(r"vllm:|VLLM_[A-Z]\w*", text)
    return found[0] if found else next((words for words in LOG_WORDINGS if words in text), None)


@pytest.mark.parametrize(
    ("text", "word"),
    [("max-num-seqs", "max-num-seqs"), ("give --no-enable-lora", "--no-enable-lora"),
     ("--max_num_seqs=3", "--max_num_seqs"),
     ("a seed", None), ("--seed", None), ("my-max-num-seqs", None), ("vllm:num_requests", "vllm:"),
     ("VLLM_API_KEY", "VLLM_API_KEY"), ("GPU KV cache size: 1", "KV cache size")],
)  # fmt: skip
def test_a_spelling_is_recognised(text: str, word: str | None) -> None:
    assert spelt(text, flags()) == word


def test_no_other_room_spells_what_is_vllms() -> None:
    known = flags()
    offenders = [
        f"{path.relative_to(TUNER)}:{line}: {word}"
        for path in sorted(TUNER.rglob("*.py"))
        if not str(path.relative_to(TUNER)).startswith(EXEMPT)
        for line, text in strings(path)
        if (word := spelt(text, known))
    ]
    assert offenders == []
