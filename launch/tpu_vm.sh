#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs, on all its workers, and deletes the slice.
#
#   ZONE=.. STORAGE=.. launch/tpu_vm.sh [--dry-run] [--help] [ARGUMENT...]
#
# needs   gcloud with a project, and the key of its ssh in the agent, as it asks
#         for: ssh-add ~/.ssh/google_compute_engine
# does    creates the slice, or takes the one of that name; copies this checkout
#         to all workers, installs it, mounts STORAGE as ~/storage; and runs
#         python -m reft_jax.train ARGUMENT... there, on all workers at once.
#         A slice that was preempted is deleted and created again. Then, and
#         after a crash or a lost connection, the run goes on from its last
#         save. Not after 0 (done), 2 (bad input), 4 (diverged).
# gives   the run's folder on STORAGE: output=FOLDER or runs/NAME-seedSEED, seen
#         from its top. It cannot lie elsewhere: a worker's own disk is not seen
#         by the others, and is gone with the slice. The same holds for data and
#         models that lie in files
# resume  with the same command
# stop    with Ctrl+C or SIGTERM, once: the program saves, the slice is deleted.
#         However this script ends, it deletes the slice; only where it is
#         killed by SIGKILL, or cannot reach the cloud, the slice stays. See
#         gcloud compute tpus tpu-vm list --zone=ZONE
#
#   --dry-run  print the commands instead of running them
#   --help     print this
#   These come first; all that follows goes to reft_jax.train.
#
#   ZONE           always needed: such as us-central1-a
#   STORAGE        always needed: HOST:/SHARE, an NFS share such as Filestore's;
#                  or gs://BUCKET, mounted by gcsfuse: one with a hierarchical
#                  namespace. In a bucket, the metrics since the program's last
#                  start are lost with the slice
#   SLICE=reft     its name
#   TYPE=v5litepod-16            its accelerators
#   VERSION=v2-alpha-tpuv5-lite  its software. v6e: v2-alpha-tpuv6e; v5p:
#                  v2-alpha-tpuv5; v4: tpu-ubuntu2204-base
#   SPOT=1         0: a slice that is not preempted, and costs more
#   KEEP=0         1: the slice is left running at the end, and costs money
#   RESTARTS=100   starts after the first, at most
#   PAUSE=60       seconds before each of them

set -euo pipefail

: "${ZONE:=}" "${STORAGE:=}" "${SLICE:=reft}" "${TYPE:=v5litepod-16}"
: "${VERSION:=v2-alpha-tpuv5-lite}" "${SPOT:=1}" "${KEEP:=0}"
: "${RESTARTS:=100}" "${PAUSE:=60}"

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
say() { echo "tpu_vm.sh: $*" >&2; }

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

# Refuses what cannot start, and what would be lost.
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
    refuse "$argument: give a folder on STORAGE, seen from its top"
done

tpu=(gcloud compute tpus tpu-vm)
root="$(cd "$(dirname "$0")/.." && pwd)"

# The slice's state, such as READY or PREEMPTED; nothing where there is none.
state() {
  [[ -z "$dry_run" ]] || return 0
  "${tpu[@]}" describe "$SLICE" "--zone=$ZONE" "--format=value(state)" \
    2>/dev/null || true
}

delete_slice() { run "${tpu[@]}" delete "$SLICE" "--zone=$ZONE" --quiet; }

# Takes the slice where it is alive, else creates it.
have_slice() {
  local now spot=()
  now="$(state)"
  if [[ "$now" == READY ]]; then
    say "takes the slice $SLICE that is there"
    return
  fi
  if [[ -n "$now" ]]; then
    say "the slice $SLICE is $now: it is deleted"
    delete_slice || return
  fi
  [[ "$SPOT" == 0 ]] || spot=(--spot)
  run "${tpu[@]}" create "$SLICE" "--zone=$ZONE" "--accelerator-type=$TYPE" \
    "--version=$VERSION" "${spot[@]}"
}

on_all_workers() {
  run "${tpu[@]}" ssh "$SLICE" "--zone=$ZONE" --worker=all "--command=$1"
}

# Ends what a lost connection left behind, and brings this checkout.
install() {
  on_all_workers "if test -x source/launch/tpu_worker.sh; then \
source/launch/tpu_worker.sh stop; fi && rm -rf source && mkdir source" &&
    run "${tpu[@]}" scp --recurse "$root/pyproject.toml" \
      "$root/requirements.txt" "$root/README.md" "$root/LICENSE" \
      "$root/reft_jax" "$root/models" "$root/launch" "$SLICE:source" \
      "--zone=$ZONE" --worker=all &&
    on_all_workers "$(show source/launch/tpu_worker.sh install "$STORAGE")"
}

# Trains to the end. A signal ends `wait` before that: wait again.
train() {
  on_all_workers "$(show source/launch/tpu_worker.sh train "$@")" &
  child=$!
  trap stop INT TERM
  interrupted=1
  while [[ -n "$interrupted" ]]; do
    interrupted=
    status=0
    wait "$child" || status=$?
  done
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# Lets the program save and end on all workers, which ends `train`.
stopping=
stop() {
  stopping=1
  interrupted=1
  say "stops training"
  on_all_workers "source/launch/tpu_worker.sh stop" || kill "$child" || true
}

# However this script ends, no slice is left running.
finish() {
  trap '' INT TERM
  if [[ "$KEEP" == 1 ]]; then
    say "the slice $SLICE is left as it is"
  elif [[ -n "$dry_run" || -n "$(state)" ]]; then
    delete_slice || say "the slice $SLICE may still run: delete it"
  fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for ((restarts = 0; ; restarts++)); do
  # Have a slice, have the program on it, train.
  if have_slice && install; then
    train "$@"
    reason="failed with exit code $status"
  else
    status=$?
    reason="there is no slice, or it could not be prepared"
  fi
  # Leave if it would end the same way again, or was asked to.
  case "$status" in
    0 | 2 | 4) exit "$status" ;;
    75) reason="preempted" ;;
    255) reason="the connection was lost" ;;
    *) ;;
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
  sleep "$PAUSE"
done
