"""Write a tiny Llama (no weights), its tokenizer and chat template for `vllm serve --load-format dummy`.

Reasons for these sizes, on two CPU cores:
- hidden 128 x 12 layers, thin and deep: a step costs about 15 ms of Python and operator calls even with few requests,
  so throughput rises with the batch as it does on a GPU: 19, 29, 36 requests/s at 16, 32, 64 concurrent (32-96 tokens
  in, 32-64 out). The engine is busy, not the API server or the client, so launch flags move the results.
  With 64-192 tokens in, from 16 to 64 concurrent: this shape 15 to 25 requests/s, hidden 256 x 4 layers 21 to 22.
- 2 heads of 64, because CPU attention knows head sizes 32, 64, 80, 96, 112, 128 and up.
- float32: a CPU without bfloat16 instructions falls back to a path that is six times slower. vLLM turns float32 into
  bfloat16 unless `--dtype float32` is given.
- 12 KiB of KV cache a token; max_position 2048 then needs 24 MiB, and a smaller cache is refused at start-up.
- vocab 4096: the softmax stays cheap, every id has a text.
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

# `enable_thinking` is accepted and changes nothing: the length of a prompt must not depend on it.
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
    """Return the config of a float32 Llama; token ids 0, 1, 2 are SPECIAL."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
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
    """Train a byte-level BPE with exactly `vocab` tokens, so that every id the model can emit has a text."""
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
    size = tokenizer.get_vocab_size()
    if size != vocab:
        raise SystemExit(f"{corpus} yields {size} tokens, not {vocab}\nhint: a smaller --vocab or a longer corpus")
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
    parser = argparse.ArgumentParser(description="A tiny Llama for `vllm serve --load-format dummy --dtype float32`.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--ffn", type=int, default=352)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--max-position", type=int, default=2048)
    given = parser.parse_args()
    if given.vocab < len(SPECIAL) + BYTES:
        parser.error(f"--vocab must be at least {len(SPECIAL) + BYTES}: every byte is a token")
    if given.hidden % given.heads or given.heads % given.kv_heads:
        parser.error("--heads must divide --hidden, and --kv-heads must divide --heads")
    shape = Shape(given.hidden, given.layers, given.heads, given.kv_heads, given.ffn, given.vocab, given.max_position)
    return given.folder, shape


def main() -> None:
    folder, shape = arguments()
    write_model(folder, shape)
    print(folder)


if __name__ == "__main__":
    main()
