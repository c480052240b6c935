"""Words on a file of recorded traffic, in English and Chinese."""

from __future__ import annotations

from tuner.load.reading import COUNTED, DEFAULT_OUTPUT_TOKENS, REASONS, TIMES, TimesFound, WhyLeftOut

_CHINESE = {
    WhyLeftOut.NOT_JSON: "不是 JSON",
    WhyLeftOut.NO_ROW: "列与表头不一致",
    WhyLeftOut.CUT: "在文件末尾被截断",
    WhyLeftOut.NOT_TEXT: "含有不是文本的字节或转义",
    WhyLeftOut.NOT_AN_OBJECT: "不是 JSON 对象",
    WhyLeftOut.LENGTHS_ONLY: "只有长度，没有文本",
    WhyLeftOut.NO_REQUEST: "既没有提示也没有消息",
    WhyLeftOut.OTHER_API: "属于对话与补全以外的接口",
    WhyLeftOut.EMPTY: "对话或提示为空",
    WhyLeftOut.NO_QUESTION: "回答之前没有用户消息",
    WhyLeftOut.UNKNOWN_ROLE: "含有未知角色的消息",
    WhyLeftOut.NO_TEXT_TURN: "含有没有文本的消息",
    WhyLeftOut.MEDIA: "含有图像、音频或其他文件",
    WhyLeftOut.UNKNOWN_PART: "含有不是文本的内容片段",
    WhyLeftOut.TOKEN_IDS: "提示是 token 编号",
    WhyLeftOut.SEVERAL_PROMPTS: "一行中有多个提示",
    WhyLeftOut.BAD_FIELD: "工具或格式字段的形式未知",
    WhyLeftOut.NO_OUTPUT: "输出长度缺失或不可能",
    WhyLeftOut.FAILED: "录制时已经失败",
    WhyLeftOut.NO_TIME: "时间与其他行不一致",
    WhyLeftOut.TOO_LONG: "超过服务器接受的长度",
}

_TIMES_CHINESE = {
    TimesFound.REPLAYED: "包含到达时间",
    TimesFound.NONE: "没有到达时间",
    TimesFound.ALL_ALIKE: "未使用到达时间：全部相同",
    TimesFound.TOO_FEW: "未使用到达时间：能读取的太少",
}
_COUNTED_CHINESE = {
    "recorded": "个输出长度取自记录",
    "capped": "个取自 max_tokens（可能只是上限）",
    "assumed": f"个未给出：假定为 {DEFAULT_OUTPUT_TOKENS} token",
    "as_chat": "个纯文本提示，各作为一条用户消息发送",
    "tools": "个带有工具",
    "natural": "个可能提前结束（stop、response_format 等）",
    "moved": "个次序颠倒，已排序",
    "mended": "个时间单位不同，已换算",
}

TRAFFIC_TEXTS: dict[str, tuple[str, str]] = {
    **{f"left-out-{why}": (REASONS[why], chinese) for why, chinese in _CHINESE.items()},
    **{f"read-times-{times}": (TIMES[times], chinese) for times, chinese in _TIMES_CHINESE.items()},
    **{f"read-{name}": (f"{{n}} {COUNTED[name]}", f"{{n}} {chinese}") for name, chinese in _COUNTED_CHINESE.items()},
    "env-read": ("traffic read", "读取的流量"),
    "read-rows": ("{requests} of {rows} requests are sent", "{rows} 个请求中发送 {requests} 个"),
    "read-prompt": (
        "prompts: P50 {p50}, P99 {p99}, longest {high} tokens",
        "提示：P50 {p50}，P99 {p99}，最长 {high} token",
    ),
    "read-output": (
        "outputs: P50 {p50}, P99 {p99}, longest {high} tokens",
        "输出：P50 {p50}，P99 {p99}，最长 {high} token",
    ),
    "read-estimated": ("lengths are estimates from bytes", "长度由字节数估计"),
    "read-left-out": ("left out: {n} {why} (first: {first})", "未发送：{n} 个{why}（首个：{first}）"),
}
