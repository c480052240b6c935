"""Files that a server shares between its processes."""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Remains:
    """Shared memory segment and ZMQ socket. A clean exit removes them and SIGKILL leaves them behind, as with vLLM."""

    segment: Path
    mapped: mmap.mmap
    path: Path
    listener: socket.socket

    @classmethod
    def create(cls) -> Remains:
        segment = Path("/dev/shm") / f"psm_{uuid.uuid4().hex[:8]}"
        segment.write_bytes(bytes(4096))
        with segment.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)  # in use as vLLM's is: the mapping attributes it after a crash
        path = Path(os.environ.get("VLLM_RPC_BASE_PATH") or tempfile.gettempdir()) / str(uuid.uuid4())
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        return cls(segment, mapped, path, listener)

    def remove(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)
        self.segment.unlink(missing_ok=True)
