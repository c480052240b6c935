"""Text → token ids, by the model folder's tokenizer.json. Without one, tokens are word pieces of at most four
characters.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

PIECE = re.compile(r"\s*\S{1,4}|\s+")
WORDS = (" the", " of", " and", " to", " in", " a", " is", " that", " for", " it", " as", " was", " with", " by", " on")


class TextEncoder:
    """Deterministic encoder. Equal beginnings of texts give (almost always) equal beginnings of ids."""

    def __init__(self, model: str, vocab: int) -> None:
        path = Path(model) / "tokenizer.json"
        self._vocab = vocab
        self._tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else None

    def encode(self, text: str) -> list[int]:
        if self._tokenizer is not None:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return [zlib.crc32(piece.encode()) % self._vocab for piece in PIECE.findall(text)]


def chat_text(messages: Sequence[Mapping[str, object]]) -> str:
    """Render messages as ChatML with the assistant's turn open."""
    turns = [f"<|im_start|>{message.get('role', 'user')}\n{_content(message)}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def _content(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


def block_keys(ids: Sequence[int], block_size: int, salt: str) -> list[Hashable]:
    """Return one key per full block. A key stands for everything before it too, and for the salt."""
    keys: list[Hashable] = []
    previous = zlib.crc32(salt.encode())
    for start in range(0, len(ids) - block_size + 1, block_size):
        previous = hash((previous, *ids[start : start + block_size]))
        keys.append(previous)
    return keys


def word(index: int) -> str:
    """Return the text of an answer's token. Its words mean nothing; only their number matters."""
    return WORDS[index % len(WORDS)]
