#!/usr/bin/env bash
# Trains on several nodes under SLURM: one process a node drives all its GPUs.
#
#   launch/slurm.sh [--dry-run] [--help] [ARGUMENT...]      submits itself
#   sbatch [OPTION...] launch/slurm.sh [ARGUMENT...]        does the same
#
# needs   SLURM 20.11 or later; reft_jax installed for `python`, in a folder
#         that all nodes see: pip install -e '.[cuda]'
# does    starts python -m reft_jax.train ARGUMENT... on each node; they find
#         each other by SLURM's variables. Two minutes before the job's time is
#         up they get SIGTERM, save and end with exit code 75; the job is
#         requeued, and goes on from there. After a crash they are started
#         again in the same job. Not again after 0 (done), 2 (bad input), 4
#         (diverged).
# gives   the run's folder: output=FOLDER, or runs/NAME-seedSEED where it was
#         submitted. All nodes must see it. What is printed: reft-JOB.log
# resume  with the same command
# stop    with scancel JOB, which goes on from the last save when resumed; to
#         save first: scancel --signal=TERM JOB, and scancel JOB once it is
#         requeued
#
#   --dry-run  print the commands instead of running them
#   --help     print this
#   These come first; all that follows goes to reft_jax.train.
#
#   NODES=2        nodes of the job that this script submits. For the rest there
#                  are SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT ...
#   RESTARTS=3     restarts after crashes in a job, at most
#   REQUEUES=100   times the job is requeued, at most
#   PAUSE=30       seconds before a restart
#   PYTHON=python  the interpreter that has reft_jax
#   XLA_PYTHON_CLIENT_MEM_FRACTION=0.9  share of a GPU's memory that JAX takes

#SBATCH --job-name=reft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=reft-%j.log

set -euo pipefail

: "${NODES:=2}" "${RESTARTS:=3}" "${REQUEUES:=100}" "${PAUSE:=30}"
: "${PYTHON:=python}" "${XLA_PYTHON_CLIENT_MEM_FRACTION:=0.9}"

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
say() { echo "slurm.sh: $*" >&2; }

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

# Runs a command, or prints it.
run() { if [[ -n "$dry_run" ]]; then show "$@"; else "$@"; fi; }

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

# Outside of a job, submits this file; what follows runs on the first node.
if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  run sbatch "--nodes=$NODES" "$0" "$@"
  if [[ -z "$dry_run" ]]; then
    exit
  fi
fi

# One process a node, which may use all its cores and all its GPUs. When a
# process ends, the others are not killed for ten minutes: they are saving, too,
# or will notice that it is gone.
step=(
  srun --ntasks-per-node=1 --cpu-bind=none --label
  --kill-on-bad-exit=0 --wait=600
  env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
  "$PYTHON" -m reft_jax.train "$@"
)

# Signals are not trapped: scancel must end this shell before it requeues.
for ((restarts = 0; ; restarts++)); do
  # Train until all processes have ended; srun tells their highest exit code.
  status=0
  run "${step[@]}" || status=$?
  # Leave if they would end the same way again, or the time is up.
  case "$status" in
    0 | 2 | 4 | 75) break ;;
    *) reason="crashed with exit code $status" ;;
  esac
  # Otherwise try again, but not for ever.
  if ((restarts >= RESTARTS)); then
    say "$reason, after $restarts restarts; giving up"
    exit "$status"
  fi
  say "$reason; restart $((restarts + 1)) of $RESTARTS in $PAUSE s"
  sleep "$PAUSE"
done

# When the time was up, queue for more of it.
if [[ -n "$dry_run" ]]; then
  echo "# after exit code 75"
  run scontrol requeue "${SLURM_JOB_ID:-JOB}"
elif ((status == 75 && ${SLURM_RESTART_COUNT:-0} < REQUEUES)); then
  say "preempted; requeued"
  scontrol requeue "$SLURM_JOB_ID" ||
    say "cannot be requeued; the same command goes on"
fi
exit "$status"
