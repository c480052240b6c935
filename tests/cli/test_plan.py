from __future__ import annotations

import json
from pathlib import Path

from tests.cli.support import short_search, tuner


def test_plan_shows_everything_and_leaves_nothing(tiny_model: str, tmp_path: Path) -> None:
    ended = tuner("plan", *short_search(tiny_model, tmp_path / "studies", "planned"), "--patience", "30")
    assert ended.returncode == 0, ended.stderr
    words = {line.split()[0] for line in ended.stdout.splitlines() if line and not line.startswith(" ")}
    assert {"study", "model", "vLLM", "limits", "workload", "load", "searched", "default", "starts", "first"} <= words
    assert "max-num-seqs" in ended.stdout
    assert "patience  the search ends after 30 starts without 1 % more QPS" in ended.stdout
    assert "asking" in ended.stderr
    assert not (tmp_path / "studies").exists()


def test_plan_as_json_is_the_plan_that_would_be_saved(tiny_model: str, tmp_path: Path) -> None:
    flags = short_search(tiny_model, tmp_path, "planned")
    ended = tuner("plan", *flags, "--json", "--", "--api-key", "s3cret", "--kv-cache-dtype", "fp8")
    plan = json.loads(ended.stdout)
    assert plan["study"] == "planned"
    assert plan["starts"] == 2
    assert plan["base"]["extra"] == ["--kv-cache-dtype", "fp8"]
    assert "s3cret" not in ended.stdout + ended.stderr
