#!/usr/bin/env bash
# stop.sh: written by tuner 0.1.0. Ends the server that start.sh of study example started, and only that one.
#
#   ./stop.sh               the one on port 8000
#   PORT=9000 ./stop.sh     the one on port 9000
#
# TERM, up to 25 s (STOP_TIMEOUT), KILL for what is left of its session; then it says what is left.
# Exit code 0: nothing is left. 1: something is.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PORT=${PORT:-8000}
PID_FILE=${PID_FILE:-$here/server-$PORT.pid}
STOP_TIMEOUT=${STOP_TIMEOUT:-25}

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

[ $# -eq 0 ] || fail "unknown argument: $1" "PORT=... ./stop.sh"
if [ ! -f "$PID_FILE" ]; then
  echo "not running: there is no $PID_FILE"
  exit 0
fi
read_pid_file "$PID_FILE" || fail "$PID_FILE does not name a server" "look for it with: ps -eo pid,args | grep vllm"

# gpu_holders: pids that hold memory on a GPU, as far as nvidia-smi can tell.
gpu_holders() {
  command -v nvidia-smi >/dev/null || return 0
  nvidia-smi --query-compute-apps=pid --format=csv,noheader 2>/dev/null | tr -dc '0-9\n' || true
}

ours=$(session_left)
if [ -n "$ours" ]; then
  echo "ending pid $server_pid on $server_host:$server_port" >&2
  end_server "$STOP_TIMEOUT"
else
  echo "the server with pid $server_pid had ended before" >&2
fi

left=0
still=$(session_left)
if [ -n "$still" ]; then
  left=1
  echo "processes left:"
  for pid in $still; do echo "  $pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"; done
else
  echo "processes: none left"
fi

if command -v nvidia-smi >/dev/null; then
  # The driver needs a moment to take the memory back.
  held=''
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    held=$(comm -12 <(sort -u <<<"$ours") <(gpu_holders | sort -u) | tr -d '[:space:]')
    [ -n "$held" ] || break
    sleep 1
  done
  if [ -n "$held" ]; then
    left=1
    echo "GPU memory: still held by this server's processes"
  fi
  nvidia-smi --query-gpu=index,memory.used,memory.total --format=csv,noheader 2>/dev/null |
    sed 's/^/GPU memory used now: /' || true
fi

if port_answers "$server_host" "$server_port"; then
  left=1
  echo "port $server_port: something still answers"
else
  echo "port $server_port: free"
fi

[ $left -eq 0 ] || exit 1
rm -f "$PID_FILE"
