#!/usr/bin/env bash
# Decides whether a run that ended is started again; every launcher asks here. README.md beside it
# has the table. Exit codes are main.py's; 74 also means: three starts brought no new checkpoint.
#
#   restart.sh COMMAND ...            start it, and again until it ends for good
#   restart.sh --attempt=N COMMAND .. start it once, as restart N of a scheduler that does the rest
#   restart.sh --note COMMAND ...     one process of several: leave its exit code for the launcher
#
# COMMAND holds --workdir=DIR. What launchers note stands beside it in DIR.launch, never in it: a
# directory that holds anything else is not taken for a run directory.
set -euo pipefail

RESTART_WAIT_S=${RESTART_WAIT_S:-60} # before a start after 73; tests shorten it

say() { echo "launch: $*" >&2; }

# What to do after exit code $1: done, again, wait (then again) or stop.
decide() {
  case $1 in
    0) echo "done" ;;
    75 | 134 | 137 | 143) echo again ;;
    73) echo wait ;;
    *) echo stop ;;
  esac
}

# The one of several processes' exit codes that decides. What one of them says of config, data, loss
# or disk holds for all. Otherwise one that was killed explains what became of its peers (134, or an
# exception that nobody foresaw); without one, such an exception explains the 134s.
deciding() {
  local code rank best=-1 found=0
  for code in "$@"; do
    case $code in
      64 | 65 | 70 | 74) rank=6 ;;
      73) rank=5 ;;
      137) rank=4 ;;
      134 | 143) rank=2 ;;
      75) rank=1 ;;
      0) rank=0 ;;
      *) rank=3 ;;
    esac
    if ((rank > best)); then best=$rank found=$code; fi
  done
  echo "$found"
}

# The value of --workdir among a command's arguments.
workdir_of() {
  local previous='' argument
  for argument in "$@"; do
    case $argument in
      --workdir=*) previous=--workdir argument=${argument#*=} ;;
    esac
    if [[ $previous == --workdir && $argument ]]; then
      echo "${argument%/}"
      return
    fi
    previous=$argument
  done
  say "give --workdir=DIR, on a file system that all hosts share"
  return 64
}

# The number of the newest checkpoint of run directory $1, or none. Half-written ones have other
# names.
newest_checkpoint() {
  local path name newest=none
  for path in "$1"/checkpoints/*/; do
    name=$(basename "$path")
    if [[ $name =~ ^[0-9]+$ && ($newest == none || $name -gt $newest) ]]; then newest=$name; fi
  done
  echo "$newest"
}

# Count a start of run directory $1, restart number $2; fail if three began where this one would.
may_start() {
  local record=$1.launch/starts newest before='' starts=0
  mkdir -p "$1.launch" || return
  newest=$(newest_checkpoint "$1")
  if (($2 > 0)) && [[ -f $record ]]; then read -r before starts < "$record" || true; fi
  [[ $before == "$newest" ]] || starts=0
  if ((starts >= 3)); then
    say "three starts and no new checkpoint in $1 (newest: $newest): giving up"
    return 1
  fi
  echo "$newest $((starts + 1))" > "$record"
}

# How a command that runs as process $1 is told to save and end: not by SIGINT, which the shell
# makes what it starts in the background deaf to. Launchers that start other hosts have their own.
hand_on() { kill -TERM "$1" 2> /dev/null || true; }

# Run a command, hand SIGTERM and SIGINT on to it, and set `code` to how it ended, `asked` if there
# was such a signal.
code=0 asked=''
run() {
  local pid woken=1 ended
  "$@" &
  pid=$!
  trap 'asked=1 woken=1; hand_on "$pid"' TERM INT
  code=127
  while [[ $woken ]]; do # a signal ends `wait`, not the command
    woken='' ended=0
    wait "$pid" || ended=$?
    ((ended == 127)) || code=$ended
  done
  trap - TERM INT
}

# What the processes that ran under --note left in $1.launch/codes makes the exit code of all; $2 is
# what srun or ssh made of them, which may be the code of any, or of how it ended the others itself.
collect() {
  local codes noted
  mapfile -t codes < <(cat "$1.launch/codes/"* 2> /dev/null)
  noted=$(deciding "${codes[@]}")
  if ((noted == 0 && $2 != 0)); then
    # ssh says 255 where the connection or the host went away: a process that nobody saw end.
    if (($2 == 255)); then echo 137; else echo "$2"; fi
  else
    echo "$noted"
  fi
}

forget_codes() { rm -rf "$1.launch/codes" && mkdir -p "$1.launch/codes"; }

# Start a command (or function) until it ends for good; exit with its code.
keep_running() {
  local workdir=$1 attempt=0 verdict
  shift
  while may_start "$workdir" "$attempt"; do
    run "$@"
    verdict=$(decide "$code")
    if [[ $asked || $verdict == "done" || $verdict == stop ]]; then exit "$code"; fi
    if [[ $verdict == wait ]]; then sleep "$RESTART_WAIT_S"; fi
    attempt=$((attempt + 1))
    say "ended with $code; restart $attempt"
  done
  exit 74
}

main() {
  local mode=keep workdir
  case ${1:-} in
    --attempt=* | --note)
      mode=$1
      shift
      ;;
  esac
  workdir=$(workdir_of "$@") || exit
  case $mode in
    keep) keep_running "$workdir" "$@" ;;
    --note)
      run "$@"
      echo "$code" > "$workdir.launch/codes/$HOSTNAME.$$" || say "exit code $code not noted"
      ;;
    --attempt=*)
      # Of a JobSet's pods only the first counts, or a start would count once for each.
      if [[ ${JOB_COMPLETION_INDEX:-0} == 0 ]]; then
        may_start "$workdir" "${mode#*=}" || exit 74
      fi
      run "$@"
      if [[ $(decide "$code") == wait ]]; then sleep "$RESTART_WAIT_S"; fi
      ;;
  esac
  exit "$code"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
