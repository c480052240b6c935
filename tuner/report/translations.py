"""Every word of the page, in English and Chinese. What a study recorded (log lines, hints, notes) stays as it was."""

# ruff: noqa: E501  a sentence stays on one line, so that the two languages can be compared

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Language(StrEnum):
    ENGLISH = "en"
    CHINESE = "zh"


@dataclass(frozen=True, slots=True)
class Words:
    """`words("key")` and `words("key", name=value)`; a key that is not in the table is a KeyError."""

    language: Language

    def __call__(self, key: str, /, **values: object) -> str:
        text = TABLE[key][0 if self.language is Language.ENGLISH else 1]
        return text.format_map(_Texts(values)) if values else text

    def load(self, text: str) -> str:
        """A load as `measurement.Load` writes it ("64 concurrent"), in this language."""
        number, _, unit = text.partition(" ")
        keys = {"concurrent": "load-closed", "requests/s": "load-open"}
        return self(keys[unit], n=number) if unit in keys else text

    def arrivals(self, text: str) -> str:
        """Arrivals as `load.arrivals.Arrivals` writes them ("Poisson"), in this language."""
        recorded = text == "arrivals as recorded"
        return self("arrivals-recorded") if recorded else self("arrivals-drawn", kind=text)


class _Texts(dict[str, object]):
    def __init__(self, values: Mapping[str, object]) -> None:
        super().__init__({name: str(value) for name, value in values.items()})


TABLE: dict[str, tuple[str, str]] = {
    # --- the first screen
    "title": ("vLLM tuning report: {study}", "vLLM 调优报告：{study}"),
    "not-complete": (
        "The search is not over: this is the state of {updated}.",
        "搜索尚未结束：以下为 {updated} 时的状态。",
    ),
    "no-result": ("No start has finished yet.", "尚无任何一次启动完成。"),
    "sentence-winner": (
        "{gain} QPS over the default at P99 TTFT {ttft} ({limits}), {sure}; {tail}.",
        "QPS 比默认配置 {gain}，P99 TTFT {ttft}（{limits}），{sure}；{tail}。",
    ),
    "sentence-only": (
        "{qps} where the default {lack}, at P99 TTFT {ttft} ({limits}), {sure}; {tail}.",
        "{qps}（默认配置{lack}），P99 TTFT {ttft}（{limits}），{sure}；{tail}。",
    ),
    "sentence-open-winner": (
        "Sustains {qps} QPS{accuracy} ({arrivals}), {gain} over the default at P99 TTFT {ttft} ({limits}), {sure}; {tail}.",
        "可持续 {qps} QPS{accuracy}（{arrivals}），比默认配置 {gain}，P99 TTFT {ttft}（{limits}），{sure}；{tail}。",
    ),
    "sentence-open-only": (
        "Sustains {qps} QPS{accuracy} ({arrivals}), where the default {lack}, at P99 TTFT {ttft} ({limits}), {sure}; {tail}.",
        "可持续 {qps} QPS{accuracy}（{arrivals}；默认配置{lack}），P99 TTFT {ttft}（{limits}），{sure}；{tail}。",
    ),
    "sentence-keep": (
        "Keep the default: nothing beat its {qps} by more than the noise; {tail}.",
        "保留默认配置：没有候选配置显著超过它的 {qps}；{tail}。",
    ),
    "sentence-nothing": (
        "No candidate kept {limits} without preemption; {tail}.",
        "没有候选配置在无抢占的情况下满足 {limits}；{tail}。",
    ),
    "sure-fresh": ("confirmed in {n} fresh starts", "经 {n} 次全新启动确认"),
    "sure-not": ("not confirmed by a fresh start yet", "尚未经全新启动确认"),
    "tail": ("{starts} starts, {time}, {refused} refused", "共启动 {starts} 次，用时 {time}，其中 {refused} 次被拒绝"),
    "launch": ("Launch command", "启动命令"),
    "launch-note": (
        "The recorded launch of trial {trial}. start.sh beside this file does the same in the background and waits until the server is ready.",
        "第 {trial} 次启动的原始命令。同目录下的 start.sh 会在后台执行同样的启动并等待服务就绪。",
    ),
    "launch-secrets": ("Set these in the environment first: {names}.", "请先在环境变量中设置：{names}。"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "copy-failed": ("Press Ctrl+C", "请按 Ctrl+C"),
    "beside": ("Winner beside default", "最优配置与默认配置"),
    "only-default": ("The default", "默认配置"),
    "winner": ("winner", "最优"),
    "default": ("default", "默认"),
    "change": ("change", "变化"),
    "vllm-default": ("vLLM's default configuration", "vLLM 默认配置"),
    "default-lacks": (
        "The default {lack} ({reasons}); these are figures of it all the same.",
        "默认配置{lack}（{reasons}），此处仍列出其测量值。",
    ),
    "lack-breaks-limits": ("breaks the limits", "不满足限制"),
    "lack-does-not-start": ("does not start", "无法启动"),
    "lack-dies-under-load": ("dies under load", "在负载下崩溃"),
    "lack-not-measured": ("could not be measured", "未能测得有效结果"),
    # --- rows of the comparison
    "row-qps": ("QPS", "QPS"),
    "row-qps-range": ("QPS over its starts", "各次启动的 QPS 范围"),
    "row-p99": ("P99 TTFT, worst start", "P99 TTFT（最差一次启动）"),
    "row-p99-bounds": ("P99 TTFT, 95 % bounds", "P99 TTFT 的 95 % 置信界"),
    "row-p50": ("P50 TTFT", "P50 TTFT"),
    "row-tpot": ("P50 TPOT", "P50 TPOT"),
    "row-e2e": ("P99 end to end", "P99 端到端延迟"),
    "row-tokens": ("output tokens/s", "输出 tokens/s"),
    "row-saturation": ("QPS of a closed loop that keeps it full", "闭环满载时的 QPS"),
    "row-load": ("at load", "负载"),
    "row-preemptions": ("preemptions", "抢占次数"),
    "row-failed": ("failed requests", "失败请求"),
    "row-requests": ("requests behind the P99", "P99 所依据的请求数"),
    "row-kv-peak": ("KV cache use, peak", "KV 缓存使用峰值"),
    "row-starts": ("starts measured", "测量的启动次数"),
    "row-cost-tokens": ("cost per million output tokens", "每百万输出 token 成本"),
    "row-cost-requests": ("cost per 1,000 requests", "每千次请求成本"),
    "row-flags": ("flags", "参数"),
    "flags-differ": ("Flags that differ", "不同的参数"),
    "flags-all": ("Flags", "参数"),
    "flag-absent": ("vLLM's default", "vLLM 默认"),
    "off": ("off", "关"),
    "on": ("on", "开"),
    "starts-fresh": ("{n}, fresh", "{n}（全新启动）"),
    "starts-chose": ("{n}, of the search", "{n}（搜索中的启动）"),
    # --- sections
    "cautions": ("Cautions", "注意事项"),
    "no-cautions": ("Nothing was seen that makes these numbers less sure.", "未发现会降低数据可信度的情况。"),
    "best-title": ("Best so far", "迄今最佳"),
    "best-note": (
        "Every start at the time when its outcome was known. What has no figures lies on the strip above. Fresh starts that confirm a candidate are drawn but do not move the line.",
        "每次启动按得出结果的时间绘制。没有测量值的启动位于上方的条带中。用于确认的全新启动会画出，但不影响折线。",
    ),
    "ttft-title": ("QPS against P99 TTFT", "QPS 与 P99 TTFT"),
    "ttft-note": (
        "One mark a start: its best level within the limits, else the level closest to them. The strip above holds the starts without figures, by trial number.",
        "每个标记为一次启动：取满足限制的最佳负载级别，否则取最接近限制的级别。上方条带为没有测量值的启动（按序号排列）。",
    ),
    "curve-title": ("Load curves", "负载曲线"),
    "curve-note": (
        "A line for each start with several levels, a single mark for a fresh start at one level. Bars are 95 % bounds of the P99. Shapes are outcomes as above.",
        "多级别的启动画为折线，只有一个级别的全新启动画为单个标记。误差棒为 P99 的 95 % 置信界。形状含义同上。",
    ),
    "why-title": ("Why: what limits the winner", "原因：限制最优配置的因素"),
    "why-note": (
        "Read from samples and from means over a level. A sign, not a proof: change one thing and measure again.",
        "依据采样值与各级别的均值得出，是迹象而非证明：请只改一项再测量。",
    ),
    "why-none": ("No single limit shows in what was observed.", "从观测数据中看不出单一的限制因素。"),
    "why-binds": ("{limit} reads as the limit.", "限制因素看来是{limit}。"),
    "why-at": ("Counted level: {at}. Next level offered: {beyond}.", "计入的级别：{at}。下一个测试级别：{beyond}。"),
    "none": ("none", "无"),
    "limit": ("limit", "限制"),
    "reading": ("reading", "判断"),
    "evidence": ("what was seen", "观测"),
    "try-next": ("what to try", "建议"),
    "telemetry-title": ("Telemetry of winner and default", "最优配置与默认配置的遥测"),
    "telemetry-note": (
        "One start of each, all its load levels one after the other, from the first sample.",
        "各取一次启动，按先后包含其全部负载级别，从第一个采样点开始。",
    ),
    "telemetry-none": ("There is no telemetry file for these starts.", "这些启动没有遥测文件。"),
    "weights-title": ("Which flags mattered", "哪些参数重要"),
    "weights-note": (
        "Share of the variance of QPS ranks that differs between groups of like values (Kruskal-Wallis, chance taken off), over feasible measured trials. The search tried some values more than others, so this describes what was tried, not cause.",
        "不同取值组之间 QPS 秩方差的占比（Kruskal-Wallis，已扣除偶然性），仅含满足限制的实测启动。搜索对取值的采样并不均匀，因此这里描述的是尝试结果，而非因果关系。",
    ),
    "weights-few": (
        "Too few feasible trials to say which flag mattered ({n}; at least {enough} are needed).",
        "满足限制的启动太少（{n} 次，至少需要 {enough} 次），无法判断参数的重要性。",
    ),
    "slices-title": ("QPS by flag", "各参数与 QPS"),
    "slices-note": (
        "Feasible measured trials only; nothing is imputed. The star is the winner's value.",
        "仅含满足限制的实测启动，没有任何插补值。星号为最优配置的取值。",
    ),
    "refused-title": ("Starts that failed", "失败的启动"),
    "refused-none": ("Every start got ready and stayed up.", "所有启动均已就绪并保持运行。"),
    "refused-note": (
        "By cause, with the log's own words and what the search learnt from them.",
        "按原因归类，附日志原文以及搜索从中学到的内容。",
    ),
    "cause": ("cause", "原因"),
    "count": ("starts", "次数"),
    "log-line": ("log line", "日志"),
    "learnt": ("learnt", "学到的约束"),
    "hint": ("hint", "提示"),
    "rules-title": ("Rules learnt", "学到的规则"),
    "rules-note": (
        "A candidate beyond all limits of a rule was not started: vLLM would refuse it for the same reason. {n} were spared a start; none of them has a figure anywhere in this report.",
        "同时落入一条规则全部范围的候选配置不再启动：vLLM 会因相同原因拒绝。共省去 {n} 次启动，这些候选在本报告中没有任何数据。",
    ),
    "rule": ("not started", "不再启动"),
    "taught-by": ("taught by", "来源"),
    "taught-by-trial": ("trial {trial}", "第 {trial} 次启动"),
    "spared": ("starts spared", "省去的启动"),
    "kv-capacity": (
        "by its log, the KV cache would not hold one request of max-model-len",
        "据其日志，KV 缓存容不下一个 max-model-len 长度的请求",
    ),
    "withdrawn": ("withdrawn: trial {trial} started", "已撤销：第 {trial} 次启动成功"),
    "timeline-title": ("Timeline", "时间线"),
    "timeline-note": ("Share of the time of all GPU groups: {shares}.", "所有 GPU 组的时间占比：{shares}。"),
    "timeline-starts": ("Time until a server was ready: {times}.", "服务就绪用时：{times}。"),
    "start-cold": ("{time} where vLLM compiled (median of {n})", "vLLM 需编译时 {time}（{n} 次的中位数）"),
    "start-warm": (
        "{time} with the code in its compile cache (median of {n})",
        "命中编译缓存时 {time}（{n} 次的中位数）",
    ),
    "start-other": ("{time} (median of {n})", "{time}（{n} 次的中位数）"),
    "trials-title": ("Every start", "全部启动"),
    "trials-show": ("Show the table of {n} starts", "显示 {n} 次启动的表格"),
    "environment-title": ("Measured on, and how to repeat it", "测量环境与复现方法"),
    "repeat": ("The same search again:", "再次运行同样的搜索："),
    "trial": ("trial", "启动"),
    "trials": ("trials", "次启动"),
    "role": ("role", "角色"),
    "outcome": ("outcome", "结果"),
    "group": ("GPU group", "GPU 组"),
    "preemptions": ("preemptions", "抢占"),
    "words": ("words", "说明"),
    "nothing-yet": ("Nothing to draw yet.", "暂无数据可绘制。"),
    "needs-script": ("The figures need JavaScript; the tables do not.", "图表需要 JavaScript，表格不需要。"),
    # --- figures
    "axis-hours": ("hours since the first start", "自首次启动起的小时数"),
    "axis-minutes": ("minutes since the first start", "自首次启动起的分钟数"),
    "axis-qps": ("QPS (req/s)", "QPS（req/s）"),
    "axis-p99": ("P99 TTFT (ms)", "P99 TTFT（ms）"),
    "axis-load": ("offered load", "负载"),
    "load-closed": ("{n} concurrent", "并发 {n}"),
    "load-open": ("{n} requests/s", "每秒 {n} 个请求"),
    "axis-explained": ("% of the variance of QPS ranks", "QPS 秩方差占比（%）"),
    "axis-seconds": ("seconds", "秒"),
    "best-so-far": ("best so far", "迄今最佳"),
    "no-figures": ("no figures", "无测量值"),
    "trend": ("rank correlation with QPS", "与 QPS 的秩相关"),
    "curve-qps": ("QPS over load", "QPS 随负载变化"),
    "curve-ttft": ("P99 TTFT over load", "P99 TTFT 随负载变化"),
    "channel-kv": ("KV cache use (%)", "KV 缓存使用率（%）"),
    "channel-running": ("running requests", "运行中的请求"),
    "channel-waiting": ("waiting requests", "等待中的请求"),
    "channel-prefix": ("prefix cache hits (% of prompt tokens)", "前缀缓存命中（占提示 token 的 %）"),
    "channel-gpu-util": ("GPU utilisation (%)", "GPU 利用率（%）"),
    "channel-gpu-memory": ("GPU memory (GiB)", "显存（GiB）"),
    "channel-gpu-power": ("GPU power (W)", "GPU 功耗（W）"),
    "channel-gpu-temperature": ("GPU temperature (°C)", "GPU 温度（°C）"),
    "channel-host-cpu": ("host CPU (%)", "主机 CPU（%）"),
    "channel-server-cores": ("CPU cores used by the server", "服务端占用的 CPU 核数"),
    "channel-client-cores": ("CPU cores used by the load generator", "压测端占用的 CPU 核数"),
    # --- names of values
    "outcome-feasible": ("feasible", "满足限制"),
    "outcome-infeasible": ("infeasible", "超出限制"),
    "outcome-undecided": ("undecided", "未定"),
    "outcome-invalid": ("invalid", "无效"),
    "outcome-behind": ("behind the best", "落后于当前最佳"),
    "outcome-refused": ("refused", "启动被拒"),
    "outcome-died": ("died", "运行中崩溃"),
    "outcome-infrastructure": ("machine's fault", "环境故障"),
    "outcome-interrupted": ("interrupted", "被中断"),
    "role-default": ("default", "默认"),
    "role-seed": ("seed", "初始点"),
    "role-search": ("search", "搜索"),
    "role-check": ("all groups at once", "各组同时运行"),
    "role-confirm": ("fresh start", "确认"),
    "phase-start": ("start", "启动"),
    "phase-warm-up": ("warm-up", "预热"),
    "phase-measure": ("measure", "测量"),
    "phase-stop": ("stop", "停止"),
    "phase-idle": ("idle", "空闲"),
    # --- cautions
    "caution-client-bound": ("the load generator was the bottleneck", "压测端是瓶颈"),
    "caution-few-requests": ("few requests", "请求数偏少"),
    "caution-throttled": ("the GPU was throttled", "GPU 降频"),
    "caution-foreign-process": ("another process used the GPU", "其他进程占用 GPU"),
    "caution-drift": ("the figures drifted during the level", "测量期间数值漂移"),
    "caution-host-busy": ("the host was busy", "主机繁忙"),
    "caution-metrics-missing": ("the server's metrics were missing", "缺少服务端指标"),
    "caution-unread": ("a file could not be read and is left out", "文件无法读取，已略过"),
    "caution-not-fresh": (
        "the starts behind the winner's figures also chose it: they flatter it",
        "最优配置的数据来自参与选择的启动，结果偏乐观",
    ),
    "caution-not-fresh-next": ("confirm it with fresh starts", "请用全新启动确认"),
    "caution-one-start": (
        "one fresh start only: the spread between starts is not known",
        "仅有一次全新启动：启动之间的差异未知",
    ),
    "caution-one-start-next": ("plan more confirmation starts", "请增加确认启动次数"),
    "caution-where": ("{who}, trial {trial}, {load}", "{who}，启动 {trial}，{load}"),
    # --- why
    "limit-load": ("The load that was offered", "所施加的负载"),
    "limit-client": ("The load generator", "压测端"),
    "limit-kv": ("KV cache", "KV 缓存"),
    "limit-sequences": ("max-num-seqs", "max-num-seqs"),
    "limit-tokens": ("The step's token budget", "每步 token 预算"),
    "limit-compute": ("Compute", "算力"),
    "reading-binds": ("binds", "构成限制"),
    "reading-near": ("near", "接近"),
    "reading-clear": ("clear", "未触及"),
    "reading-unknown": ("not observed", "未观测"),
    "seen-nothing": ("nothing was observed", "没有观测数据"),
    "seen-load-ended": (
        "{load} was the highest load offered and kept the limits: the server may carry more",
        "{load} 是施加的最高负载且满足限制：服务端可能还有余量",
    ),
    "seen-load-beyond": (
        "a higher load ({beyond}) was offered and is accounted for below",
        "已施加更高负载（{beyond}），见下",
    ),
    "seen-client-bound": ("the load generator was flagged as the bottleneck", "压测端被标记为瓶颈"),
    "seen-client": ("load generator at {share} of one core", "压测端占用单核的 {share}"),
    "seen-kv": ("KV use peaked at {peak} at {load}", "{load} 时 KV 使用峰值 {peak}"),
    "seen-kv-preempted": (
        "{n} preemptions at {load}, KV use peaked at {peak}",
        "{load} 时抢占 {n} 次，KV 使用峰值 {peak}",
    ),
    "seen-sequences": (
        "running peaked at {running} of {limit}, {waiting} waiting on average, at {load}",
        "{load} 时运行峰值 {running}/{limit}，平均等待 {waiting}",
    ),
    "seen-sequences-default": (
        "running peaked at {running} at {load}; the limit is left to vLLM's default",
        "{load} 时运行峰值 {running}；上限由 vLLM 默认决定",
    ),
    "seen-tokens": (
        "{waiting} requests waited on average at {load} while sequences and KV cache were free: budget or prefill speed, telemetry cannot tell the two apart",
        "{load} 时平均有 {waiting} 个请求等待，而序列数与 KV 缓存均有余量：可能是预算或预填充速度，遥测无法区分",
    ),
    "seen-tokens-other": (
        "{waiting} requests waited on average at {load}, for another limit above",
        "{load} 时平均有 {waiting} 个请求等待，原因是上面的其他限制",
    ),
    "seen-tokens-clear": ("{waiting} requests waited on average at {load}", "{load} 时平均有 {waiting} 个请求等待"),
    "seen-compute": (
        "from {before} to {load} the load grew by {more}, QPS by {gain}; {busy}",
        "从 {before} 到 {load} 负载增加 {more}，QPS 变化 {gain}；{busy}",
    ),
    "seen-compute-one": ("one level only; {busy}", "仅有一个级别；{busy}"),
    "busy-gpu": ("GPU busy {share} of the time", "GPU 忙碌时间占比 {share}"),
    "busy-host": ("host CPU at {share}", "主机 CPU {share}"),
    "next-load": ("offer higher levels to the same configuration", "对同一配置施加更高负载"),
    "next-client": ("run the load from another machine or with more processes", "改用另一台机器或更多进程施压"),
    "next-kv": (
        "more KV cache: a higher gpu-memory-utilization, an FP8 KV cache, quantized weights, a larger tensor-parallel size; or fewer sequences",
        "增加 KV 缓存：提高 gpu-memory-utilization、使用 FP8 KV 缓存、量化权重、增大张量并行；或减少序列数",
    ),
    "next-sequences": ("raise max-num-seqs while the KV cache lasts", "在 KV 缓存允许时提高 max-num-seqs"),
    "next-tokens": (
        "double max-num-batched-tokens; if TTFT does not fall, prefill is compute-bound",
        "将 max-num-batched-tokens 加倍；若 TTFT 不降，则预填充受算力限制",
    ),
    "next-compute": (
        "quantized weights, a larger tensor-parallel size, or more replicas behind a balancer",
        "量化权重、增大张量并行，或在负载均衡后增加副本",
    ),
    # --- environment
    "env-model": ("model", "模型"),
    "env-digest": ("sha256 of its config.json", "config.json 的 sha256"),
    "env-vllm": ("vLLM", "vLLM"),
    "env-tuner": ("tuner", "tuner"),
    "env-gpus": ("GPUs", "GPU"),
    "env-driver": ("driver", "驱动"),
    "env-host": ("host", "主机"),
    "env-cpu": ("CPU", "CPU"),
    "env-memory": ("memory", "内存"),
    "env-kernel": ("kernel", "内核"),
    "env-python": ("Python", "Python"),
    "env-workload": ("workload", "负载类型"),
    "env-share": (
        "{weight} of requests: prompt {prompt} tokens, output {output} tokens",
        "{weight} 的请求：提示 {prompt} token，输出 {output} token",
    ),
    "env-limits": ("limits", "限制"),
    "env-levels": ("load levels", "负载级别"),
    "env-level-time": (
        "{levels} concurrent, {time} each after {warm_up} of warm-up",
        "并发 {levels}，每级 {time}，预热 {warm_up}",
    ),
    "arrivals-drawn": ("{kind} arrivals", "{kind} 到达"),
    "arrivals-recorded": ("arrivals as recorded", "按记录的时间到达"),
    "env-open-loop": (
        "open loop, {arrivals}: rates searched with {time} each, claims of {traces} × {claim} or longer, after {warm_up} of warm-up",
        "开环，{arrivals}：搜索时每个速率 {time}，确认为 {traces} × 至少 {claim}，预热 {warm_up}",
    ),
    "env-space": ("search space", "搜索空间"),
    "env-seed": ("seed", "随机种子"),
    "env-groups": ("GPU groups", "GPU 组"),
    "env-dropped": ("not searched", "未搜索"),
    "env-created": ("planned at", "计划时间"),
    "env-finished": ("last update", "最后更新"),
    # --- compare
    "compare-title": ("{a} beside {b}", "{a} 与 {b} 对比"),
    "compare-differs": ("What differs between the two studies", "两个研究的差异"),
    "compare-same": (
        "Same environment, workload, limits and load levels: the figures may be compared.",
        "环境、负载、限制和级别均相同：数据可比较。",
    ),
    "compare-not": (
        "These differ, so the figures compare the two set-ups as wholes and not the configurations alone:",
        "以下内容不同，因此比较的是两套整体设置，而不仅仅是配置：",
    ),
    "compare-winners": ("The two winners", "两个最优配置"),
    "compare-flags": ("Flags of the winners", "最优配置的参数"),
    "written-by": (
        "Written by tuner {version} from the files in this study's folder. Nothing is loaded from elsewhere.",
        "由 tuner {version} 根据研究目录中的文件生成，不加载任何外部资源。",
    ),
}
