#!/usr/bin/env bash
# start.sh: written by tuner 0.1.0.
#
# what      the study's winner
# layout    2x1: 2 servers of 1 GPU each behind nginx
# measured  10.9 req/s (10.9 to 11.0 req/s over 3 starts) at 64 concurrent, P99 TTFT 343 ms, 0 preemptions
# accepts   requests of up to 2,048 tokens (prompt + answer)
# limits    p99 ttft <= 500ms
# workload  chat: prompt 120-900 tokens, output 150-256 tokens
# model     Qwen/Qwen3-32B
# on        2 × NVIDIA H100 80GB HBM3, host gpu-host-3
# versions  vLLM 0.32.0, driver 570.124.06
# study     qwen3-32b-h100, trial 56, candidate 2733120de0
# date      2026-11-20T23:30:54+00:00
# caveat    none of the starts behind these figures took part in choosing this configuration
#
#   ./start.sh                           2 servers and nginx before them; returns when all of them answer
#   HOST=0.0.0.0 PORT=9000 ./start.sh    at another address (0.0.0.0: open to all who reach this machine)
#   ./start.sh --foreground              in front, for systemd and containers; ends all if one ends
#   ./stop.sh                            ends all of it (with the same PORT)
#
# The servers listen on 127.0.0.1, on the ports after PORT (from BASE_PORT on). Logs and pid files are in the folder
# deployment-PORT (RUN_DIR). START_TIMEOUT (seconds) can be set in the environment too.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
HOST=${HOST:-127.0.0.1}
PORT=${PORT:-8000}
RUN_DIR=${RUN_DIR:-$here/deployment-$PORT}
START_TIMEOUT=${START_TIMEOUT:-900}

secrets=(HF_TOKEN) # to be set by you: their values are recorded nowhere
export VLLM_ENABLE_STARTUP_PLAN=0
# The study's compile cache, while it is beside this script, makes the first start quick.
if [ -z "${VLLM_CACHE_ROOT:-}" ] && [ -d "$here/vllm_cache" ]; then export VLLM_CACHE_ROOT="$here/vllm_cache"; fi

# What tells the servers apart: GPUs or cores, and what stands before the command. For other GPUs, change it here.
server_1=(env CUDA_VISIBLE_DEVICES=0 numactl --cpunodebind=0 --membind=0 vllm serve)
server_2=(env CUDA_VISIBLE_DEVICES=1 numactl --cpunodebind=1 --membind=1 vllm serve)
arguments=(
  Qwen/Qwen3-32B
  --max-model-len 2048
  --enable-chunked-prefill
  --gpu-memory-utilization 0.92
  --long-prefill-token-threshold 512
  --max-num-batched-tokens 3200
  --max-num-seqs 121
  --shutdown-timeout 10
  --disable-uvicorn-access-log
)

# The door. $listen is HOST:PORT. Another way to route, by prefix: tuner best --format nginx.
door_conf() {
  cat <<CONF
worker_processes 4;
worker_rlimit_nofile 16384;
pid nginx.pid;
error_log stderr warn;

events {
    worker_connections 8192;
}

http {
    access_log off;
    server_tokens off;
    client_body_temp_path client_body_temp;
    proxy_temp_path proxy_temp;
    fastcgi_temp_path fastcgi_temp;
    uwsgi_temp_path uwsgi_temp;
    scgi_temp_path scgi_temp;

    upstream vllm {
        zone vllm 256k;  # without it every worker process would count its own connections alone
        least_conn;
        server 127.0.0.1:$((BASE_PORT + 0)) max_fails=3 fail_timeout=10s;
        server 127.0.0.1:$((BASE_PORT + 1)) max_fails=3 fail_timeout=10s;
        keepalive 128;
        keepalive_timeout 4s;  # vLLM closes after 5 s; a request on a connection that it just closed would be lost
        keepalive_requests 1000000;
    }

    server {
        listen $listen backlog=4096;
        client_max_body_size 64m;
        keepalive_requests 1000000;

        location / {
            proxy_pass http://vllm;
            proxy_http_version 1.1;
            proxy_set_header Host \$host;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For \$proxy_add_x_forwarded_for;

            # A token that waits in a buffer is a late token.
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_cache off;
            gzip off;

            # The first token of a long queue, and the pause between two tokens, can take this long.
            proxy_connect_timeout 5s;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;

            # Another server gets a request only if this one could not be reached. A request that was sent is not repeated.
            proxy_next_upstream error timeout;
        }
    }
}
CONF
}

# ── Below: the life of these servers. It holds no setting of yours. ──────────────────────────────────────────

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

# noted: names of what start.sh noted in RUN_DIR, one a line: door, server-1, server-2, ...
noted() {
  local file
  for file in "$RUN_DIR"/*.pid; do [ ! -f "$file" ] || basename "$file" .pid; done
}

# load NAME: reads what start.sh noted of it.
load() {
  PID_FILE=$RUN_DIR/$1.pid
  read_pid_file
}

# end_all SECONDS: the door stops to take requests; the servers end what is open, side by side; then the door ends.
end_all() {
  local name deadline enders=()
  if load door && is_server; then
    kill -QUIT "$pid" 2>/dev/null || true
    deadline=$((SECONDS + 2))
    while answers "$host" "$port" && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
  fi
  for name in $(noted); do
    [ "$name" != door ] || continue
    (! load "$name" || end_server "$1") &
    enders+=("$!")
  done
  [ -z "${enders[*]-}" ] || wait "${enders[@]}" || true
  ! load door || end_server 2
}

case "${1:-}" in '' | --foreground) ;; *) fail "unknown argument: $1" "./start.sh [--foreground]" ;; esac
[[ $PORT =~ ^[0-9]+$ ]] || fail "PORT=$PORT is not a port number"
BASE_PORT=${BASE_PORT:-$((PORT + 1))}
[[ $BASE_PORT =~ ^[0-9]+$ ]] || fail "BASE_PORT=$BASE_PORT is not a port number"
for name in "${secrets[@]}"; do [ -n "${!name:-}" ] || fail "$name is not set" "export $name: this launch needs it"; done
for program in setsid flock numactl vllm; do
  command -v "$program" >/dev/null || fail "$program is not on PATH" "install it, or activate the environment it is in"
done
nginx=$(PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v nginx) ||
  fail "nginx is not installed" "apt-get install nginx, or dnf install nginx: this script runs it, no service is needed"

mkdir -p "$RUN_DIR/nginx"
exec 9>"$RUN_DIR/lock"
flock -n 9 || fail "another start.sh is at work on port $PORT"
for name in $(noted); do
  if load "$name" && [ -n "$(ours)" ]; then
    fail "already running: $name, pid $pid on $host:$port" "end all of it with ./stop.sh, or choose another PORT"
  fi
done
! answers "$HOST" "$PORT" || fail "port $PORT is taken by another program" "choose another: PORT=... ./start.sh"
for number in {1..2}; do
  port=$((BASE_PORT + number - 1))
  ! answers 127.0.0.1 "$port" || fail "port $port is taken by another program" "choose other ports: BASE_PORT=... ./start.sh"
done
case "$HOST" in
  127.* | localhost | ::1) ;;
  *) echo "note: $HOST can be reached from other machines; vLLM asks for a key only with --api-key or VLLM_API_KEY" >&2 ;;
esac
rm -f "$RUN_DIR"/*.pid

# launch NAME HOST PORT COMMAND...: starts a program in its own session, and notes it.
launch() {
  local log=$RUN_DIR/$1.log
  [ ! -s "$log" ] || mv -f "$log" "$log.1"
  setsid "${@:4}" >"$log" 2>&1 </dev/null 9>&- &
  pid=$!
  printf '%s\n' "$pid" "$(started "$pid")" "$(boot_id)" "$2" "$3" >"$RUN_DIR/$1.pid"
}

# launch_server NUMBER COMMAND...
launch_server() {
  local port=$((BASE_PORT + $1 - 1))
  launch "server-$1" 127.0.0.1 "$port" "${@:2}" "${arguments[@]}" --host 127.0.0.1 --port "$port"
}

# pause SECONDS: `wait` is interrupted by a signal at once, `sleep` is not.
pause() { sleep "$1" 9>&- & wait "$!" || true; }

# give_up NAME MESSAGE [HINT]: ends all, and shows the end of that log.
give_up() {
  trap '' INT TERM HUP
  end_all 25
  rm -f "$RUN_DIR"/*.pid
  tail -n 20 "$RUN_DIR/$1.log" | sed 's/^/  | /' >&2
  fail "${@:2}"
}

# watch: gives up if one of all has ended, or the user interrupts.
watch() {
  local name
  for name in $(noted); do
    load "$name" && is_server && continue
    give_up "$name" "$name ended after $((SECONDS - began)) s; all others were ended" "the whole log: $RUN_DIR/$name.log"
  done
}

# until_ready NAME HOST PORT
until_ready() {
  until answers "$2" "$3" /health; do
    watch
    [ -z "$interrupted" ] || give_up "$1" "interrupted: all servers were ended again"
    [ $((SECONDS - began)) -lt "$START_TIMEOUT" ] ||
      give_up "$1" "no answer from $1 after $START_TIMEOUT s" "START_TIMEOUT=... waits longer"
    pause 0.5
  done
  watch
}

interrupted='' began=$SECONDS
trap 'interrupted=yes' INT TERM HUP
launch_server 1 "${server_1[@]}"
launch_server 2 "${server_2[@]}"
echo "starting 2 servers; to follow them: tail -f $RUN_DIR/server-*.log" >&2
for number in {1..2}; do
  until_ready "server-$number" 127.0.0.1 $((BASE_PORT + number - 1))
done

case "$HOST" in *:*) listen="[$HOST]:$PORT" ;; *) listen=$HOST:$PORT ;; esac
door_conf >"$RUN_DIR/nginx/nginx.conf"
# As root nginx would give its workers another user.
[ "$(id -u)" -ne 0 ] || user=" user $(id -un);"
launch door "$HOST" "$PORT" "$nginx" -p "$RUN_DIR/nginx/" -c nginx.conf -g "daemon off;${user:-}"
until_ready door "$HOST" "$PORT"
echo "ready after $((SECONDS - began)) s: http://$HOST:$PORT/v1 (2 servers behind nginx)"
[ "${1:-}" = --foreground ] || exit 0

until [ -n "$interrupted" ]; do
  watch
  pause 1
done
trap '' INT TERM HUP
end_all 25
rm -f "$RUN_DIR"/*.pid
