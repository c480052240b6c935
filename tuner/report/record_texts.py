"""Texts for values that a study recorded, in English and Chinese."""

# ruff: noqa: E501  a sentence stays on one line, so that the two languages can be compared

from __future__ import annotations

from tuner.vllm import knobs

RECORD_TEXTS: dict[str, tuple[str, str]] = {
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
    "role-earlier": ("from the earlier study", "来自先前的研究"),
    "role-search": ("search", "搜索"),
    "role-check": ("all groups at once", "各组同时运行"),
    "role-confirm": ("fresh start", "确认"),
    "role-experiment": ("experiment", "排查"),
    "phase-start": ("start", "启动"),
    "phase-warm-up": ("warm-up", "预热"),
    "phase-measure": ("measure", "测量"),
    "phase-wait": ("wait for quiet", "等待安静"),
    "phase-stop": ("stop", "停止"),
    "phase-idle": ("idle", "空闲"),
    "load-closed": ("{n} concurrent", "并发 {n}"),
    "load-open": ("{n} requests/s", "每秒 {n} 个请求"),
    "arrivals-poisson": ("Poisson arrivals", "Poisson 到达"),
    "arrivals-gamma": ("gamma, shape {shape} arrivals", "gamma 到达（形状 {shape}）"),
    "arrivals-constant": ("Constant arrivals", "等间隔到达"),
    "arrivals-recorded": ("arrivals as recorded", "按记录的时间到达"),
    "lack-breaks-limits": ("breaks the limits", "不满足限制"),
    "lack-does-not-start": ("does not start", "无法启动"),
    "lack-dies-under-load": ("dies under load", "在负载下崩溃"),
    "lack-not-measured": ("could not be measured", "未能测得有效结果"),
    # --- cautions
    "caution-client-bound": ("the load generator was the bottleneck", "压测端是瓶颈"),
    "caution-client-bound-next": (
        "give it a core of its own, or see with `tuner bench --self-check` what it can do here",
        "为它单独留一个核，或用 `tuner bench --self-check` 查看其上限",
    ),
    "caution-few-requests": ("few requests", "请求数偏少"),
    "caution-few-requests-next": ("measure longer levels", "延长每级的测量时间"),
    "caution-throttled": ("the GPU was throttled", "GPU 降频"),
    "caution-throttled-next": (
        "look at power limit and cooling (`nvidia-smi -q -d PERFORMANCE`); a cooler GPU measures more",
        "检查功耗上限与散热（`nvidia-smi -q -d PERFORMANCE`）；温度更低时数值会更高",
    ),
    "caution-foreign-process": ("another process used the GPU", "其他进程占用 GPU"),
    "caution-foreign-process-next": (
        "end what else runs on these GPUs, or choose others with --gpus",
        "结束这些 GPU 上的其他进程，或用 --gpus 另选 GPU",
    ),
    "caution-drift": ("the figures drifted during the level", "测量期间数值漂移"),
    "caution-drift-next": (
        "warm up longer, or measure longer: this level was not steady",
        "延长预热或测量时间：该级别尚未稳定",
    ),
    "caution-host-busy": ("the host was busy", "主机繁忙"),
    "caution-host-busy-next": (
        "end other processes, or pin the server and the load to cores of their own",
        "结束其他进程，或将服务端与压测端绑定到各自的核",
    ),
    "caution-metrics-missing": ("the server's metrics were missing", "缺少服务端指标"),
    "caution-metrics-missing-next": (
        f"start vLLM without --{knobs.DISABLE_LOG_STATS}; preemptions cannot be ruled out",
        f"启动 vLLM 时不要使用 --{knobs.DISABLE_LOG_STATS}；无法排除抢占",
    ),
    "sign-cpu-share": ("it used {value} of its core", "占用其 CPU 核的 {value}"),
    "sign-lag-ms": ("its P99 lag was {value}", "P99 调度延迟 {value}"),
    "sign-late-ms": ("it sent {value} behind its schedule at P99", "P99 比计划晚发 {value}"),
    "sign-completed": (
        "{value} requests completed; a P99 has an upper bound from {needed} on",
        "完成 {value} 个请求；至少 {needed} 个才有 P99 上界",
    ),
    "sign-throttle-reason": ("GPU {gpu}: {value}", "GPU {gpu}：{value}"),
    "sign-process-id": ("GPU {gpu}: process {value}", "GPU {gpu}：进程 {value}"),
    "sign-first-half-ms": ("median TTFT {value} in the first half", "前半段 TTFT 中位数 {value}"),
    "sign-second-half-ms": ("{value} in the second half", "后半段 {value}"),
    "sign-foreign-cores": ("other processes used {value} cores", "其他进程占用 {value} 个核"),
    "sign-no-metrics": ("/metrics did not answer", "/metrics 没有响应"),
    "sign-no-preemption-counter": ("/metrics has no preemption counter", "/metrics 没有抢占计数器"),
    "throttle-power-cap": ("power cap", "功耗上限"),
    "throttle-hardware-slowdown": ("hardware slowdown", "硬件降频"),
    "throttle-software-thermal-slowdown": ("software thermal slowdown", "软件温控降频"),
    "throttle-hardware-thermal-slowdown": ("hardware thermal slowdown", "硬件温控降频"),
    "throttle-power-brake": ("power brake", "外部功耗制动"),
    "caution-unread": ("a file could not be read and is left out", "文件无法读取，已略过"),
    "caution-not-fresh": (
        "the starts behind the winner's figures also chose it: they flatter it",
        "最优配置的数据来自参与选择的启动，结果偏乐观",
    ),
    "caution-not-fresh-next": ("confirm it with fresh starts", "请用全新启动确认"),
    "caution-not-confirmed": (
        "the best candidate's gain was not confirmed, so the default is kept",
        "最佳候选配置的提升未获确认，因此保留默认配置",
    ),
    "caution-not-confirmed-next": ("search again while the machine is quiet", "请在机器空闲时重新搜索"),
    "caution-one-start": (
        "one fresh start only: the spread between starts is not known",
        "仅有一次全新启动：启动之间的差异未知",
    ),
    "caution-one-start-next": ("plan more confirmation starts", "请增加确认启动次数"),
    "caution-length": (
        "servers accept {tokens} tokens only, which is what the workload needs: production would refuse longer requests",
        "服务器仅接受 {tokens} 个 token（即该负载所需长度）：生产环境会拒绝更长的请求",
    ),
    "caution-length-next": (
        "search again with --max-model-len N, the longest request that production must accept",
        "请用 --max-model-len N（生产环境必须接受的最长请求）重新搜索",
    ),
    "caution-where": ("{who}, trial {trial}, {load}", "{who}，启动 {trial}，{load}"),
    # --- why
    "limit-load": ("The load that was offered", "所施加的负载"),
    "limit-client": ("The load generator", "压测端"),
    "limit-kv": ("KV cache", "KV 缓存"),
    "limit-sequences": (knobs.MAX_NUM_SEQS, knobs.MAX_NUM_SEQS),
    "limit-tokens": ("The step's token budget", "每步 token 预算"),
    "limit-compute": ("Compute", "算力"),
    "reading-binds": ("binds", "构成限制"),
    "reading-near": ("near", "接近"),
    "reading-clear": ("clear", "未触及"),
    "reading-unknown": ("not observed", "未观测"),
    "seen-nothing": ("nothing was observed", "没有观测数据"),
    "seen-load-ended": (
        "{load} was the highest load offered and kept the limits: the server may carry more",
        "所施加的最高负载（{load}）满足限制：服务端可能还有余量",
    ),
    "seen-load-beyond": (
        "a higher load ({beyond}) was offered and is accounted for below",
        "已施加更高负载（{beyond}），见下",
    ),
    "seen-client-bound": ("the load generator was flagged as the bottleneck", "压测端被标记为瓶颈"),
    "seen-client": ("load generator at {share} of one core", "压测端占用单核的 {share}"),
    "seen-kv": ("KV use peaked at {peak} at {load}", "KV 使用峰值 {peak}（{load}）"),
    "seen-kv-preempted": (
        "{n} preemptions at {load}, KV use peaked at {peak}",
        "抢占 {n} 次，KV 使用峰值 {peak}（{load}）",
    ),
    "seen-sequences": (
        "running peaked at {running} of {limit}, {waiting} waiting on average, at {load}",
        "运行峰值 {running}/{limit}，平均等待 {waiting}（{load}）",
    ),
    "seen-sequences-default": (
        "running peaked at {running} at {load}; the limit is left to vLLM's default",
        "运行峰值 {running}（{load}）；上限由 vLLM 默认决定",
    ),
    "seen-tokens": (
        "{waiting} requests waited on average at {load} while sequences and KV cache were free: budget or prefill speed, telemetry cannot tell the two apart",
        "平均有 {waiting} 个请求等待（{load}），而序列数与 KV 缓存均有余量：可能是预算或预填充速度，遥测无法区分",
    ),
    "seen-tokens-other": (
        "{waiting} requests waited on average at {load}, for another limit above",
        "平均有 {waiting} 个请求等待（{load}），原因是上面的其他限制",
    ),
    "seen-tokens-clear": ("{waiting} requests waited on average at {load}", "平均有 {waiting} 个请求等待（{load}）"),
    "seen-compute": (
        "from {before} to {load} the load grew by {more}, QPS by {gain}; {busy}",
        "负载增加 {more}（{before} → {load}），QPS 变化 {gain}；{busy}",
    ),
    "seen-compute-one": ("one level only; {busy}", "仅有一个级别；{busy}"),
    "busy-gpu": ("GPU busy {share} of the time", "GPU 忙碌时间占比 {share}"),
    "busy-host": ("host CPU at {share}", "主机 CPU {share}"),
    "next-load": ("offer higher levels to the same configuration", "对同一配置施加更高负载"),
    "next-client": ("run the load from another machine or with more processes", "改用另一台机器或更多进程施压"),
    "next-kv": (
        f"more KV cache: a higher {knobs.GPU_MEMORY_UTILIZATION}, an FP8 KV cache, quantized weights, a larger tensor-parallel size; or fewer sequences",
        f"增加 KV 缓存：提高 {knobs.GPU_MEMORY_UTILIZATION}、使用 FP8 KV 缓存、量化权重、增大张量并行；或减少序列数",
    ),
    "next-sequences": (
        f"raise {knobs.MAX_NUM_SEQS} while the KV cache lasts",
        f"在 KV 缓存允许时提高 {knobs.MAX_NUM_SEQS}",
    ),
    "next-tokens": (
        f"double {knobs.MAX_NUM_BATCHED_TOKENS}; if TTFT does not fall, prefill is compute-bound",
        f"将 {knobs.MAX_NUM_BATCHED_TOKENS} 加倍；若 TTFT 不降，则预填充受算力限制",
    ),
    "next-compute": (
        "quantized weights, a larger tensor-parallel size, or more replicas behind a balancer",
        "量化权重、增大张量并行，或在负载均衡后增加副本",
    ),
}
"""English and Chinese text by key: mostly the name of an enum and its value."""
