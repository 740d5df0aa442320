#!/usr/bin/env bash
# Several processes on this machine, to try things out:
#
#   launch/local.sh PROCESSES DEVICES --config=... --workdir=... [--config.key=value ...]
#
# DEVICES: simulated CPU devices of each process, or `gpu` to deal out this machine's GPUs.
# shellcheck disable=SC2329  # functions run by keep_running, below
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/restart.sh
. "$here/restart.sh"

# How long the others may take to end after one failed: guard.heartbeat_seconds, and 10 s.
GRACE_S=${GRACE_S:-70}

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || ! ${2:-} =~ ^([1-9][0-9]*|gpu)$ ]]; then
  say "usage: launch/local.sh PROCESSES DEVICES|gpu --config=... --workdir=..."
  exit 64
fi
processes=$1 devices=$2
shift 2
workdir=$(workdir_of "$@") || exit

gpus=()
if [[ $devices == gpu ]]; then
  if [[ ! ${CUDA_VISIBLE_DEVICES:-} ]] && ! command -v nvidia-smi > /dev/null; then
    say "no NVIDIA GPU here: nvidia-smi is not found"
    exit 64
  fi
  all=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}
  IFS=, read -ra gpus <<< "$all"
  if ((${#gpus[@]} == 0 || ${#gpus[@]} % processes)); then
    say "${#gpus[@]} GPUs cannot be dealt out to $processes processes"
    exit 64
  fi
fi

free_port() {
  local port
  while
    port=$((20000 + RANDOM % 10000))
    (: > "/dev/tcp/127.0.0.1/$port") 2> /dev/null # somebody answers
  do :; done
  echo "$port"
}

# Become process $1 of the run.
process() {
  export JAX_PROCESS_ID=$1
  shift
  if [[ $devices == gpu ]]; then
    local share=$((${#gpus[@]} / processes))
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:JAX_PROCESS_ID * share:share}")
    export CUDA_VISIBLE_DEVICES
  else
    export JAX_PLATFORMS=cpu
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
  fi
  exec python -m xmae_jax.main --distributed "$@"
}

# Start all processes; return the code that decides.
together() {
  local i left pids=() codes=() deadline=''
  # A new port each time: of the last start, sockets may still be lingering.
  JAX_COORDINATOR_ADDRESS=127.0.0.1:$(free_port)
  export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$processes
  trap 'kill -TERM "${pids[@]}" 2> /dev/null || true' TERM
  for ((i = 0; i < processes; i++)); do
    process "$i" "$@" &
    pids+=($!)
  done
  left=$processes
  while ((left > 0)); do
    sleep 0.2
    for ((i = 0; i < processes; i++)); do
      if [[ ${codes[i]:-} ]]; then continue; fi
      if [[ $deadline && $SECONDS -ge $deadline ]]; then
        say "process $i goes on without the others: killed"
        kill -KILL "${pids[i]}" 2> /dev/null || true
        wait "${pids[i]}" || true
        codes[i]=134 # no cause of anything: it lost its peers, and would not see it
      elif ! kill -0 "${pids[i]}" 2> /dev/null; then
        codes[i]=0
        wait "${pids[i]}" || codes[i]=$?
        if ((codes[i] != 0)); then deadline=${deadline:-$((SECONDS + GRACE_S))}; fi
      else
        continue
      fi
      left=$((left - 1))
    done
  done
  say "exit codes: ${codes[*]}"
  return "$(deciding "${codes[@]}")"
}

keep_running "$workdir" together "$@"
