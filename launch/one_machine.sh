#!/usr/bin/env bash
# Trains on one machine with up to eight GPUs. One process drives all of them.
#
#   launch/one_machine.sh [--dry-run] [--help] [ARGUMENT...]
#
# needs   Linux, the NVIDIA driver, and reft_jax installed for `python`:
#         pip install -e '.[cuda]'
# does    runs python -m reft_jax.train ARGUMENT..., and restarts it after a
#         preemption (exit code 75) or a crash. A restart resumes from the last
#         checkpoint. There is no restart after exit code 0 (done), 2 (bad
#         input), 4 (diverged) or 130 (interrupted).
# gives   the run folder: output=FOLDER, or runs/NAME-seedSEED
# resume  run the same command again
# stop    press Ctrl+C or send SIGTERM, once: the program saves a checkpoint and
#         exits with code 75
#
#   --dry-run  print the command instead of running it
#   --help     print this text
#   These options come first. All other arguments go to reft_jax.train.
#
#   RESTARTS=10    the most restarts
#   PAUSE=10       seconds before a restart
#   PYTHON=python  the interpreter that has reft_jax
#   XLA_PYTHON_CLIENT_MEM_FRACTION=0.9  the share of GPU memory that JAX takes

set -euo pipefail

: "${RESTARTS:=10}" "${PAUSE:=10}" "${PYTHON:=python}"
: "${XLA_PYTHON_CLIENT_MEM_FRACTION:=0.9}"

source "$(dirname "$0")/lib.sh"

command=(
  env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
  "$PYTHON" -m reft_jax.train "$@"
)
if [[ -n "$dry_run" ]]; then
  show "${command[@]}"
  exit
fi

# The program saves a checkpoint on SIGTERM, so Ctrl+C becomes SIGTERM.
stop() { kill -TERM "$child" 2>/dev/null || true; }

while true; do
  supervise "${command[@]}"
  case "$status" in
    0 | 2 | 4 | 130) exit "$status" ;;
    75) reason="preempted" ;;
    *) reason="crashed with exit code $status" ;;
  esac
  trap - INT TERM
  pause_or_exit "$reason"
done
