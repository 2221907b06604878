#!/usr/bin/env bash
# Trains on several nodes under SLURM. On each node one process drives all GPUs.
#
#   launch/slurm.sh [--dry-run] [--help] [ARGUMENT...]      submits itself
#   sbatch [OPTION...] launch/slurm.sh [ARGUMENT...]        does the same
#
# needs   SLURM 20.11 or later, and reft_jax installed for `python` in a folder
#         that all nodes see: pip install -e '.[cuda]'
# does    starts python -m reft_jax.train ARGUMENT... on each node. SLURM's
#         variables tell the processes how to find each other. Two minutes
#         before the time limit they get SIGTERM, save a checkpoint and exit
#         with code 75. The job is then requeued and resumes. After a crash the
#         processes restart within the same job. There is no restart after exit
#         code 0 (done), 2 (bad input) or 4 (diverged).
# gives   the run folder: output=FOLDER, or runs/NAME-seedSEED in the folder of
#         submission. All nodes must see it. Printed output: reft-JOB.log
# resume  run the same command again
# stop    scancel JOB. A later resume starts from the last checkpoint. To save a
#         checkpoint first, run scancel --signal=TERM JOB, wait until the job is
#         requeued, then run scancel JOB
#
#   --dry-run  print the commands instead of running them
#   --help     print this text
#   These options come first. All other arguments go to reft_jax.train.
#
#   NODES=2        nodes of the job that this script submits. For other options
#                  set SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT ...
#   RESTARTS=3     the most restarts after crashes in a job
#   REQUEUES=100   the most times that the job is requeued
#   PAUSE=30       seconds before a restart
#   PYTHON=python  the interpreter that has reft_jax
#   XLA_PYTHON_CLIENT_MEM_FRACTION=0.9  the share of GPU memory that JAX takes

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

# SLURM runs a copy of this file from its spool folder, where lib.sh is missing.
# So the job must work without lib.sh. Only the options and --dry-run need it.
dry_run=
say() { echo "slurm.sh: $*" >&2; }
run() { "$@"; }
lib="$(dirname "$0")/lib.sh"
if [[ -z "${SLURM_JOB_ID:-}" || -e "$lib" ]]; then
  # shellcheck source=lib.sh
  source "$lib"
fi

# Outside of a job, submit this file. The rest runs on the job's first node.
if [[ -z "${SLURM_JOB_ID:-}" ]]; then
  run sbatch "--nodes=$NODES" "$0" "$@"
  if [[ -z "$dry_run" ]]; then
    exit
  fi
fi

# One process on each node may use all its cores and GPUs. When one process
# ends, the others get ten minutes: to save as well, or to notice the loss.
step=(
  srun --ntasks-per-node=1 --cpu-bind=none --label
  --kill-on-bad-exit=0 --wait=600
  env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION"
  "$PYTHON" -m reft_jax.train "$@"
)

# No signal is trapped: scancel must end this shell before it requeues the job.
for ((restarts = 0; ; restarts++)); do
  # srun waits for all processes and returns their highest exit code.
  status=0
  run "${step[@]}" || status=$?
  case "$status" in
    0 | 2 | 4 | 75) break ;;
    *) reason="crashed with exit code $status" ;;
  esac
  if ((restarts >= RESTARTS)); then
    say "$reason, after $restarts restarts; giving up"
    exit "$status"
  fi
  say "$reason; restart $((restarts + 1)) of $RESTARTS in $PAUSE s"
  sleep "$PAUSE"
done

# At the time limit, ask for more time.
if [[ -n "$dry_run" ]]; then
  echo "# after exit code 75"
  run scontrol requeue "${SLURM_JOB_ID:-JOB}"
elif ((status == 75 && ${SLURM_RESTART_COUNT:-0} < REQUEUES)); then
  say "preempted; requeued"
  scontrol requeue "$SLURM_JOB_ID" ||
    say "cannot be requeued; run the same command to resume"
fi
exit "$status"
