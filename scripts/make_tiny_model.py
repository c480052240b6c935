"""Write a tiny Llama without weights, its tokenizer and its chat template, for `vllm serve --load-format dummy` on a CPU.

Sizes: see DEFAULTS_WHY.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = Path(__file__).resolve().parent.parent / "demo" / "corpus.txt"
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTES = 256

# `enable_thinking` is accepted and changes nothing: this model does not think, and the length of a prompt must not depend on it.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if enable_thinking is defined and enable_thinking %}{% endif %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    max_position: int


def model_config(shape: Shape) -> dict[str, object]:
    """A bfloat16 Llama; token ids 0, 1, 2 are SPECIAL."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_position,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def train_tokenizer(corpus: Path, vocab: int) -> Tokenizer:
    """Byte-level BPE with exactly `vocab` tokens, so that every id the model can emit has a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus.read_text(encoding="utf-8").splitlines(), trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise SystemExit(f"{corpus} yields {tokenizer.get_vocab_size()} tokens, not {vocab}\nhint: a smaller --vocab or a longer corpus")
    return tokenizer


def tokenizer_config(max_position: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_position,
        "chat_template": CHAT_TEMPLATE,
    }


def write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model(folder: Path, shape: Shape) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model_config(shape))
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0})
    write_json(folder / "tokenizer_config.json", tokenizer_config(shape.max_position))
    train_tokenizer(CORPUS, shape.vocab).save(str(folder / "tokenizer.json"))


def arguments() -> tuple[Path, Shape]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8, help="hidden/heads must be a head size of vLLM's CPU attention: 32, 64, 80, 96, 112, 128, …")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--ffn", type=int, default=1408)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--max-position", type=int, default=4096)
    given = parser.parse_args()
    if given.vocab < len(SPECIAL) + BYTES:
        parser.error(f"--vocab must be at least {len(SPECIAL) + BYTES}: every byte is a token")
    shape = Shape(given.hidden, given.layers, given.heads, given.kv_heads, given.ffn, given.vocab, given.max_position)
    return given.folder, shape


def main() -> None:
    folder, shape = arguments()
    write_model(folder, shape)
    print(folder)


if __name__ == "__main__":
    main()
