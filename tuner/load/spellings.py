"""Names that logs and data sets give to the parts of a request, in snake_case. The first of several counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache


def spelled(level: Mapping[str, object]) -> dict[str, object]:
    """Return an object with its names in snake_case, without what is null or no number (pandas' missing value)."""
    found: dict[str, object] = {}
    for key, value in level.items():
        if value is not None and value == value:
            name = snake(str(key))
            if name == key or name not in found:
                found[name] = value
    return found


@lru_cache(maxsize=1 << 14)
def snake(key: str) -> str:
    """Write maxTokens, Max-Tokens and @MAX TOKENS as max_tokens."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).strip("_").lower()


CONVERSATION_KEYS = ("messages", "conversations", "conversation", "turns")
PROMPT_KEYS = (
    "prompt", "text", "texts", "question", "instruction", "query", "input", "inputs", "text_input", "input_text",
    "user_prompt", "user_message", "user_input", "human",
)  # fmt: skip
PARTIAL_KEYS = ("question", "instruction", "query", "input")
"""Prompts that a text beside them belongs to: `input` to an instruction (Alpaca), `context` to any (Dolly, SQuAD)."""

HISTORY_KEYS = ("history", "chat_history")
"""Turns before a prompt: a conversation, or pairs of question and answer (LLaMA-Factory, ChatGLM)."""

SYSTEM_KEYS = ("system", "system_prompt", "system_instruction", "instructions")
ANSWER_KEYS = (
    "response", "output", "answer", "completion", "generated_text", "choices", "outputs", "response_body",
    "response_payload", "resp_payload", "response_text", "output_text", "text_output", "response_message",
    "model_output", "model_response", "assistant",
)  # fmt: skip
WHOLE_BODY_KEYS = ("body", "request_body", "payload", "raw_payload", "req_payload", "request_payload",
                   "proxy_server_request", "model_input", "request_json")  # fmt: skip
BODY_KEYS = (*WHOLE_BODY_KEYS, "request", "kwargs", "input", "inputs", "row")
"""Keys around a request: OpenAI Batch, evalscope, AIPerf, LiteLLM, Langfuse. Of the first ones all fields are sent."""

PARAMETER_KEYS = (
    "model_parameters", "optional_params", "parameters", "sampling_params", "extra_body", "params", "options",
    "invocation_params", "generation_config", "inference_config",
)  # fmt: skip
MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios", "image_url")

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bing", "chatgpt", "bard", "claude", "bot", "ai", "model", "chatbot"), "assistant"
    ),
    "function_call": "assistant",
    **dict.fromkeys(("tool", "observation", "ipython", "function_response"), "tool"),
    **{role: role for role in ("system", "developer", "function")},
}
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "file",
               "input_file", "document")  # fmt: skip
TURN_FIELDS = ("name", "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning")
"""Fields of a conversation's turn that are part of a request. The rest describes the data set."""

OUTPUT_KEYS = (
    "completion_tokens", "output_tokens", "output_length", "output_len", "output_tokens_count", "output_token_count",
    "num_output_tokens", "generated_tokens", "num_generated_tokens", "response_tokens", "completion_length",
    "output_sequence_length", "candidates_token_count", "eval_count", "usage_completion_tokens", "usage_output_tokens",
    "gen_ai_usage_output_tokens", "gen_ai_usage_completion_tokens",
)  # fmt: skip
CAP_KEYS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens", "n_predict", "num_predict")
USAGE_KEYS = ("usage", "usage_details", "usage_object", "token_usage", "usage_metadata", "metrics", "stats",
              "tokens")  # fmt: skip
LENGTH_KEYS = (
    "input_length", "input_tokens", "input_len", "input_sequence_length", "prompt_tokens", "prompt_len",
    "num_prefill_tokens", "hash_ids", "context_tokens", "request_tokens",
)  # fmt: skip
OTHER_APIS = re.compile(
    r"/(?:embeddings?|moderations?|v?\d*/?rerank|score|pooling|classify|audio/\w+|images/\w+)/?(?:\?.*)?$"
    r"|^a?(?:embedding|moderation|rerank|speech|transcription|image_generation|image_edit)$"
)
"""URLs, and LiteLLM's call types, of requests that have no answer in tokens."""

FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("tools", "response_format"), object),
    **dict.fromkeys(
        ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "repetition_penalty",
         "length_penalty"), (int, float),
    ),
    **dict.fromkeys(
        ("n", "top_logprobs", "seed", "top_k", "truncate_prompt_tokens", "prompt_logprobs", "priority", "best_of",
         "thinking_token_budget"), int,
    ),
    **dict.fromkeys(
        ("parallel_tool_calls", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens",
         "add_generation_prompt", "continue_final_message", "add_special_tokens", "include_reasoning", "echo",
         "use_beam_search"), bool,
    ),
    **dict.fromkeys(("functions", "stop_token_ids", "bad_words", "allowed_token_ids", "guided_choice"), list),
    **dict.fromkeys(
        ("logit_bias", "prediction", "chat_template_kwargs", "structured_outputs", "vllm_xargs"), dict
    ),
    **dict.fromkeys(
        ("user", "reasoning_effort", "verbosity", "guided_regex", "guided_grammar", "chat_template", "cache_salt",
         "suffix"), str,
    ),
    "stop": (str, list),
    "tool_choice": (str, dict),
    "function_call": (str, dict),
    "guided_json": (str, dict),
    "logprobs": (bool, int),
}  # fmt: skip
"""Fields of a chat completion, OpenAI's and vLLM's, with their types. A row may hold them beside data about itself."""

COMPLETION_ONLY = ("logprobs", "echo", "suffix", "best_of", "use_beam_search")
"""Fields whose meaning differs, or which are unknown, where a prompt is sent as a chat."""

OWN_FIELDS = frozenset((
    *CONVERSATION_KEYS, *PROMPT_KEYS, *SYSTEM_KEYS, *ANSWER_KEYS, *BODY_KEYS, *PARAMETER_KEYS, *CAP_KEYS, *OUTPUT_KEYS,
    "usage", "model", "stream", "stream_options", "stop_sequences", "min_tokens", "ignore_eos",
))  # fmt: skip
"""Fields of a wrapped body that tuner sets itself or reads elsewhere."""

ENDS_EARLY = ("stop", "stop_token_ids", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
              "guided_grammar")  # fmt: skip
CHOICES = {"auto": "auto", "any": "required", "required": "required", "none": "none"}
"""Choices of a tool that have a name alone, Anthropic's and Mistral's too."""
