from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tuner.errors import EnvironmentFaultError
from tuner.vllm.flags import installed_vllm, parse_flags, split_command

HELP = """usage: vllm serve [model_tag] [options]

SchedulerConfig:
  --max-num-seqs MAX_NUM_SEQS
                        Maximum number of sequences. See --not-a-flag for more.
  --enable-chunked-prefill, --no-enable-chunked-prefill
                        If True, prefill requests can be chunked.
  -tp, --tensor-parallel-size TENSOR_PARALLEL_SIZE
  --max-num-partial-prefills N
"""


def script(path: Path, body: str) -> tuple[str, ...]:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (str(path), "serve")


def test_only_options_count_not_prose_that_mentions_one() -> None:
    assert parse_flags(HELP) == (
        "enable-chunked-prefill",
        "max-num-partial-prefills",
        "max-num-seqs",
        "no-enable-chunked-prefill",
        "tensor-parallel-size",
    )


def test_a_version_that_refuses_partial_prefills_has_them_left_out(tmp_path: Path) -> None:
    say = f"case \"$*\" in *--version*) echo 0.20.2;; *) cat <<'E'\n{HELP}E\n;; esac"
    found = installed_vllm(script(tmp_path / "fake-vllm", say), tmp_path / "cache")
    assert found.version == "0.20.2"
    assert "max-num-partial-prefills" not in found.flags


def test_a_vllm_that_exits_at_help_is_an_environment_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFaultError) as caught:
        installed_vllm(script(tmp_path / "broken", "echo 'ImportError: libcuda.so.1' >&2; exit 1"), tmp_path)
    assert "libcuda.so.1" in caught.value.message


def test_a_command_that_is_not_vllm_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFaultError) as caught:
        installed_vllm(script(tmp_path / "other", "echo hello"), tmp_path)
    assert "max-num-seqs" in caught.value.message


@pytest.mark.parametrize("text", ["", "no-such-program-anywhere serve", "vllm 'serve"])
def test_a_command_that_cannot_run_is_refused_at_once(text: str) -> None:
    with pytest.raises(EnvironmentFaultError):
        split_command(text)


@pytest.mark.real_vllm
def test_the_installed_vllm_tells_its_flags_and_the_second_time_from_the_cache(
    vllm_command: tuple[str, ...], tmp_path: Path
) -> None:
    first = installed_vllm(vllm_command, tmp_path)
    assert {"max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization"} <= set(first.flags)
    (cached,) = tmp_path.glob("*.json")
    before = cached.stat().st_mtime_ns
    assert installed_vllm(vllm_command, tmp_path) == first
    assert cached.stat().st_mtime_ns == before
