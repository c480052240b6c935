"""Token counts of recorded traffic. They are kept on disk, since counting may take minutes."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tuner.environment import cache_folder
from tuner.jsonfile import write_atomically
from tuner.load.recorded import Entry, RecordedFile, Sizes

_BATCH_CHARACTERS = 1 << 20
"""Characters that are counted at once. All of a large file would take gigabytes."""

_KEPT_FROM_BYTES = 1 << 20
"""Bytes of prompts from which counts are kept on disk."""


class TokenCounter(Protocol):
    @property
    def identity(self) -> str:
        """Name the tokenizer, so that counts of another are not taken for its own."""
        ...

    @property
    def is_stable(self) -> bool:
        """Return True if the identity stands for the tokenizer's content, on any day."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text alone."""
        ...


_lock = threading.Lock()
_last: dict[str, Sizes] = {}
"""Counts of the file that was counted last, by file and tokenizer."""


def counted_sizes(recording: RecordedFile, counter: TokenCounter) -> Sizes:
    """Count the tokens of all entries, or look them up if that was done before."""
    key = f"{recording.sha256}/{counter.identity}"
    with _lock:
        if key not in _last:
            sizes = (
                _looked_up(recording.entries, counter) if counter.is_stable else _counted(recording.entries, counter)
            )
            _last.clear()
            _last[key] = sizes
        return _last[key]


def _looked_up(entries: Sequence[Entry], counter: TokenCounter) -> Sizes:
    if sum(entry.prompt_bytes for entry in entries) < _KEPT_FROM_BYTES:
        return _counted(entries, counter)
    content = hashlib.sha256(counter.identity.encode())
    for entry in entries:
        content.update(entry.body)
        content.update(f"{entry.output_tokens}/{entry.cap}/{entry.answer}\n".encode())
    path = cache_folder() / "tokens" / f"{content.hexdigest()[:32]}.npy"
    sizes = _kept(path, len(entries))
    if sizes is None:
        sizes = _counted(entries, counter)
        _keep(path, sizes)
    return sizes


def _counted(entries: Sequence[Entry], counter: TokenCounter) -> Sizes:
    prompts: list[int] = []
    outputs: list[int] = []
    for batch in _batches(entries):
        prompts += counter.count([entry.prompt for entry in batch])
        # Only answers that are needed and there: a server asked to count an empty text may refuse.
        answers = [entry.answer for entry in batch if entry.answer]
        counted = iter(counter.count(answers) if answers else ())
        outputs += [entry.output(next(counted) if entry.answer else None) for entry in batch]
    return Sizes(np.asarray(prompts, np.int64), np.asarray(outputs, np.int64), counted=True)


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += entry.prompt_bytes + len(entry.answer or "")
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _kept(path: Path, count: int) -> Sizes | None:
    """Read earlier counts. None if there are none that fit."""
    try:
        found: NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if found.shape != (2, count) or found.dtype != np.int64 or found.min() < 0:
        return None
    return Sizes(found[0], found[1], counted=True)


def _keep(path: Path, sizes: Sizes) -> None:
    data = io.BytesIO()
    np.save(data, np.stack([sizes.prompt, sizes.output]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data.getvalue())
    except OSError:  # a cache that cannot be written costs time alone
        return
