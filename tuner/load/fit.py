"""Recorded traffic for one model: its lengths in tokens, and the rows that its servers accept."""

from __future__ import annotations

from pathlib import Path

from tuner.load.prompts import FileCounter, tokenizer_file
from tuner.load.recorded import estimated_sizes, read_recording
from tuner.load.token_counts import TokenCounter, counted_sizes
from tuner.load.workload import Workload, measured

TEMPLATE_TOKENS = 128
"""Tokens of room for the chat template around a prompt."""


def local_counter(model: str) -> TokenCounter | None:
    """Return the counter of a model whose tokenizer.json is on this machine. None if it is not."""
    path = tokenizer_file(model)
    return None if path is None else FileCounter(path)


def fitted(workload: Workload, counter: TokenCounter | None, most_tokens: int | None) -> Workload:
    """Return the workload with counted lengths, and without the rows of a file that need more than `most_tokens`.

    Without a counter the lengths stay estimates. A workload that is no file is returned as it is. Raises UsageError if
    hardly anything of the file is left.
    """
    if workload.file is None:
        return workload
    recording = read_recording(Path(workload.file), workload.file_sha256)
    sizes = estimated_sizes(recording.entries) if counter is None else counted_sizes(recording, counter)
    limit = None if most_tokens is None else max(0, most_tokens - TEMPLATE_TOKENS)
    return measured(workload, sizes, limit)
