#!/usr/bin/env bash
# Trains on one machine of eight GPUs, or of fewer: one process drives them all.
#
#   launch/one_machine.sh [--dry-run] [--help] [ARGUMENT...]
#
# needs   Linux, the NVIDIA driver, and reft_jax installed for `python`:
#         pip install -e '.[cuda]'
# does    runs python -m reft_jax.train ARGUMENT..., and again when it was
#         preempted (exit code 75) or crashed; it goes on from its last save.
#         Not again after 0 (done), 2 (bad input), 4 (diverged), 130
#         (interrupted).
# gives   the run's folder: output=FOLDER, or runs/NAME-seedSEED
# resume  with the same command
# stop    with Ctrl+C or SIGTERM, once: the program saves and ends with 75
#
#   --dry-run  print the command instead of running it
#   --help     print this
#   These come first; all that follows goes to reft_jax.train.
#
#   RESTARTS=10    restarts, at most
#   PAUSE=10       seconds before a restart
#   PYTHON=python  the interpreter that has reft_jax
#   XLA_PYTHON_CLIENT_MEM_FRACTION=0.9  share of a GPU's memory that JAX takes

set -euo pipefail

: "${RESTARTS:=10}" "${PAUSE:=10}" "${PYTHON:=python}"
: "${XLA_PYTHON_CLIENT_MEM_FRACTION:=0.9}"

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
say() { echo "one_machine.sh: $*" >&2; }

# Prints a command as it would be typed.
show() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] ||
      word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  echo "${line% }"
}

# Reads what is asked of this script, and leaves the program's arguments.
dry_run=
while (($#)); do
  case "$1" in
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit ;;
    *) break ;;
  esac
  shift
done

command=(
  env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
  "$PYTHON" -m reft_jax.train "$@"
)
if [[ -n "$dry_run" ]]; then
  show "${command[@]}"
  exit
fi

# Passes on that this script is to stop.
stopping=
stop() {
  stopping=1
  interrupted=1
  kill -TERM "$child" 2>/dev/null || true
}

# Runs the program to its end. A signal ends `wait` before that: wait again.
train() {
  "${command[@]}" &
  child=$!
  trap stop INT TERM
  interrupted=1
  while [[ -n "$interrupted" ]]; do
    interrupted=
    status=0
    wait "$child" || status=$?
  done
}

for ((restarts = 0; ; restarts++)); do
  # Train until the program ends, for whatever reason.
  train
  # Leave if it would end the same way again, or was asked to.
  case "$status" in
    0 | 2 | 4 | 130) exit "$status" ;;
    75) reason="preempted" ;;
    *) reason="crashed with exit code $status" ;;
  esac
  if [[ -n "$stopping" ]]; then
    exit "$status"
  fi
  # Otherwise try again, but not for ever.
  if ((restarts >= RESTARTS)); then
    say "$reason, after $restarts restarts; giving up"
    exit "$status"
  fi
  say "$reason; restart $((restarts + 1)) of $RESTARTS in $PAUSE s"
  trap - INT TERM
  sleep "$PAUSE"
done
