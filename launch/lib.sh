# What the scripts of this folder share. Sourcing this file reads the options of
# the script and leaves the program's arguments in "$@".
# shellcheck shell=bash

# Prints the comment at the top of the script.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

say() { echo "${0##*/}: $*" >&2; }

# Prints a command so that it can be pasted into a shell.
show() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] ||
      word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  echo "${line% }"
}

# Runs a command, or prints it under --dry-run.
run() { if [[ -n "$dry_run" ]]; then show "$@"; else "$@"; fi; }

# Runs a command and sets `status` to its exit code. SIGINT and SIGTERM set
# `stopping` and call `stop`, which the script defines to end the command.
stopping=
supervise() {
  "$@" &
  child=$!
  trap 'stopping=1 interrupted=1; stop' INT TERM
  # A signal interrupts `wait` while the command still runs, so wait again.
  interrupted=1
  while [[ -n "$interrupted" ]]; do
    interrupted=
    status=0
    wait "$child" || status=$?
  done
}

# Sleeps before a restart; $1 is its reason. After a signal, or after RESTARTS
# restarts, exits with `status` instead.
restarts=0
pause_or_exit() {
  if [[ -n "$stopping" ]]; then
    exit "$status"
  fi
  # shellcheck disable=SC2153  # The script sets RESTARTS.
  if ((restarts >= RESTARTS)); then
    say "$1, after $restarts restarts; giving up"
    exit "$status"
  fi
  restarts=$((restarts + 1))
  say "$1; restart $restarts of $RESTARTS in $PAUSE s"
  sleep "$PAUSE"
}

dry_run=
while (($#)); do
  case "$1" in
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit ;;
    *) break ;;
  esac
  shift
done
