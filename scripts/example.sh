#!/usr/bin/env bash
# studies/example: the demo's search with more starts, of which only what belongs in git is kept. 20 to 30 minutes on 2 cores.
# usage: scripts/example.sh MODEL_DIR [more tuner flags]      with the environment's bin folder on PATH
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .cache/example
scripts/demo.sh "$1" --studies .cache/example --study example --trials 20 --confirm 6 --level-seconds 10 \
    --time-budget 45m "${@:2}"
python scripts/keep_study.py .cache/example/example studies/example
