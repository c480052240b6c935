"""Checks of a server that the user started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tuner.errors import EnvironmentFaultError, TunerError, UsageError
from tuner.http import control_client
from tuner.load.drive import Watch, drive_closed
from tuner.load.prompts import Prompts, Request, ServerCounter, tokenizer_file
from tuner.load.stream import Failure, RequestSample, Target
from tuner.load.workload import Workload
from tuner.vllm import variables

TIMEOUT_S = 10.0
FIRST_ANSWER_S = 120.0
FIRST_DRAWN = 32
"""Requests among which every kind that matters is found."""


@dataclass(frozen=True, slots=True)
class FoundServer:
    """Server to load. `root` is the model's own name or folder, `max_model_len` its limit per request. None if
    unknown."""

    target: Target
    root: str | None = None
    max_model_len: int | None = None


def find_endpoint(url: str, model: str | None, api_key: str | None, *, insecure: bool = False) -> FoundServer:
    """Read /v1/models. Raises UsageError for an impossible URL or model, EnvironmentFaultError for anything else."""
    base_url = _base_url(url)
    target = Target(base_url, model or "", api_key, insecure=insecure)
    served = _models(target)
    if served is None:
        if model is None:
            raise EnvironmentFaultError(
                f"{base_url}/v1/models is not there", hint="correct --url; or give --model where a server has no list"
            )
        return FoundServer(target)
    names = [str(entry["id"]) for entry in served]
    if model is None and len(names) != 1:
        raise UsageError(f"{base_url} serves {len(names)} models", hint=f"choose with --model: {_listed(names)}")
    if model is not None and model not in names:
        raise UsageError(f"{base_url} does not serve {model!r}", hint=f"it serves {_listed(names)}")
    entry = served[0 if model is None else names.index(model)]
    root, length = entry.get("root"), entry.get("max_model_len")
    return FoundServer(
        replace(target, model=str(entry["id"])),
        root if isinstance(root, str) else None,
        length if isinstance(length, int) and length > 0 else None,
    )


def check_fit(endpoint: FoundServer, workload: Workload) -> None:
    """Check that the longest request and a template fit. Raises UsageError."""
    if endpoint.max_model_len is not None and workload.longest >= endpoint.max_model_len:
        raise UsageError(
            f"workload {workload.name!r} needs {workload.longest} tokens a request, "
            f"the server takes {endpoint.max_model_len}",
            hint="choose a workload with shorter requests, such as random:256,32",
        )


def tokenizer_source(endpoint: FoundServer, given: str | None) -> str:
    """Return the model name for `Prompts.for_model`. Raises UsageError if there is neither."""
    if given is not None:
        path = Path(given).expanduser()
        source = str(path.parent) if path.name == "tokenizer.json" else str(path) if path.is_dir() else given
        if tokenizer_file(source) is None:
            raise UsageError(
                f"there is no tokenizer.json at {given!r}",
                hint="--tokenizer takes the file, the model's folder, or a hub name that is in this machine's cache",
            )
        return source
    for name in (endpoint.target.model, endpoint.root):
        if name is not None and tokenizer_file(name) is not None:
            return name
    try:
        target = endpoint.target
        ServerCounter(target.base_url, target.model, target.api_key, insecure=target.insecure).count(["word"])
    except TunerError as error:
        raise UsageError(
            f"prompts of exact lengths need a tokenizer, and {endpoint.target.base_url}/tokenize counts no tokens",
            hint="give --tokenizer the folder of the served model, or its tokenizer.json",
        ) from error
    return endpoint.target.model


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """Request that failed although it was alone on the server, with the server's own `words`, and a hint."""

    failure: Failure
    words: str
    hint: str


def first_failure(target: Target, prompts: Prompts, watch: Watch | None = None) -> FailedRequest | None:
    """Send one request of each kind, alone. Returns the first failure, since then all of its kind would fail."""
    for request in _kinds(prompts.requests("first", FIRST_DRAWN)):
        samples = drive_closed(target, [request], 1, 0.1, drain_s=FIRST_ANSWER_S, watch=watch)
        for first in samples.requests:
            if first.failure is not None:
                return FailedRequest(first.failure, _what(first), _advice(first, request))
    return None


def check_answer(target: Target, prompts: Prompts) -> None:
    """Raise EnvironmentFaultError if a request alone fails."""
    if (failed := first_failure(target, prompts)) is not None:
        raise EnvironmentFaultError(f"the first request failed: {failed.words}", hint=failed.hint)


def _kinds(requests: Sequence[Request]) -> list[Request]:
    """Choose the shortest request of each set of fields."""
    kinds: dict[frozenset[str], Request] = {}
    for request in sorted(requests, key=lambda request: request.max_tokens):
        kinds.setdefault(frozenset(request.extra_body), request)
    return list(kinds.values())


def _what(first: RequestSample) -> str:
    if first.failure is Failure.SHORTENED:
        return f"{first.output_tokens} tokens came where {first.asked_tokens} were asked for"
    if first.failure is Failure.TIMEOUT:
        return f"no end within {FIRST_ANSWER_S:.0f} s"
    return f"{first.failure_kind}{f': {first.error}' if first.error else ''}"


def _advice(first: RequestSample, request: Request) -> str:
    if first.failure is Failure.SHORTENED:
        return "a server that does not know ignore_eos ends answers on its own: allow it with --natural-stops"
    if first.failure is Failure.NO_USAGE:
        return "the server must answer stream_options.include_usage: output tokens are counted by it"
    if first.status in (401, 403):
        return _KEY_HINT
    if first.status is not None and 400 <= first.status < 500:
        fields = ", ".join(request.extra_body) or "none"
        return (
            f"it was a chat completion of {request.prompt_tokens} + {request.max_tokens} tokens, with the fields "
            f"{fields}; --extra-body takes one out (null) or adds one, --natural-stops does without ignore_eos"
        )
    if "ignore_eos" in request.extra_body and first.failure in (Failure.HTTP, Failure.ERROR_CHUNK):
        return "see the server's log; some models fail when they are kept from ending: allow it with --natural-stops"
    return "see the server's log: it answered one request alone like this"


_TLS_HINT = "this machine does not trust its certificate: name its authority in SSL_CERT_FILE, or give --insecure"
_KEY_HINT = f"set {variables.API_KEY} or OPENAI_API_KEY to the server's key"


def _base_url(url: str) -> str:
    """Normalise a URL, without slash and /v1 at its end. Checks it before any request is sent."""
    base_url = url.strip().rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}", hint="give a URL like http://127.0.0.1:8000") from error
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            "--url takes scheme, host, port and path alone",
            hint=f"a key goes into {variables.API_KEY}, not into the URL",
        )
    _ = Target(base_url, "").address
    return base_url


def _models(target: Target) -> Sequence[Mapping[str, object]] | None:
    """Return the entries of /v1/models. None if the page does not exist."""
    url = f"{target.base_url}/v1/models"
    try:
        with control_client(timeout_s=TIMEOUT_S, api_key=target.api_key, insecure=target.insecure) as client:
            answer = client.get(url)
        if answer.status_code in (404, 405):
            return None
        if not answer.is_success:
            hint = _KEY_HINT if answer.status_code in (401, 403) else "see the server's log"
            raise EnvironmentFaultError(f"{url} answers {answer.status_code} {answer.reason_phrase}", hint=hint)
        found = answer.json()
    except (ValueError, httpx.ProtocolError, httpx.DecodingError) as error:
        raise _nonsense(url) from error
    except httpx.HTTPError as error:
        hint = _TLS_HINT if "CERTIFICATE_VERIFY_FAILED" in str(error) else "start the server first, or correct --url"
        raise EnvironmentFaultError(f"no server answers at {target.base_url}: {error}", hint=hint) from error
    entries = found.get("data") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.get("id") for e in entries):
        raise _nonsense(url)
    return entries


def _nonsense(url: str) -> EnvironmentFaultError:
    return EnvironmentFaultError(
        f"{url} does not answer as an OpenAI-compatible server does", hint="correct --url; it names another program"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) or "none yet"
