"""Workload → fresh prompts with exact token counts. Prefixes are shared only on demand."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import httpx
from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer

from tuner.errors import EnvironmentFaultError, UsageError
from tuner.http import control_client
from tuner.load.recorded import Entry, RecordedFile, Sizes, file_sha256, fitting, is_timed, read_recording
from tuner.load.token_counts import TokenCounter, counted_sizes
from tuner.load.workload import Share, Workload

WORDS = tuple(files("tuner.load").joinpath("words.txt").read_text(encoding="ascii").split())
"""Plain English words. Most are one token in common tokenizers; the code relies on none."""

FEWEST_WORDS = 32
"""Smallest usable vocabulary. With fewer words two prompts could share a whole KV block by chance."""

SEARCH_TRACE = "search"
"""Key of the traffic of every search probe. Other keys are fresh traffic."""


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion. `messages` are (role, content); `prompt_tokens` counts their words without the template.

    `max_tokens` is the exact length of the answer, unless it stops naturally. `extra_body` holds further fields of the
    request body, as they are. One of them is `messages` where a recorded turn is more than a text. `arrival_s` is its
    arrival on the recording's clock, which runs on when the traffic repeats. None if the traffic has no times.
    """

    messages: tuple[tuple[str, str], ...]
    prompt_tokens: int
    max_tokens: int
    extra_body: Mapping[str, object] = field(default_factory=dict)
    natural_stop: bool = False
    arrival_s: float | None = None


class FileCounter:
    """Counter that uses the model's own tokenizer.json."""

    is_stable = True

    def __init__(self, path: Path) -> None:
        self.identity = file_sha256(path)
        self._tokenizer = Tokenizer.from_file(str(path))
        # A saved tokenizer may truncate or pad; counts must not.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(e.ids) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


class ServerCounter:
    """Counter by the server's POST /tokenize, a millisecond a text."""

    is_stable = False

    def __init__(self, base_url: str, model: str, api_key: str | None = None, *, insecure: bool = False) -> None:
        self.identity = f"served/{model}"
        self._url = f"{base_url.rstrip('/')}/tokenize"
        self._model = model
        self._api_key = api_key
        self._insecure = insecure

    def count(self, texts: Sequence[str]) -> list[int]:
        with control_client(timeout_s=30, api_key=self._api_key, insecure=self._insecure) as client:
            return [self._count(client, text) for text in texts]

    def _count(self, client: httpx.Client, text: str) -> int:
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        try:
            return int(client.post(self._url, json=body).raise_for_status().json()["count"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFaultError(
                f"{self._url} does not count tokens: {error}",
                hint="give --model a folder with a tokenizer.json, or start the server with a tokenizer",
            ) from error


def tokenizer_file(model: str) -> Path | None:
    """Find the model's tokenizer.json on this machine. Never downloads."""
    if Path(model).is_dir():
        local = Path(model) / "tokenizer.json"
        return local if local.is_file() else None
    try:
        cached = try_to_load_from_cache(model, "tokenizer.json")
    except ValueError:  # not the shape of a repository name
        return None
    return Path(cached) if isinstance(cached, str) else None


def token_counter(
    model: str, base_url: str | None, api_key: str | None = None, *, insecure: bool = False
) -> TokenCounter:
    """Choose a counter. Raises EnvironmentFaultError if there is neither a tokenizer.json nor a server."""
    if path := tokenizer_file(model):
        return FileCounter(path)
    if base_url is None:
        raise EnvironmentFaultError(
            f"no tokenizer.json for {model!r} on this machine, and no server to ask",
            hint="give --model a folder with a tokenizer.json, or download the model first",
        )
    return ServerCounter(base_url, model, api_key, insecure=insecure)


class Vocabulary:
    """Words whose token counts add up in a text."""

    def __init__(self, costs: Mapping[str, int]) -> None:
        self._costs = dict(costs)
        self._dearest = max(costs.values())
        self._up_to = [[w for w, cost in costs.items() if cost <= limit] for limit in range(self._dearest + 1)]

    def draw(self, rng: random.Random, tokens: int) -> list[str]:
        """Draw random words that sum to exactly `tokens` tokens."""
        words: list[str] = []
        while tokens > 0:
            drawn = rng.choices(self._up_to[min(tokens, self._dearest)], k=max(1, tokens // self._dearest))
            tokens -= sum(map(self._costs.__getitem__, drawn))
            words += drawn
        return words


def vocabulary(counter: TokenCounter, model: str) -> Vocabulary:
    """Select the words with the same count everywhere in a text. Raises EnvironmentFaultError if there are too few,
    or none of one token to fill up with."""
    counts = counter.count([text for word in WORDS for text in (word, f"{word} {word}")])
    costs = {word: one for word, one, two in zip(WORDS, counts[::2], counts[1::2], strict=True) if two == 2 * one > 0}
    if len(costs) >= FEWEST_WORDS and min(costs.values()) == 1:
        found = Vocabulary(costs)
        if counter.count([" ".join(found.draw(random.Random(0), 2000))]) == [2000]:
            return found
    raise EnvironmentFaultError(
        f"the tokenizer of {model!r} splits plain English words in a way that does not add up to exact lengths",
        hint="give --workload a .jsonl file of your own prompts",
    )


class Prompts(ABC):
    """Source of requests. Equal (seed, key) give equal requests in any order of calls; different keys share no
    prompt."""

    @staticmethod
    def for_model(
        workload: Workload,
        model: str,
        seed: int,
        base_url: str | None,
        api_key: str | None = None,
        *,
        insecure: bool = False,
    ) -> Prompts:
        """Build the source. The server at `base_url` counts tokens only if this machine has no tokenizer.json."""
        counter = token_counter(model, base_url, api_key, insecure=insecure)
        if workload.file is not None:
            sha256 = file_sha256(Path(workload.file))
            if sha256 != workload.file_sha256:
                raise UsageError(
                    f"{workload.file} has changed since the study was planned",
                    hint="restore the old file, or choose another name with --study",
                )
            recording = read_recording(Path(workload.file), sha256)
            return RecordedPrompts(workload, recording, counted_sizes(recording, counter), seed)
        return Synthetic(workload, vocabulary(counter, model), seed)

    @abstractmethod
    def requests(self, key: str | int, count: int, repeat: int = 0) -> list[Request]:
        """Return the first `count` requests of `key`. A longer list begins with the shorter one. Another `repeat` of
        a key has the same lengths in the same order. A prefix cache cannot answer it from the repeat before."""


class Synthetic(Prompts):
    """Random words in the lengths of the workload's shares."""

    def __init__(self, workload: Workload, words: Vocabulary, seed: int) -> None:
        self._workload = workload
        self._words = words
        self._seed = seed
        self._weights = [share.weight for share in workload.shares]
        self._prefixes = {
            share.shared_prefix: words.draw(random.Random(f"{seed}/shared"), share.shared_prefix)
            for share in workload.shares
        }

    def requests(self, key: str | int, count: int, repeat: int = 0) -> list[Request]:
        """Return requests whose words differ from repeat to repeat. All repeats share the shared prefixes."""
        return [self._request(f"{self._seed}/{key}/{index}", repeat) for index in range(count)]

    def _request(self, key: str, repeat: int) -> Request:
        rng = random.Random(key)
        (share,) = rng.choices(self._workload.shares, self._weights)
        prompt_tokens = rng.randint(share.prompt.low, share.prompt.high)
        max_tokens = rng.randint(share.output.low, share.output.high)
        own = self._words.draw(random.Random(f"{key}/words-{repeat}"), prompt_tokens - share.shared_prefix)
        return Request(
            messages=(("user", " ".join(self._prefixes[share.shared_prefix] + own)),),
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            extra_body=extra_body(self._workload, share),
            natural_stop=self._workload.natural_stops,
        )


class RecordedPrompts(Prompts):
    """Recorded requests. Their order is drawn for each key, or is their own if they have arrival times.

    A timed recording repeats after one mean gap. The search trace starts at the first request. Every other key
    starts at its own random offset, so confirmation traffic never replays the search's requests at the same times.

    Every level repeats the same texts, so each has its own `cache_salt` (vLLM 0.9 and later). The prefix cache then
    shares within a level what the traffic shares, and nothing across levels.
    """

    def __init__(self, workload: Workload, recording: RecordedFile, sizes: Sizes, seed: int) -> None:
        self._workload = workload
        self._kept = fitting(recording, sizes, None if workload.reading is None else workload.reading.limit)
        self._entries = [recording.entries[index] for index in self._kept]
        self._sizes = sizes
        self._seed = seed
        self._cycle_s = _cycle_s(self._entries)

    def requests(self, key: str | int, count: int, repeat: int = 0) -> list[Request]:
        salted = f"{key}/{repeat}"
        if self._cycle_s is not None:
            start, cycle_s = self._start(key), self._cycle_s
            return [self._timed(salted, place, start + place, cycle_s) for place in range(count)]
        order: list[int] = []
        for turn in range(-(-count // len(self._entries))):
            again = list(range(len(self._entries)))
            random.Random(f"{self._seed}/{key}/{turn}").shuffle(again)
            order += again
        return [self._request(salted, place, index) for place, index in enumerate(order[:count])]

    def _start(self, key: str | int) -> int:
        if key == SEARCH_TRACE:
            return 0
        return random.Random(f"{self._seed}/{key}/start").randrange(1, len(self._entries))

    def _timed(self, key: str, place: int, running: int, cycle_s: float) -> Request:
        turn, index = divmod(running, len(self._entries))
        at_s = turn * cycle_s + (self._entries[index].arrival_s or 0.0) - (self._entries[0].arrival_s or 0.0)
        return replace(self._request(key, place, index), arrival_s=at_s)

    def _request(self, key: str, place: int, index: int) -> Request:
        entry, turn = self._entries[index], place // len(self._entries)
        fields = entry.content
        messages = fields.pop("messages")
        # What the file keeps apart by a salt of its own stays apart.
        own_salt = fields.pop("cache_salt", "")
        salt = hashlib.sha256(f"{self._seed}/{key}/{turn}{own_salt}".encode()).hexdigest()[:16]
        plain = _plain(messages)
        if not plain:
            fields["messages"] = messages
        natural = entry.natural or self._workload.natural_stops
        body = extra_body(self._workload, self._workload.shares[0], {**fields, "cache_salt": salt})
        return Request(
            messages=plain,
            prompt_tokens=int(self._sizes.prompt[self._kept[index]]),
            max_tokens=int(self._sizes.output[self._kept[index]]),
            extra_body={name: value for name, value in body.items() if not (natural and name == "ignore_eos")},
            natural_stop=natural,
        )


def _plain(messages: object) -> tuple[tuple[str, str], ...]:
    """Return (role, content) of messages that are nothing more. Empty if one is more."""
    pairs = []
    for message in messages if isinstance(messages, list) else ():
        if message.keys() != {"role", "content"} or not isinstance(message["content"], str):
            return ()
        pairs.append((message["role"], message["content"]))
    return tuple(pairs)


def _cycle_s(entries: Sequence[Entry]) -> float | None:
    """Return the seconds until the traffic repeats. None if it has no times."""
    first_s, last_s = entries[0].arrival_s, entries[-1].arrival_s
    if first_s is None or last_s is None or not is_timed(entries):
        return None
    return (last_s - first_s) * len(entries) / (len(entries) - 1)


def extra_body(workload: Workload, share: Share, own: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the fields beside model, messages and length, with a source's `own`. Servers refuse fields that they do
    not know, so none is sent with a value that is the default anyway."""
    body: dict[str, object] = dict(own or {})
    if not workload.natural_stops:
        body["ignore_eos"] = True
    if share.thinking:
        body["chat_template_kwargs"] = {"enable_thinking": True}
    if workload.temperature is not None:
        body["temperature"] = workload.temperature
    body |= {name: json.loads(value) for name, value in workload.extra_body}
    return {name: value for name, value in body.items() if value is not None}
