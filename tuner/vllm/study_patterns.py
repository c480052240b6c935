"""Messages by which vLLM refuses what every start of a study shares: the model, its format, the passed arguments."""

from __future__ import annotations

import re

from tuner.vllm.cause import Fault
from tuner.vllm.pattern import OWN_CONFIG, Pattern

_R = re.compile
_S = Fault.STUDY

STUDY_PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        "remote-code", _S,
        _R(
            r"trust_remote_code=True|(?:set|pass|use|with|enable) [`'\"]?(?:--)?trust[_-]remote[_-]code"
            r"|requires? you to execute the (?:configuration|model|modeling|tokenizer) file"
            r"|contains custom code which must be"
        ),
        "The model brings code of its own, which vLLM runs only if it is allowed.", "add: -- --trust-remote-code",
    ),
    Pattern(
        "model-unsupported", _S,
        _R(
            r"Model architectures? \[?[^\n]*? (?:are|is) not supported|does not recognize this architecture"
            r"|No model architectures are specified|has no vLLM implementation|Cannot find model module"
            r"|Unknown GGUF model|There is no module or parameter named|Unrecognized (?:configuration class|model in)"
            r"|model type [`'\"]?[\w-]+[`'\"]? (?:is not supported|but)|not a valid model architecture"
            r"|Following weights were not initialized from checkpoint|architecture \S+ is not supported"
            rf"|(?!{OWN_CONFIG})'\w*Config' object has no attribute|No module named '?transformers_modules"
            r"|[Uu]nknown RoPE scaling|Attempted to load weight|size mismatch for "
            r"|does not support (?:the )?[`'\"]?\w+[`'\"]? (?:task|runner|API)|is not a multimodal model"
        ),
        "This vLLM does not know the model's architecture.", "use a newer vLLM or another model",
    ),
    Pattern(
        "dtype-unsupported", _S,
        _R(
            r"Bfloat16 is only supported on GPUs|dtype [\w.]+ is not supported"
            r"|does not support (?:dtype )?(?:b?float16|bf16)"
        ),
        "This GPU does not compute in the model's number format.", "add: -- --dtype half",
    ),
    Pattern(
        "fp8-unsupported", _S,
        _R(
            r"fp8e4nv (?:data type is )?not supported|(?i:fp8[^\n]{0,80}not supported (?:on|in|by|for) (?:this"
            r"|the current|CUDA arch|CUDA|GPU|Ampere|your|compute))"
            r"|(?i:kv[_ -]cache[_ -]dtype)[^\n]{0,60}not supported|_scaled_mm is only supported on"
            r"|type fp8\w+ not supported|FP8[^\n]{0,60}(?:requires|only supported on)"
            r"|No compiled cutlass_scaled_mm|cutlass_scaled_mm[^\n]* not "
        ),
        "This GPU has no FP8 of the kind that the model or the KV cache asks for.",
        "use another --kv-cache-dtype or a model that is not in FP8",
    ),
    Pattern(
        "quantization-unsupported", _S,
        _R(
            r"quantization method \S+ is not supported for the current GPU"
            r"|Quantization scheme is not supported for|[Uu]nknown quantization method"
            r"|quantization is currently not supported|Min(?:imum)?\.? capability:"
            r"|does not match the quantization (?:method )?(?:specified|argument)|[Ii]nvalid quantization"
            r"|quantization method \S+ (?:is not supported|does not)|not supported for quantization method"
            r"|[Nn]o (?:kernel|backend)[^\n]{0,60}(?:quantiz|NvFp4|NVFP4|MXFP4)|(?:NVFP4|MXFP4|NvFp4"
            r"|FP4)[^\n]{0,60}(?:requires|not supported|only supported)"
            r"|Failed to find a kernel that can implement|BitsAndBytes[^\n]{0,60}not supported"
            r"|is not supported by any (?:MoE|kernel|backend)|Cannot find the config file for \w+"
        ),
        "The model's quantization does not run on this GPU with this vLLM.", "use another model or another GPU",
    ),
    Pattern(
        "no-attention-backend", _S,
        _R(
            r"No valid attention backend|is not valid for this configuration|[Ii]nvalid attention backend"
            r"|[Uu]nsupported attention backend|Head size \d+ is not supported|head_size \d+ is not supported"
            r"|FlashAttention only supports|Unsupported FA version|FlashMLA[^\n]{0,60}only supported"
            r"|Sinks are only supported|does not support head[_ ]size|attention backend[^\n]{0,60} not supported"
        ),
        "vLLM has no attention kernel for this model on this GPU.",
        "leave --attention-backend to vLLM, or use another model or GPU",
    ),
    Pattern(
        "kernel-too-large", _S,
        _R(r"OutOfResources|out of resource: (?:shared memory|registers|tensor memory)|\bvmem\b"),
        "A kernel of vLLM needs more on-chip memory than this GPU has.", "use a newer vLLM, another model or another "
        "GPU",
    ),
    Pattern(
        "kv-connector", _S,
        _R(
            r"Unsupported (?:kv )?connector|issubclass\(connector_cls|connector_module_path"
            r"|[Uu]nknown (?:kv )?connector|KV ?[Cc]onnector[^\n]{0,60}(?:not supported|does not support"
            r"|not found)"
        ),
        "This vLLM does not know the KV connector.", "correct --kv-transfer-config in the words after --",
    ),
    Pattern(
        "too-few-gpus", _S,
        _R(r"World size \((?P<world>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)"),
        "The launch wants {world} GPUs and sees {gpus}.", "lower --tensor-parallel-size or give more --gpus",
    ),
    Pattern(
        "too-few-gpus", _S,
        _R(
            r"number of required (?:GPUs|\w+s) exceeds the total number of available|invalid device ordinal"
            r"|Invalid device id|[Tt]ensor parallel size \(\d+\) (?:cannot be|is) (?:larger|greater)"
            r"|local rank \d+ is out of (?:bounds|range)|(?:than|exceeds?"
            r"|equal to) (?:the )?(?:number of (?:visible|available) (?:devices|GPUs)|max local gpu count)"
            r"|Error setting CUDA_VISIBLE_DEVICES|Cannot provide a placement group|not enough (?:GPUs|devices)"
            r"|hipErrorInvalidDevice\b|cudaErrorInvalidDevice\b"
            r"|Not enough (?:resources to allocate|total available nodes)|--device-ids (?:index|provides)"
            r"|is out of range for \w+=|assigned_physical_gpu_ids"
        ),
        "The launch wants more GPUs than there are.", "lower --tensor-parallel-size or give more --gpus",
    ),
    Pattern(
        "experts-not-divisible", _S,
        _R(
            r"experts?\w*(?:=\d+)?[^\n]{0,40} (?:must|should) be divisible by|experts[^\n]{0,80} not divisible"
            r"|% ep_size|divisible by (?:ep_size|expert.parallel)"
        ),
        "The model's experts do not divide among the GPUs of expert parallelism.",
        "choose another --tensor-parallel-size, or leave out --enable-expert-parallel",
    ),
    Pattern(
        "parser-unknown", _S,
        _R(
            r"[Ii]nvalid (?:tool call|reasoning) parser|(?:tool|reasoning) parser[^\n]{0,40} (?:not found"
            r"|not registered)|Reasoning parser [^\n]* not found|chat template[^\n]{0,160}(?:failed to be opened"
            r"|looks like a file path)|jinja2\.exceptions\.|--enable-[\w-]+ requires --[\w-]+-parser"
        ),
        "vLLM does not know a parser or a template of the passed arguments.", "correct the words after --",
    ),
    Pattern(
        "lora-unsupported", _S,
        _R(r"LoRA rank \d+ is greater than|does not support LoRA|LoRA[^\n]{0,60}not supported"
           r"|max_(?:cpu_)?lora\w+|expected target modules"),
        "vLLM refuses the LoRA arguments.", "correct the words after --",
    ),
    Pattern(
        "speculative-unsupported", _S,
        _R(
            r"(?i:speculative|draft|spec[_ ]decod\w*|eagle3?|mtp)[^\n]{0,100}(?:not supported|unsupported"
            r"|does not support|must (?:be|have)|expects|requires|not a valid argument)"
            r"|draft_tensor_parallel_size"
        ),
        "vLLM refuses the speculative configuration.", "correct --speculative-config in the words after --",
    ),
)  # fmt: skip

STUDY_CLASSES: tuple[Pattern, ...] = (
    Pattern(
        "stray-words", _S, _R(r"error: unrecognized arguments: (?P<words>(?!--?[A-Za-z])[^\n]*)"),
        "The passed arguments hold words that belong to no flag: {words}", "correct the words after --",
    ),
)  # fmt: skip

_PLAIN = r"(?:\w+\.)*\w*(?:Key|Assertion|Value|Index|Attribute|Type|Name|Validation|NotImplemented)Error"

UNSUPPORTED = Pattern(
    "unsupported", _S,
    _R(
        r"NotImplementedError|(?:Value|Runtime|Assertion|Attribute|Type|Validation)Error: [^\n]*(?:"
        r"[Nn]ot (?:yet )?(?:been )?(?:supported|implemented|available for)|[Uu]nsupported(?! operand)"
        r"|(?:does not|doesn't|cannot|do not) support|KV cache manager is disabled"
        r"|(?:is|are) only (?:supported|available|implemented)|only supports?\b"
        r"|No available kernel|(?:requires|needs) (?:GPUs? (?:with|of)|(?:compute )?capability|SM ?\d|--\w)"
        r"|(?:Unknown|Invalid|Unrecognized) [^\n]*(?:[Vv]alid|[Aa]vailable|[Ss]upported) (?:options|values|choices))"
    ),
    "This vLLM does not support what every start of the study asks for: {line}",
    "correct the words after --, or use another vLLM, model or GPU",
)  # fmt: skip
"""Refusal of a new wording that says that something is not supported."""

NOT_BUILT = Pattern(
    "model-unsupported", _S, _R(rf"^(?:{_PLAIN}|RuntimeError)"),
    "This vLLM cannot build the model from its files: {line}",
    "use another vLLM or another form of the model",
)  # fmt: skip
"""Meaning of an exception of a new wording that comes while the model is built and filled with its weights."""

NOT_READ = Pattern(
    "model-unsupported", _S, _R(rf"^{_PLAIN}"),
    "This vLLM does not accept the model, or what every start passes: {line}",
    "correct the words after --, or use another vLLM or another form of the model",
)  # fmt: skip
"""The same for exceptions that only wrong data or code raises."""
