#!/usr/bin/env bash
# A TPU VM slice, from a machine that outlives it and mounts the same file system at the same path:
#
#   launch/tpu_vm.sh run --config=... --workdir=... [--config.key=value ...]
#   launch/tpu_vm.sh up | stop | down
#
# up: queue for the slice and wait for it. run: the same, then start every host; a slice that was
# preempted is queued for again. stop: save and end (75). down: give the slice back.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/restart.sh
. "$here/restart.sh"

: "${TPU_NAME:?name of the slice}" "${TPU_ZONE:?such as us-west4-a}"
TPU_TYPE=${TPU_TYPE:-v5litepod-16}
TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv5-lite}
POLL_S=${POLL_S:-30} # tests shorten it

tpu() { gcloud compute tpus "$1" "$2" "$TPU_NAME" --zone="$TPU_ZONE" --quiet "${@:3}"; }
everywhere() { tpu tpu-vm ssh --worker=all --command="$1"; }

up() {
  local request node
  while :; do
    request=$(tpu queued-resources describe --format='value(state.state)' 2> /dev/null) ||
      request=none
    node=$(tpu tpu-vm describe --format='value(state)' 2> /dev/null) || node=none
    say "$TPU_NAME: request $request, slice $node"
    case $request:$node in
      ACTIVE:READY) return ;;
      none:*)
        # --spot: a third of the price, and taken away when somebody pays more.
        tpu queued-resources create --node-id="$TPU_NAME" --spot \
          --accelerator-type="$TPU_TYPE" --runtime-version="$TPU_RUNTIME"
        ;;
      FAILED:* | SUSPENDED:* | ACTIVE:PREEMPTED | ACTIVE:TERMINATED) down ;;
    esac
    sleep "$POLL_S"
  done
}

down() { tpu queued-resources delete --force; }

stop() { everywhere 'sudo docker kill --signal=TERM xmae_jax'; }

# Start every host once; return the code that decides.
start() {
  local ended=0
  up
  forget_codes "$workdir"
  chmod a+w "$workdir.launch/codes" # for the image's user
  # A host that goes away now is one that was lost.
  everywhere "$prepare" || return 137
  everywhere "$command" || ended=$?
  return "$(collect "$workdir" "$ended")"
}

# Where no host can be reached there is nothing to save, only the wait for a slice to end.
hand_on() { stop || kill -TERM "$1" 2> /dev/null || true; }

case ${1:-} in
  up | stop | down) "$1" ;;
  run)
    shift
    : "${IMAGE:?of launch/Dockerfile.tpu, in a registry}"
    : "${NFS:?server:/export}" "${SHARE:?where it is mounted}"
    workdir=$(workdir_of "$@") || exit
    # What an earlier start left, because ssh broke off, is saved and removed first.
    prepare="set -e
      mountpoint -q $SHARE || {
        sudo apt-get update -qq
        sudo apt-get install -qq -y nfs-common
        sudo mkdir -p $SHARE
        sudo mount -t nfs $NFS $SHARE
      }
      sudo gcloud auth configure-docker ${IMAGE%%/*} --quiet
      sudo docker pull -q $IMAGE
      sudo docker stop --time 120 xmae_jax || true
      sudo docker rm xmae_jax || true"
    # gcloud repeats a command whose connection broke: it must find the process, not start another.
    # Host network: JAX asks the VM's metadata who its peers are. Locked memory: the TPU's driver.
    command="sudo docker inspect xmae_jax > /dev/null 2>&1 ||
      sudo docker run --detach --name xmae_jax --privileged --network host --ipc host \
        --ulimit memlock=-1 --volume $SHARE:$SHARE --entrypoint bash $IMAGE \
        launch/restart.sh --note python -m xmae_jax.main --distributed $(printf '%q ' "$@")
      sudo docker logs --follow --since 1m xmae_jax
      exit \$(sudo docker wait xmae_jax)"
    keep_running "$workdir" start
    ;;
  *)
    say "usage: launch/tpu_vm.sh up | run ARGUMENTS | stop | down"
    exit 64
    ;;
esac
