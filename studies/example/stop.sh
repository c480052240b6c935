#!/usr/bin/env bash
# stop.sh: written by tuner 0.1.0. Ends the server that start.sh of study example started, and only that one.
#
#   ./stop.sh               the one on port 8000
#   PORT=9000 ./stop.sh     the one on port 9000
#
# TERM, up to 25 s (STOP_TIMEOUT), then KILL to what is left of its session. Exit code 1 if anything is left.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PORT=${PORT:-8000}
PID_FILE=${PID_FILE:-$here/server-$PORT.pid}
STOP_TIMEOUT=${STOP_TIMEOUT:-25}

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

[ $# -eq 0 ] || fail "unknown argument: $1" "PORT=... ./stop.sh"
if [ ! -f "$PID_FILE" ]; then
  echo "not running: there is no $PID_FILE"
  exit 0
fi
read_pid_file || fail "$PID_FILE does not name a server" "look for it with: ps -eo pid,args | grep vllm"

members=$(ours)
if [ -n "$members" ]; then
  echo "ending pid $pid on $host:$port" >&2
  end_server "$STOP_TIMEOUT"
else
  echo "the server with pid $pid had ended before" >&2
fi

left=0
if [ -n "$(ours)" ]; then
  left=1
  echo "processes left: $(ours | tr '\n' ' ')"
else
  echo "processes: none left"
fi
if answers "$host" "$port"; then
  left=1
  echo "port $port: something still answers"
else
  echo "port $port: free"
fi

# held: pids of this server that hold GPU memory, as far as nvidia-smi can tell.
held() {
  { nvidia-smi --query-compute-apps=pid --format=csv,noheader | tr -dc '0-9\n' | grep -Fx "$members"; } 2>/dev/null || true
}
if command -v nvidia-smi >/dev/null; then
  # The driver needs a moment to take the memory back.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    holders=$(held)
    [ -n "$holders" ] || break
    sleep 1
  done
  if [ -n "$holders" ]; then
    left=1
    echo "GPU memory: still held by this server's processes"
  fi
  nvidia-smi --query-gpu=index,memory.used,memory.total --format=csv,noheader 2>/dev/null |
    sed 's/^/GPU memory used now: /' || true
fi

[ $left -eq 0 ] || exit 1
rm -f "$PID_FILE"
