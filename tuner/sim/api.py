"""HTTP layer: vLLM's endpoints, error bodies and streams. Faults act on it."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from tuner.sim.arguments import VERSION
from tuner.sim.engine_loop import EngineDeadError, Stream
from tuner.sim.engine_pool import EnginePool
from tuner.sim.faults import ActiveFaults
from tuner.sim.metrics import MetricsPage
from tuner.sim.tokens import TextEncoder, block_keys, chat_text, word

NATURAL_ANSWER_TOKENS = 180
"""Median answer length without ignore_eos. The length is log-normal (sigma 0.6) and fixed by the prompt."""

STREAM_BREAKS = ("error-chunk", "reset-mid-stream", "truncated-output", "role-only")


class BadRequestError(Exception):
    """Invalid request, answered with vLLM's error body."""

    def __init__(
        self, message: str, status: int = 400, kind: str = "BadRequestError", parameter: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Wish:
    """Parameters of one request, checked and clipped."""

    ids: Sequence[int]
    output_tokens: int
    reason: str
    streaming: bool
    include_usage: bool
    salt: str


def error_body(message: str, status: int, kind: str, parameter: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": parameter, "code": status}}


class Api:
    """Handlers of one server. `strike` runs after every request and carries out the faults that end processes."""

    def __init__(
        self,
        engines: EnginePool,
        encoder: TextEncoder,
        metrics: MetricsPage,
        faults: ActiveFaults,
        served_names: Sequence[str],
        *,
        api_key: str | None,
        log_stats: bool,
        developer_mode: bool,
        strike: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._encoder = encoder
        self._metrics = metrics
        self._faults = faults
        self._names = served_names
        self._api_key = api_key
        self._log_stats = log_stats
        self._developer_mode = developer_mode
        self._strike = strike
        self._config = engines.started.config

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._errors], client_max_size=1 << 28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        if self._developer_mode:
            app.router.add_post("/reset_prefix_cache", self._reset_prefix_cache)
        return app

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        sent = request.headers.get("Authorization")
        if self._api_key is not None and request.path.startswith("/v1") and sent != f"Bearer {self._api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except BadRequestError as error:
            body = error_body(str(error), error.status, error.kind, error.parameter)
            return web.json_response(body, status=error.status)
        except EngineDeadError as error:
            return web.json_response(error_body(str(error), 500, "InternalServerError"), status=500)

    # ---------------------------------------------------------------- small endpoints

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self._engines.dead else 200)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _models(self, request: web.Request) -> web.Response:
        created = int(time.time())
        data = [
            {
                "id": name, "object": "model", "created": created, "owned_by": "vllm", "root": self._names[0],
                "parent": None, "max_model_len": self._config.max_model_len,
            }
            for name in self._names
        ]  # fmt: skip
        return web.json_response({"object": "list", "data": data})

    async def _metrics_text(self, request: web.Request) -> web.Response:
        late = self._faults.get("metrics-late")
        if late is not None:
            await asyncio.sleep(late.number)
        gone = self._faults.get("metrics-gone") and self._faults.signalled
        if gone or self._faults.get("metrics-missing") or not self._log_stats:
            return web.json_response({"detail": "Not Found"}, status=404)
        text = self._metrics.older_text() if self._faults.get("metrics-old") else self._metrics.text()
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        ids = self._ids(body)
        answer = {"count": len(ids), "max_model_len": self._config.max_model_len, "tokens": ids, "token_strs": None}
        return web.json_response(answer)

    async def _reset_prefix_cache(self, request: web.Request) -> web.Response:
        return web.json_response({"success": self._engines.forget_prefixes()})

    # ---------------------------------------------------------------- what is asked for

    async def _body(self, request: web.Request) -> dict[str, object]:
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            raise BadRequestError(f"[{{'type': 'json_invalid', 'msg': 'JSON decode error: {error}'}}]") from None
        if not isinstance(body, dict):
            raise BadRequestError("[{'type': 'model_attributes_type', 'msg': 'Input should be a valid dictionary'}]")
        model = body.get("model")
        if model is not None and model not in self._names:
            raise BadRequestError(f"The model `{model}` does not exist.", 404, "NotFoundError", "model")
        return body

    def _ids(self, body: Mapping[str, object]) -> Sequence[int]:
        messages, prompt = body.get("messages"), body.get("prompt")
        if isinstance(messages, list) and messages:
            return self._encoder.encode(chat_text([m for m in messages if isinstance(m, Mapping)]))
        if isinstance(prompt, str) and prompt:
            return self._encoder.encode(prompt)
        if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
            return prompt
        raise BadRequestError("[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]")

    def _wish(self, body: Mapping[str, object], default_tokens: int | None) -> Wish:
        ids, longest = self._ids(body), self._config.max_model_len
        if len(ids) >= longest:
            raise BadRequestError(
                f"This model's maximum context length is {longest} tokens. However, your prompt contains {len(ids)} "
                "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of "
                "the input prompt.",
                parameter="input_tokens",
            )
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or default_tokens
        if not isinstance(asked, int):
            asked = longest - len(ids)
        if asked > longest:
            raise BadRequestError(
                f"max_tokens={asked} cannot be greater than max_model_len={longest}. "
                "Please request fewer output tokens.",
                parameter="max_tokens",
            )
        allowed = max(1, min(asked, longest - len(ids)))
        natural = allowed if body.get("ignore_eos") is True else _natural_length(ids)
        fewest = body.get("min_tokens")
        natural = max(natural, fewest) if isinstance(fewest, int) else natural
        options = body.get("stream_options")
        return Wish(
            ids=ids,
            output_tokens=min(allowed, natural),
            reason="stop" if natural < allowed else "length",
            streaming=body.get("stream") is True,
            include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
            salt=str(body.get("cache_salt") or ""),
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, Chat(self._names[0]), None)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, Completion(self._names[0]), 16)

    async def _generate(self, request: web.Request, form: Form, default_tokens: int | None) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        body = await self._body(request)
        if self._faults.get("refuse-ignore-eos") and "ignore_eos" in body:
            raise BadRequestError("Unexpected fields in the request: {'ignore_eos'}")
        wish = self._wish(body, default_tokens)
        self._faults.requests += 1
        self._strike()
        leak = self._faults.get("ttft-leak")
        if leak is not None:
            await asyncio.sleep(leak.number / 1000 * self._faults.requests)
        keys = block_keys(wish.ids, self._config.block_size, wish.salt) if self._config.enable_prefix_caching else ()
        stream = await self._engines.submit(len(wish.ids), wish.output_tokens, keys, sent_s, wish.reason)
        try:
            if wish.streaming:
                return await self._stream(request, form, wish, stream)
            finished = False
            while not finished:
                _, finished = await stream.take()
            return web.json_response(form.whole(wish, stream))
        finally:
            if not stream.finished:
                self._engines.abort(stream)

    # ---------------------------------------------------------------- streams

    async def _stream(self, request: web.Request, form: Form, wish: Wish, stream: Stream) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        faults = self._faults
        number = faults.requests
        breaks = {name for name in STREAM_BREAKS if faults.every(name)}
        stalls = faults.get("stall") if faults.every("stall", 10) else None
        bursts = faults.get("bursts")
        at_least = int(bursts.number) if bursts is not None else self._config.stream_interval
        first, finished = True, False
        try:
            while not finished:
                count, finished = await stream.take(1 if first else at_least)
                text = "".join(word(number + index) for index in range(count))
                opening = form.opening() if first else b""
                if "role-only" in breaks:
                    await response.write(opening + form.chunk("", wish.reason))
                    break
                await response.write(opening + form.chunk(text, wish.reason if finished else None))
                if first and stalls is not None:
                    await asyncio.sleep(stalls.number)
                first = False
                if breaks and (finished or stream.generated >= 4):
                    return await self._break(request, response, breaks)
        except EngineDeadError as error:
            body = json.dumps(error_body(str(error), 500, "InternalServerError")).encode()
            await response.write(b"data: " + body + b"\n\ndata: [DONE]\n\n")
            return response
        if wish.include_usage:
            await response.write(form.usage(len(wish.ids), stream.generated))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    @staticmethod
    async def _break(request: web.Request, response: web.StreamResponse, breaks: set[str]) -> web.StreamResponse:
        if "error-chunk" in breaks:
            body = json.dumps(error_body("Internal server error", 500, "InternalServerError")).encode()
            await response.write(b"data: " + body + b"\n\ndata: [DONE]\n\n")
        elif "reset-mid-stream" in breaks and request.transport is not None:
            request.transport.abort()
        return response


class Form:
    """JSON layout of an answer. Everything that all chunks of a stream share is written once."""

    object_name = ""
    id_prefix = ""

    def __init__(self, model: str) -> None:
        self._created = int(time.time())
        self._id = self.id_prefix + uuid.uuid4().hex
        self._model = model
        head = {"id": self._id, "object": self.object_name, "created": self._created, "model": model}
        self._head = "data: " + json.dumps(head)[:-1]

    def opening(self) -> bytes:
        """Return the chunk that precedes the first token. Empty if the form has none."""
        return b""

    def choice(self, text: str) -> str:
        """Render the text of a chunk's choice, without braces."""
        raise NotImplementedError

    def message(self, text: str) -> dict[str, object]:
        """Build the text of a whole answer's choice."""
        raise NotImplementedError

    def chunk(self, text: str, reason: str | None) -> bytes:
        end = f'"{reason}"' if reason else "null"
        choice = f'{{"index": 0, {self.choice(text)}, "logprobs": null, "finish_reason": {end}}}'
        return f'{self._head}, "choices": [{choice}]}}\n\n'.encode()

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        usage = json.dumps(_usage(prompt_tokens, completion_tokens))
        return f'{self._head}, "choices": [], "usage": {usage}}}\n\n'.encode()

    def whole(self, wish: Wish, stream: Stream) -> dict[str, object]:
        text = "".join(word(index) for index in range(stream.generated))
        choice = {"index": 0, **self.message(text), "logprobs": None, "finish_reason": wish.reason}
        return {
            "id": self._id,
            "object": self.object_name.removesuffix(".chunk"),
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": _usage(len(wish.ids), stream.generated),
        }


class Chat(Form):
    object_name = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def opening(self) -> bytes:
        delta = '"delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null'
        return f'{self._head}, "choices": [{{"index": 0, {delta}}}]}}\n\n'.encode()

    def choice(self, text: str) -> str:
        return f'"delta": {{"content": {json.dumps(text)}}}'

    def message(self, text: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": text}}


class Completion(Form):
    object_name = "text_completion"
    id_prefix = "cmpl-"

    def choice(self, text: str) -> str:
        return f'"text": {json.dumps(text)}'

    def message(self, text: str) -> dict[str, object]:
        return {"text": text}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "total_tokens": total, "completion_tokens": completion_tokens}


def _natural_length(ids: Sequence[int]) -> int:
    """Return the answer's length without ignore_eos. Equal prompts give equal lengths."""
    generator = random.Random(zlib.crc32(repr(ids).encode()))
    return max(1, round(generator.lognormvariate(math.log(NATURAL_ANSWER_TOKENS), 0.6)))
