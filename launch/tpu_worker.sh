#!/usr/bin/env bash
# What tpu_vm.sh has each worker of a slice do.
#
#   launch/tpu_worker.sh [--dry-run] [--help] install STORAGE
#   launch/tpu_worker.sh [--dry-run] train [ARGUMENT...]
#   launch/tpu_worker.sh [--dry-run] stop
#
# needs   an image of Cloud TPU VMs: Ubuntu, sudo, and a way to the internet
# does    install: the checkout that this file lies in, into ~/reft, and mounts
#         STORAGE, gs://BUCKET or HOST:/SHARE, as ~/storage
#         train: python -m reft_jax.train ARGUMENT... in ~/storage
#         stop: lets training save and end; after five minutes it must
# gives   the program's exit code; of install 2 where STORAGE cannot be mounted
#         anywhere, 1 where it failed
#
#   --dry-run  print the commands instead of running them
#   --help     print this

set -euo pipefail

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

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

# Whether a test fails. What is printed is what a new worker would do.
lacks() { [[ -n "$dry_run" ]] || ! "$@" >/dev/null 2>&1; }

# Reads what is asked of this script.
dry_run=
while (($#)); do
  case "$1" in
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit ;;
    *) break ;;
  esac
  shift
done

# Brings gcsfuse, which mounts buckets, from Google's packages.
install_gcsfuse() {
  local source=https://packages.cloud.google.com/apt
  local key=/usr/share/keyrings/cloud.google.asc release
  release="$(lsb_release --short --codename)"
  run sudo curl --silent --show-error --fail --output "$key" \
    "$source/doc/apt-key.gpg"
  run sudo sh -c "echo 'deb [signed-by=$key] $source gcsfuse-$release main' \
> /etc/apt/sources.list.d/gcsfuse.list"
  run sudo apt-get --quiet update
  run sudo apt-get --quiet --yes install gcsfuse
}

# Makes STORAGE, the same for all workers, appear as ~/storage.
mount_storage() {
  run mkdir -p "$HOME/storage"
  lacks mountpoint --quiet "$HOME/storage" || return 0
  case "$1" in
    gs://*)
      if lacks command -v gcsfuse; then
        install_gcsfuse
      fi
      # Without a cache of what lies there: other workers write it.
      run gcsfuse --implicit-dirs --rename-dir-limit=100000 \
        --metadata-cache-ttl-secs=0 "${1#gs://}" "$HOME/storage"
      ;;
    *:/*)
      run sudo apt-get --quiet update
      run sudo apt-get --quiet --yes install nfs-common
      # What was missing a moment ago is looked for again.
      run sudo mount -t nfs -o lookupcache=positive "$1" "$HOME/storage"
      ;;
    *)
      echo "tpu_worker.sh: $1 is neither gs://BUCKET nor HOST:/SHARE" >&2
      exit 2
      ;;
  esac
}

# Installs the checkout with a Python of its own: the image's can be too old.
install_program() {
  local source
  source="$(cd "$(dirname "$0")/.." && pwd)"
  if lacks test -x "$HOME/.local/bin/uv"; then
    run sh -c "curl --silent --show-error --fail --location \
https://astral.sh/uv/install.sh | sh"
  fi
  run "$HOME/.local/bin/uv" venv --quiet --clear --python 3.12 "$HOME/reft"
  run "$HOME/.local/bin/uv" pip install --quiet \
    --python "$HOME/reft/bin/python" "${source}[tpu]"
}

# Waits for training to end, which saves when it gets SIGTERM.
stop_training() {
  local program="[-]m reft_jax[.]train" deadline="$((SECONDS + 300))"
  run pkill --signal TERM --full "$program" || return 0
  until lacks pgrep --full "$program" || ((SECONDS > deadline)); do
    sleep 2
  done
  run pkill --signal KILL --full "$program" || true
}

case "${1:-}" in
  install)
    # Whatever fails may work the next time; 2 says that it cannot.
    set -E
    trap 'exit 1' ERR
    mount_storage "${2:?which STORAGE?}"
    install_program
    ;;
  train)
    # Paths that are relative lie on STORAGE.
    run cd "$HOME/storage"
    run exec "$HOME/reft/bin/python" -m reft_jax.train "${@:2}"
    ;;
  stop) stop_training ;;
  *)
    usage >&2
    exit 2
    ;;
esac
