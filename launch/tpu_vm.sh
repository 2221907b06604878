#!/usr/bin/env bash
# Trains on all workers of a slice of Cloud TPU VMs, then deletes the slice.
#
#   ZONE=.. STORAGE=.. launch/tpu_vm.sh [--dry-run] [--help] [ARGUMENT...]
#
# needs   gcloud with a project, and gcloud's ssh key in the ssh agent:
#         ssh-add ~/.ssh/google_compute_engine
# does    creates the slice, or uses the existing one of that name; copies this
#         checkout to all workers and installs it; mounts STORAGE as ~/storage;
#         runs python -m reft_jax.train ARGUMENT... there, on all workers at
#         once. A preempted slice is deleted and created again. After a
#         preemption, a crash or a lost connection the run resumes from its last
#         checkpoint. There is no restart after exit code 0 (done), 2 (bad
#         input) or 4 (diverged).
# gives   the run folder on STORAGE: output=FOLDER or runs/NAME-seedSEED,
#         relative to the top of STORAGE. It cannot be elsewhere: the other
#         workers cannot see a worker's own disk, and that disk is deleted with
#         the slice. Data and models in files must be on STORAGE, too
# resume  run the same command again
# stop    press Ctrl+C or send SIGTERM, once: the program saves a checkpoint,
#         and the slice is deleted. This script always deletes the slice when it
#         ends, unless SIGKILL ends it or the cloud cannot be reached. To find
#         remaining slices: gcloud compute tpus tpu-vm list --zone=ZONE
#
#   --dry-run  print the commands instead of running them
#   --help     print this text
#   These options come first. All other arguments go to reft_jax.train.
#
#   ZONE           required, for example us-central1-a
#   STORAGE        required: HOST:/SHARE, an NFS share such as Filestore's; or
#                  gs://BUCKET, which gcsfuse mounts. The bucket should have a
#                  hierarchical namespace. With a bucket, losing the slice also
#                  loses the metrics since the program's last start
#   SLICE=reft     the name of the slice
#   TYPE=v5litepod-16            its accelerators
#   VERSION=v2-alpha-tpuv5-lite  its software. v6e: v2-alpha-tpuv6e; v5p:
#                  v2-alpha-tpuv5; v4: tpu-ubuntu2204-base
#   SPOT=1         0: a slice that is not preempted, and costs more
#   KEEP=0         1: leave the slice running at the end; it keeps costing money
#   RESTARTS=100   the most restarts
#   PAUSE=60       seconds before a restart

set -euo pipefail

: "${ZONE:=}" "${STORAGE:=}" "${SLICE:=reft}" "${TYPE:=v5litepod-16}"
: "${VERSION:=v2-alpha-tpuv5-lite}" "${SPOT:=1}" "${KEEP:=0}"
: "${RESTARTS:=100}" "${PAUSE:=60}"

source "$(dirname "$0")/lib.sh"

# Refuses settings that cannot work, and an output that would be lost.
refuse() {
  say "$*"
  exit 2
}
[[ -n "$ZONE" ]] || refuse "set ZONE, such as ZONE=us-central1-a"
bucket='^gs://[^/]+$' share='^[^/:]+:/([^/].*)?$'
[[ "$STORAGE" =~ $bucket || "$STORAGE" =~ $share ]] ||
  refuse "set STORAGE to gs://BUCKET, the bucket alone, or to HOST:/SHARE"
outside='^output=([/~]|.*:|(.*/)?\.\.(/|$))'
for argument in "$@"; do
  [[ ! "$argument" =~ $outside ]] ||
    refuse "$argument: give a path relative to the top of STORAGE"
done

tpu=(gcloud compute tpus tpu-vm)
root="$(cd "$(dirname "$0")/.." && pwd)"

# Prints the slice's state, such as READY or PREEMPTED, if the slice exists.
state() {
  [[ -z "$dry_run" ]] || return 0
  "${tpu[@]}" describe "$SLICE" "--zone=$ZONE" "--format=value(state)" \
    2>/dev/null || true
}

delete_slice() { run "${tpu[@]}" delete "$SLICE" "--zone=$ZONE" --quiet; }

# Uses the existing slice if it is ready, or else creates it.
prepare_slice() {
  local now spot=()
  now="$(state)"
  if [[ "$now" == READY ]]; then
    say "using the existing slice $SLICE"
    return
  fi
  if [[ -n "$now" ]]; then
    say "the slice $SLICE is $now; deleting it"
    delete_slice || return
  fi
  [[ "$SPOT" == 0 ]] || spot=(--spot)
  run "${tpu[@]}" create "$SLICE" "--zone=$ZONE" "--accelerator-type=$TYPE" \
    "--version=$VERSION" "${spot[@]}"
}

on_all_workers() {
  run "${tpu[@]}" ssh "$SLICE" "--zone=$ZONE" --worker=all "--command=$1"
}

# Stops a program that outlived a lost connection, and copies this checkout.
install() {
  on_all_workers "if test -x source/launch/tpu_worker.sh; then \
source/launch/tpu_worker.sh stop; fi && rm -rf source && mkdir source" &&
    run "${tpu[@]}" scp --recurse "$root/pyproject.toml" \
      "$root/requirements.txt" "$root/README.md" "$root/LICENSE" \
      "$root/reft_jax" "$root/models" "$root/launch" "$SLICE:source" \
      "--zone=$ZONE" --worker=all &&
    on_all_workers "$(show source/launch/tpu_worker.sh install "$STORAGE")"
}

# Lets the program save and end on all workers, which ends the ssh command.
stop() {
  say "stopping the training"
  on_all_workers "source/launch/tpu_worker.sh stop" || kill "$child" || true
}

# Deletes the slice, however this script ends.
finish() {
  trap '' INT TERM
  if [[ "$KEEP" == 1 ]]; then
    say "the slice $SLICE keeps running"
  elif [[ -n "$dry_run" || -n "$(state)" ]]; then
    delete_slice || say "the slice $SLICE may still be running; delete it"
  fi
}
trap finish EXIT

exit_on_signals() {
  trap 'exit 130' INT
  trap 'exit 143' TERM
}
exit_on_signals

while true; do
  if prepare_slice && install; then
    supervise on_all_workers "$(show source/launch/tpu_worker.sh train "$@")"
    exit_on_signals
    reason="failed with exit code $status"
  else
    status=$?
    reason="the slice could not be created or prepared"
  fi
  case "$status" in
    0 | 2 | 4) exit "$status" ;;
    75) reason="preempted" ;;
    255) reason="the connection was lost" ;;
    *) ;;
  esac
  pause_or_exit "$reason"
done
