#!/usr/bin/env bash
# start.sh: written by tuner 0.1.0.
#
# what      the study's winner
# measured  10.9 req/s (10.9 to 11.0 req/s over 3 starts) at 64 concurrent, P99 TTFT 343 ms, 0 preemptions
# accepts   requests of up to 2,048 tokens (prompt + answer)
# limits    p99 ttft <= 500ms
# workload  chat: prompt 120-900 tokens, output 150-256 tokens
# model     Qwen/Qwen3-32B
# on        1 × NVIDIA H100 80GB HBM3, host gpu-host-3
# versions  vLLM 0.32.0, driver 570.124.06
# study     qwen3-32b-h100, trial 56, candidate 2733120de0
# date      2026-11-20T23:30:54+00:00
# caveat    none of the starts behind these figures took part in choosing this configuration
#
#   ./start.sh                           in the background; returns when /health answers
#   HOST=0.0.0.0 PORT=9000 ./start.sh    at another address (0.0.0.0: open to all who reach this machine)
#   ./start.sh --foreground              in front, for systemd and containers
#   GPUS=1 ./start.sh                    on other GPUs than the measured ones
#   ./stop.sh                            ends it (with the same PORT)
#
# LOG, PID_FILE and START_TIMEOUT (seconds) can be set in the environment too.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-8000}
LOG=${LOG:-$here/server-$PORT.log}
PID_FILE=${PID_FILE:-$here/server-$PORT.pid}
START_TIMEOUT=${START_TIMEOUT:-900}

secrets=(HF_TOKEN) # to be set by you: their values are recorded nowhere
export VLLM_ENABLE_STARTUP_PLAN=0
# The study's compile cache, while it is beside this script, makes the first start quick.
if [ -z "${VLLM_CACHE_ROOT:-}" ] && [ -d "$here/vllm_cache" ]; then export VLLM_CACHE_ROOT="$here/vllm_cache"; fi
export CUDA_VISIBLE_DEVICES=${GPUS:-0}
numactl=(numactl --cpunodebind=0 --membind=0)
[ -z "${GPUS:-}" ] || numactl=() # other GPUs may be on another NUMA node
command=(
  "${numactl[@]}"
  vllm serve
  Qwen/Qwen3-32B
  --max-model-len 2048
  --enable-chunked-prefill
  --gpu-memory-utilization 0.92
  --long-prefill-token-threshold 512
  --max-num-batched-tokens 3200
  --max-num-seqs 121
  --shutdown-timeout 10
  --disable-uvicorn-access-log
  --host "$HOST" --port "$PORT"
)

# ── Below: the life of this server. It holds no setting of yours. ────────────────────────────────────────────

fail() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }
boot_id() { cat /proc/sys/kernel/random/boot_id; }

# answers HOST PORT [PATH]: something listens there and, with PATH, gives GET PATH status 200.
answers() {
  local host=$1
  case "$host" in 0.0.0.0 | '') host=127.0.0.1 ;; ::) host=::1 ;; esac
  # shellcheck disable=SC2016 # expanded by the inner bash
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" || exit 1
    [ -n "$2" ] || exit 0
    printf "GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n" "$2" >&3
    read -r _ status _ <&3 && [ "$status" = 200 ]' "$host" "$2" "${3:-}" 2>/dev/null
}

# read_pid_file: sets pid, ticks (start time), boot, host and port of the server that start.sh noted.
read_pid_file() {
  { read -r pid && read -r ticks && read -r boot && read -r host && read -r port; } 2>/dev/null <"$PID_FILE" &&
    [[ $pid =~ ^[0-9]+$ ]]
}

# started PID: its start time in ticks since boot; nothing if it is gone or only its zombie is left.
started() {
  { tr '\n' ' ' <"/proc/$1/stat" | LC_ALL=C sed -En 's/^.*\) [^ZX]( [-0-9]+){18} ([0-9]+) .*/\2/p'; } 2>/dev/null || true
}

# A pid alone may belong to another process by now: start time and boot must be those noted.
is_server() { [ -n "$ticks" ] && [ "$boot" = "$(boot_id)" ] && [ "$(started "$pid")" = "$ticks" ]; }

# ours: living processes of the server's session, one pid a line. While one lives, no other session gets its number; a
# leader with another start time shows that none lives.
ours() {
  local leader
  leader=$(started "$pid")
  if [ "$boot" = "$(boot_id)" ] && [ "${leader:-$ticks}" = "$ticks" ]; then
    { LC_ALL=C sed -Ezn "s/^([0-9]+) \(.*\) [^ZX] [0-9]+ [0-9]+ $pid .*/\1/p" /proc/[0-9]*/stat | tr '\0' '\n'; } 2>/dev/null || true
  fi
}

# end_server SECONDS: TERM to the server, and KILL to whatever of its session is left after that time.
end_server() {
  local deadline=$((SECONDS + $1)) one
  if is_server; then kill -TERM "$pid" 2>/dev/null || true; fi
  while [ -n "$(ours)" ] && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
  for one in $(ours); do echo "killing $one: $({ tr '\0' ' ' <"/proc/$one/cmdline"; } 2>/dev/null)" >&2; done
  deadline=$((SECONDS + 10))
  while [ -n "$(ours)" ] && [ $SECONDS -lt $deadline ]; do
    for one in $(ours); do kill -KILL "$one" 2>/dev/null || true; done
    sleep 0.2
  done
}

case "${1:-}" in '' | --foreground) ;; *) fail "unknown argument: $1" "./start.sh [--foreground]" ;; esac
[[ $PORT =~ ^[0-9]+$ ]] || fail "PORT=$PORT is not a port number"
for name in "${secrets[@]}"; do [ -n "${!name:-}" ] || fail "$name is not set" "export $name: this launch needs it"; done
for program in "${command[0]}" vllm; do
  command -v "$program" >/dev/null || fail "$program is not on PATH" "install it, or activate the environment it is in"
done
exec 9>"$PID_FILE.lock"
flock -n 9 || fail "another start.sh is at work on port $PORT"
if read_pid_file && is_server; then
  fail "already running: pid $pid on $host:$port" "end it with ./stop.sh, or choose another PORT"
fi
! answers "$HOST" "$PORT" || fail "port $PORT is taken by another program" "choose another: PORT=$((PORT + 1)) ./start.sh"
case "$HOST" in
  127.* | localhost | ::1) ;;
  *) echo "note: $HOST can be reached from other machines; vLLM asks for a key only with --api-key or VLLM_API_KEY" >&2 ;;
esac
[ "${1:-}" != --foreground ] || exec "${command[@]}" 9>&-

[ ! -s "$LOG" ] || mv -f "$LOG" "$LOG.1"
setsid "${command[@]}" >"$LOG" 2>&1 </dev/null 9>&- &
pid=$! ticks=$(started "$!") boot=$(boot_id)
printf '%s\n' "$pid" "$ticks" "$boot" "$HOST" "$PORT" >"$PID_FILE"

give_up() {
  end_server 25
  rm -f "$PID_FILE"
  tail -n 20 "$LOG" | sed 's/^/  | /' >&2
  fail "$@"
}
trap 'give_up "interrupted: the server was ended again"' INT TERM HUP
echo "starting pid $pid; to follow it: tail -f $LOG" >&2
began=$SECONDS
until answers "$HOST" "$PORT" /health; do
  is_server || give_up "the server ended after $((SECONDS - began)) s, before /health answered" "the whole log: $LOG"
  [ $((SECONDS - began)) -lt "$START_TIMEOUT" ] ||
    give_up "no answer from /health after $START_TIMEOUT s" "START_TIMEOUT=... waits longer"
  sleep 0.5
done
is_server || give_up "/health answers on port $PORT, but our server has ended: another program took the port"
trap - INT TERM HUP
echo "ready after $((SECONDS - began)) s: http://$HOST:$PORT/v1 (pid $pid)"
