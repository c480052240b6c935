#!/usr/bin/env bash
# Makes studies/example: the tiny model in an open loop. Keeps only the files that belong in git. About 25 minutes on 2 cores.
# Probes of 5 s and claims of 30 s, a quarter of the usual: the promise says ± 5 % for it.
# usage: scripts/example.sh MODEL_DIR [more tuner flags]      with the environment's bin folder on PATH
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .cache/example
tuner search --model "$1" --space demo --workload random:32-96,32-64 --slo "p99 ttft <= 1000ms" --probe-seconds 5 \
    --warm-up-seconds 3 --trials 8 --confirm 4 --seed 1 --studies .cache/example --study example "${@:2}" \
    -- --enforce-eager --load-format dummy --dtype float32
python scripts/keep_study.py .cache/example/example studies/example
