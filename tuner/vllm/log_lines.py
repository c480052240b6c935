"""Lines of vLLM's log that say where a server stands, and which lines report a failure at all."""

from __future__ import annotations

import re

START_PHASES = (
    ("loading the model", re.compile(r"Starting to load model|Loading weights|Loading safetensors")),
    ("compiling", re.compile(r"Using cache directory: .* for vLLM's torch\.compile|Dynamo bytecode transform")),
    ("measuring memory", re.compile(r"Available KV cache memory|KV cache size")),
    ("capturing CUDA graphs", re.compile(r"Capturing (?:CUDA|cudagraph)|Graph capturing finished")),
    ("warming up", re.compile(r"Warming up model|init engine \(profile")),
    ("opening the port", re.compile(r"Starting vLLM (?:API )?server")),
)
"""Phases of a start, each with the wording that opens it."""

READY = re.compile(r"Application startup complete|Starting vLLM (?:API )?server")
ARGUMENTS = re.compile(r"non-default args: [^\n]*")

# Healthy servers warn with the very words of a failure ("… can cause fd limit errors like [Errno 24] Too many open
# files"), and a logged prompt may quote anything. A failure is an ERROR line or a traceback, which has no level; vLLM
# itself makes the exceptions.
NO_FAILURE = re.compile(
    r"^(?:\([^)\n]*\) )?(?:(?:INFO|WARNING|DEBUG) \d\d-\d\d |(?:\[rank\d+\]:)?\[?[IW]\d{4} )"
    r"(?![^\n]*(?:API server: shutdown triggered|engine core exited unexpectedly|for processes to exit))[^\n]*$",
    re.MULTILINE,
)
EXCEPTION = re.compile(
    r"^(?:\([^)\n]*\) )?(?:(?:ERROR|CRITICAL) [^\]\n]*\] )?"
    r"(?P<line>(?:\w+\.)*\w*(?:Error|Exception)(?:: [^\n]*)?)$",
    re.MULTILINE,
)
CONSEQUENCE = re.compile(
    r"Engine core initialization failed|EngineDeadError|EngineGenerateError|WorkerProc initial"
    r"|Engine core process \S+ died unexpectedly|Process \S+ \(PID: \d+\) died with exit code"
)
