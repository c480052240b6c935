#!/usr/bin/env bash
# A real search on real vLLM: the default configuration and eight candidates of a tiny model, in about 14 minutes on 2 cores.
# It measures the closed-loop ladder: open-loop traces of a few seconds say little.
# usage: scripts/demo.sh MODEL_DIR [more tuner flags]
set -euo pipefail
model=$1
shift
exec tuner search --model "$model" --space demo --workload random:32-96,32-64 --slo "p99 ttft <= 1000ms" \
    --levels 16,32,64 --level-seconds 8 --warm-up-seconds 3 --trials 9 --confirm 4 --time-budget 14m --seed 7 \
    --study "demo-$(date +%m%d-%H%M%S)" "$@" \
    -- --enforce-eager --load-format dummy --dtype float32
