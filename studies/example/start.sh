#!/usr/bin/env bash
# start.sh: written by tuner 0.1.0.
#
# what      the study's winner
# measured  34.5 req/s (34.5 to 38.7 req/s over 2 starts) at 40.0 requests/s, P99 TTFT 144 ms, 0 preemptions
# limits    p99 ttft <= 1000ms
# workload  random:32-96,32-64: prompt 32-96 tokens, output 32-64 tokens
# model     .cache/tiny-model
# on        AMD EPYC (2 CPUs), host left out
# versions  vLLM 0.32.0+cpu, driver none
# study     example, trial 8, candidate a1119f92a5
# date      2026-11-25T20:09:42+00:00
# caveat    none of the starts behind these figures took part in choosing this configuration
#
#   ./start.sh                            in the background, on 127.0.0.1:8000; returns when /health answers
#   HOST=0.0.0.0 PORT=9000 ./start.sh     elsewhere (0.0.0.0: anyone who reaches this machine may ask)
#   ./start.sh --foreground               stays in front and logs to the terminal: for systemd and containers
#   ./stop.sh                             ends it (with the same PORT)
#
# LOG, PID_FILE, START_TIMEOUT (seconds) can be set in the environment too.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-8000}
LOG=${LOG:-$here/server-$PORT.log}
PID_FILE=${PID_FILE:-$here/server-$PORT.pid}
START_TIMEOUT=${START_TIMEOUT:-1800}

fail() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

boot_id() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown; }

# read_stat PID: sets `stat` to the fields of /proc/PID/stat from the third on (state, ..., [3] session, [19] start time);
# fails where there is no such process, or only its zombie. No fork: members() asks for every process of the machine.
read_stat() {
  local text=''
  { IFS= read -rd '' text <"/proc/$1/stat"; } 2>/dev/null || [ -n "$text" ] || return 1
  read -ra stat <<<"${text##*) }"
  [ "${stat[0]}" != Z ] && [ "${stat[0]}" != X ]
}

start_ticks() { read_stat "$1" && echo "${stat[19]}"; }

# members SID: living processes of a session, one pid a line.
members() {
  local dir pid
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    if read_stat "$pid" && [ "${stat[3]}" = "$1" ]; then echo "$pid"; fi
  done
}

# port_answers HOST PORT: does anything accept connections there?
port_answers() {
  local host=$1
  case "$host" in 0.0.0.0 | '') host=127.0.0.1 ;; '::') host=::1 ;; esac
  # shellcheck disable=SC2016 # expanded by the inner bash
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$2" 2>/dev/null
}

# read_pid_file FILE: sets server_pid, server_ticks, server_boot, server_host and server_port.
read_pid_file() {
  server_pid='' server_ticks='' server_boot='' server_host='' server_port=''
  { read -r server_pid && read -r server_ticks && read -r server_boot && read -r server_host && read -r server_port; } \
    <"$1" && [[ $server_pid =~ ^[0-9]+$ ]]
}

# A pid alone could belong to another process by now: its start time and the machine's boot must be those recorded.
is_server() {
  [ "$server_boot" = "$(boot_id)" ] && read_stat "$server_pid" && [ "${stat[19]}" = "$server_ticks" ]
}

# session_left: living members of the server's session. While one lives, the kernel gives the number to no other
# session; a living leader that is not ours means that the number was free and was given away.
session_left() {
  [ "$server_boot" = "$(boot_id)" ] || return 0
  local leader
  leader=$(start_ticks "$server_pid") || leader=$server_ticks
  [ "$leader" != "$server_ticks" ] || members "$server_pid"
}

# end_server SECONDS: TERM to the server, then KILL to whatever of its session is left.
end_server() {
  local deadline=$((SECONDS + $1)) pid
  if is_server; then kill -TERM "$server_pid" 2>/dev/null || true; fi
  while [ -n "$(session_left)" ] && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
  for pid in $(session_left); do
    echo "killing $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)" >&2
    if read_stat "$pid" && [ "${stat[3]}" = "$server_pid" ]; then kill -KILL "$pid" 2>/dev/null || true; fi
  done
  deadline=$((SECONDS + 10))
  while [ -n "$(session_left)" ] && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
}

foreground=no
case "${1:-}" in
  '') ;;
  --foreground) foreground=yes ;;
  *) fail "unknown argument: $1" "./start.sh [--foreground]" ;;
esac
[[ $PORT =~ ^[0-9]+$ ]] || fail "PORT=$PORT is not a port number"

export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1
export VLLM_ENABLE_STARTUP_PLAN=0
export VLLM_ENABLE_V1_MULTIPROCESSING=0
export VLLM_NO_USAGE_STATS=1
# The study's compile cache makes the first start quick; where it is gone, vLLM makes its own.
if [ -z "${VLLM_CACHE_ROOT:-}" ] && [ -d studies/example/vllm_cache ]; then
  export VLLM_CACHE_ROOT=studies/example/vllm_cache
fi

command=(
  vllm serve
  .cache/tiny-model
  --kv-cache-memory-bytes 268435456
  --long-prefill-token-threshold 0
  --max-num-batched-tokens 2048
  --max-num-seqs 128
  --shutdown-timeout 10
  --enforce-eager
  --load-format dummy
  --dtype float32
  --host "$HOST" --port "$PORT"
)

for program in "${command[0]}" vllm; do
  command -v "$program" >/dev/null || fail "$program is not on PATH" "install it, or activate the environment it is in"
done
exec 9>"$PID_FILE.lock"
flock -n 9 || fail "another start.sh is at work on port $PORT"
if [ -f "$PID_FILE" ] && read_pid_file "$PID_FILE" && is_server; then
  fail "already running: pid $server_pid on $server_host:$server_port" "end it with ./stop.sh, or choose another PORT"
fi
if port_answers "$HOST" "$PORT"; then
  fail "port $PORT is taken by another program" "choose another: PORT=$((PORT + 1)) ./start.sh"
fi
case "$HOST" in
  127.* | localhost | ::1) ;;
  *) echo "note: $HOST can be reached from other machines; vLLM asks for a key only with --api-key or VLLM_API_KEY" >&2 ;;
esac
[ $foreground = no ] || exec "${command[@]}" 9>&-

# healthy: GET /health on our port answers 200.
healthy() {
  local host=$HOST
  case "$host" in 0.0.0.0) host=127.0.0.1 ;; '::') host=::1 ;; esac
  # shellcheck disable=SC2016 # expanded by the inner bash
  timeout 5 bash -c '
    exec 3<>"/dev/tcp/$0/$1" && printf "GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n" >&3
    read -r _ status _ <&3 && [ "$status" = 200 ]' "$host" "$PORT" 2>/dev/null
}

last_lines() {
  echo "the last lines of $LOG:" >&2
  tail -n 20 "$LOG" | sed 's/^/  | /' >&2
}

give_up() {
  end_server 25
  rm -f "$PID_FILE"
  last_lines
  fail "$1" "${2:-}"
}

[ ! -s "$LOG" ] || mv -f "$LOG" "$LOG.1"
setsid "${command[@]}" >"$LOG" 2>&1 </dev/null 9>&- &
server_pid=$!
server_ticks=$(start_ticks "$server_pid") || { last_lines; fail "the server did not start"; }
server_boot=$(boot_id)
printf '%s\n' "$server_pid" "$server_ticks" "$server_boot" "$HOST" "$PORT" >"$PID_FILE.tmp"
mv -f "$PID_FILE.tmp" "$PID_FILE"
trap 'give_up "interrupted: the server was ended again"' INT TERM HUP

echo "starting pid $server_pid, log $LOG" >&2
began=$SECONDS said=$SECONDS
until healthy; do
  is_server || give_up "the server ended after $((SECONDS - began)) s, before /health answered" "the whole log: $LOG"
  [ $((SECONDS - began)) -lt "$START_TIMEOUT" ] ||
    give_up "no answer from /health after $START_TIMEOUT s" "START_TIMEOUT=... waits longer"
  if [ $((SECONDS - said)) -ge 10 ]; then
    said=$SECONDS
    echo "waiting for /health: $((SECONDS - began)) s" >&2
  fi
  sleep 0.5
done
is_server || give_up "/health answers on port $PORT, but our server has ended: another program took the port"
trap - INT TERM HUP
echo "ready after $((SECONDS - began)) s: http://$HOST:$PORT/v1 (pid $server_pid)"
