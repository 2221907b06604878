#!/usr/bin/env bash
# Runs on each worker of a slice. tpu_vm.sh calls it.
#
#   launch/tpu_worker.sh [--dry-run] [--help] install STORAGE
#   launch/tpu_worker.sh [--dry-run] train [ARGUMENT...]
#   launch/tpu_worker.sh [--dry-run] stop
#
# needs   an image of Cloud TPU VMs: Ubuntu, sudo, and access to the internet
# does    install: installs the checkout of this file into ~/reft, and mounts
#         STORAGE, gs://BUCKET or HOST:/SHARE, as ~/storage
#         train: runs python -m reft_jax.train ARGUMENT... in ~/storage
#         stop: lets training save a checkpoint and end; kills it after five
#         minutes
# gives   the program's exit code. install exits with 2 if STORAGE is neither a
#         bucket nor a share, and with 1 after any other failure
#
#   --dry-run  print the commands instead of running them
#   --help     print this text

set -euo pipefail

source "$(dirname "$0")/lib.sh"

# Whether a check fails. Under --dry-run all fail, as on a new worker.
lacks() { [[ -n "$dry_run" ]] || ! "$@" >/dev/null 2>&1; }

# Installs gcsfuse, which mounts buckets, from Google's package source.
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

# Mounts STORAGE, which all workers share, as ~/storage.
mount_storage() {
  run mkdir -p "$HOME/storage"
  lacks mountpoint --quiet "$HOME/storage" || return 0
  case "$1" in
    gs://*)
      if lacks command -v gcsfuse; then
        install_gcsfuse
      fi
      # Metadata is not cached, because other workers write to the bucket.
      run gcsfuse --implicit-dirs --rename-dir-limit=100000 \
        --metadata-cache-ttl-secs=0 "${1#gs://}" "$HOME/storage"
      ;;
    *:/*)
      run sudo apt-get --quiet update
      run sudo apt-get --quiet --yes install nfs-common
      # Missing files are not cached, because other workers create them.
      run sudo mount -t nfs -o lookupcache=positive "$1" "$HOME/storage"
      ;;
    *)
      say "$1 is neither gs://BUCKET nor HOST:/SHARE"
      exit 2
      ;;
  esac
}

# Installs the checkout with a new Python, as the image's can be too old.
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

# Sends SIGTERM, so that training saves a checkpoint, and waits for its end.
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
    # Other failures may be temporary, so they must not exit with 2.
    set -E
    trap 'exit 1' ERR
    mount_storage "${2:?which STORAGE?}"
    install_program
    ;;
  train)
    # Relative paths are on STORAGE.
    run cd "$HOME/storage"
    run exec "$HOME/reft/bin/python" -m reft_jax.train "${@:2}"
    ;;
  stop) stop_training ;;
  *)
    usage >&2
    exit 2
    ;;
esac
