#!/usr/bin/env bash
# Runs the lines of experiments.txt; each is the flags of one run of fedalg.py.
#
#   sbatch run_experiments.sh       on SLURM: submits an array job, a task for each line that is not finished yet
#   ./run_experiments.sh --submit   the same, from where sbatch may be called, without a job for it
#   ./run_experiments.sh            here, all of them one after the other
#   JOBS=2 ./run_experiments.sh     here, two at a time; each line of output begins with the number of its experiment
#   ./run_experiments.sh 7          here, the 7th only
#   ./run_experiments.sh --status   a table of what has become of each
#   ./run_experiments.sh --count    how many there are
#   ./run_experiments.sh --help     this
#
# A task that reaches its time limit saves its run, goes back into the queue and goes on from there; so does one whose
# node is lost. The partition, account, qos, constraint, time, gres, CPUs and memory that sbatch is given in the first
# way hold for the tasks too: sbatch --partition=long --gres=none run_experiments.sh
#
# GPUS_PER_RUN=4 gives each experiment four processes a node, one a GPU, and sbatch --nodes=2 two nodes (without a job to
# submit from: NODES=2). On nodes without GPUs (--gres=none) they share the CPUs.
#
# Called from another folder, it works on the files there: all paths, those in the list too, are the caller's.
# Environment: EXPERIMENTS=file to read instead of experiments.txt (which is the caller's, if there is one, else that
# beside this script), EXTRA="flags added to every run", quoted as in the list,
# PYTHON=interpreter (default: .venv/bin/python beside this script, else python3), SETUP=file to source before it (for
# `module load` or `conda activate`), PLOT=1 to submit plotting.sh as well, for when all tasks have ended.
#
# ---- Your site: what a task gets. Also by environment, as sbatch has it: SBATCH_PARTITION, SBATCH_ACCOUNT, ...
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
##SBATCH --partition=
##SBATCH --account=
# ---- End of it.
#
#SBATCH --job-name=fedalg
#SBATCH --output=logs/%x_%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

refuse() { # refuse WORDS...: ends with one line on standard error
  echo "run_experiments.sh: error: $*" >&2
  exit 2
}

case ${1-} in -h | --help)
  sed -n -e '2,/^# ---- Your site/!d' -e '/^# ----/d' -e 's/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit
  ;;
esac

# SLURM runs a copy of this script, so its own place tells nothing in a batch job. In an interactive one it does.
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
batch=
[ "${ENVIRONMENT:-}" != BATCH ] || batch=${SLURM_JOB_ID:-}
if [ -n "$batch" ]; then
  cd "$SLURM_SUBMIT_DIR"
  here=$(scontrol show job "$batch" 2>/dev/null | sed -n 's|^ *Command=\(/.*\)/run_experiments\.sh.*|\1|p') || true
  [ "${1-}" != --task ] || here=$2
  [ -f "$here/fedalg.py" ] || here=$PWD
fi
if [ -n "${SETUP:-}" ]; then
  case $SETUP in /*) ;; *) SETUP=$PWD/$SETUP ;; esac # or it would be looked for in PATH
  [ -r "$SETUP" ] || refuse "SETUP: cannot read $SETUP"
  set +u # what such files source seldom survives it
  # shellcheck source=/dev/null
  source "$SETUP"
  set -u
fi
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}
# torch would start a thread for each core of the node, and jobs that share one would trip over each other.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

experiments=${EXPERIMENTS:-experiments.txt}
[ -n "${EXPERIMENTS:-}" ] || [ -e "$experiments" ] || experiments=$here/experiments.txt
case $experiments in /*) ;; *) experiments=$PWD/$experiments ;; esac

ask() { # ask WHAT: of run_status.py, which alone reads the list. No line is ever given to a shell to interpret.
  PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} "$python" -m fedmerge.reporting.run_status "$experiments" --extra="${EXTRA:-}" "$@"
}

words_of() { # words_of WHAT: what it answers in words, in the array $words; bash before 4.4 has no `mapfile -d`
  local word
  words=()
  while IFS= read -r -d '' word; do words+=("$word"); done < <(ask "$@")
}

resumable=75 elsewhere=73 # fedalg.py's statuses when a signal ended it, and when another process is at this very run

signal=
children=()
apart=(setsid) # starts a program in a process group of its own
command -v setsid >/dev/null || apart=("$python" -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])')
torchrun=
[ -z "${GPUS_PER_RUN:-}" ] || [ -n "$batch" ] || torchrun=yes
hear() { # hear NAME: of a signal; it is told in $signal, and passed on to $children
  local to=TERM # what bash starts in the background does not hear INT, Python not before it listens
  signal=$1
  [ "$1" != USR1 ] || [ -n "$torchrun" ] || to=USR1 # which torchrun does not know
  [ ${#children[@]} -eq 0 ] || kill "-$to" "${children[@]}" 2>/dev/null || true
}
listen() {
  local name
  # shellcheck disable=SC2064
  for name in USR1 TERM INT HUP; do trap "hear $name" "$name"; done
}

[ -z "$batch" ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || listen # a warning may come at once
if [ "${1-}" = --status ]; then
  ask
  exit
fi
count=$(ask --count)

finish() { # finish PID: wait for the end of it, and return its status
  local status=0
  wait "$1" || status=$?
  while kill -0 "$1" 2>/dev/null; do wait "$1" || status=$?; done # a signal ends a wait
  [ -z "$signal" ] || { status=0; wait "$1" || status=$?; }
  [ -z "$signal" ] || [ "$status" -le 128 ] || status=$resumable # it died before it could listen, or of a second one
  [ -z "$signal" ] || [ -z "$torchrun" ] || [ "$status" -ne 1 ] || status=$resumable # which torchrun makes of 75
  return "$status"
}

run() { # run N: the Nth experiment, from 1
  if ! [[ $1 =~ ^[1-9][0-9]{0,8}$ ]] || [ "$1" -gt "$count" ]; then
    refuse "there is no experiment '$1'; $experiments has 1 to $count (--help tells what else there is)"
  fi
  local words status=0
  words_of --line "$1"
  [ -z "$signal" ] || return "$resumable"
  [ ${#words[@]} -gt 0 ] || return 2 # it said why
  echo "experiment $1:$(printf ' %q' "${words[@]}")"
  local command=("$python" "$here/fedalg.py")
  if [ -n "${GPUS_PER_RUN:-}" ] && [ -n "$batch" ]; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    # A process that fails ends the others by itself, when what they have is saved.
    # shellcheck disable=SC2016
    command=(srun --input=none --kill-on-bad-exit=0 --wait=0 bash -c
      'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' rank "${command[@]}")
  elif [ -n "$torchrun" ]; then
    command=("$python" -m torch.distributed.run --standalone --nproc_per_node "$GPUS_PER_RUN" -- "$here/fedalg.py")
  fi
  listen
  [ -z "$signal" ] || return "$resumable"
  "${apart[@]}" "${command[@]}" "${words[@]}" & # what is typed at the terminal comes to this script alone
  children=("$!")
  [ -z "$signal" ] || hear "$signal" # it came just now
  finish "$!" || status=$?
  children=()
  return "$status"
}

task() { # task N: what the array's job for the Nth experiment does
  local status=0
  run "$1" || status=$?
  local job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} why=
  if [ "$status" -eq "$resumable" ]; then
    [ "$signal" != USR1 ] || why="near its time limit"
    # One that is pre-empted gets SIGTERM too, as one that is cancelled does, which shall not come back.
    [ "$signal" != TERM ] || ! scontrol show job -o "$job" | grep -q 'PreemptTime=[0-9]' || why="pre-empted"
  fi
  if [ -n "$why" ]; then
    echo "experiment $1: $why, goes back into the queue"
    scontrol requeue "$job" && sleep 60
  fi
  [ "$status" -ne "$elsewhere" ] || status=0
  return "$status"
}

submit() { # submit what is missing as array jobs
  local missing limit jobs=() offset first last parts part range
  missing=$(ask --missing)
  [ -n "$missing" ] || { echo "all $count experiments are finished or under way"; return; }
  mkdir -p logs # SLURM does not
  local site=() like=() nodes=${NODES:-${SLURM_JOB_NUM_NODES:-1}}
  if [ -n "${GPUS_PER_RUN:-}" ]; then
    like+=(--nodes="$nodes" --ntasks-per-node="$GPUS_PER_RUN")
    [ -n "$batch" ] || like+=(--gres="${SBATCH_GRES:-gpu:$GPUS_PER_RUN}")
  fi
  if [ -n "$batch" ]; then # what this very job was given, by whatever way
    local gres qos features
    gres=$(squeue -h -j "$batch" -o %b)
    qos=$(squeue -h -j "$batch" -o %q)
    features=$(squeue -h -j "$batch" -o %f)
    site+=(--partition="$SLURM_JOB_PARTITION")
    [ -z "${SLURM_JOB_ACCOUNT:-}" ] || [ "$SLURM_JOB_ACCOUNT" = "(null)" ] || site+=(--account="$SLURM_JOB_ACCOUNT")
    case $qos in N/A | "(null)" | "") ;; *) site+=(--qos="$qos") ;; esac
    case $features in N/A | "(null)" | "") ;; *) like+=(--constraint="$features") ;; esac
    like+=(--time="$(squeue -h -j "$batch" -o %l)")
    gres=${gres#gres:}
    gres=${gres#gres/}
    if [ -n "${GPUS_PER_RUN:-}" ]; then # that many instead of the one above; the kind, if any, stays
      gres=$(sed -E "s/^(gpu(:[^:,]*[^:,0-9][^:,]*)?)(:[0-9]+)?$/\\1:$GPUS_PER_RUN/" <<<"$gres")
      case $gres in
      gpu*:"$GPUS_PER_RUN" | N/A | "(null)" | "") ;;
      *) refuse "GPUS_PER_RUN=$GPUS_PER_RUN does not go with --gres=$gres" ;;
      esac
    fi
    case $gres in N/A | "(null)" | "") like+=(--gres=none) ;; *) like+=(--gres="$gres") ;; esac
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || like+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    if [ -n "${SLURM_MEM_PER_CPU:-}" ]; then
      like+=(--mem-per-cpu="$SLURM_MEM_PER_CPU")
    elif [ -n "${SLURM_MEM_PER_NODE:-}" ]; then
      like+=(--mem="$SLURM_MEM_PER_NODE")
    fi
  fi
  limit=$(scontrol show config | sed -n 's/^MaxArraySize *= *//p')
  [ "${limit:-0}" -gt 1 ] || limit=1001
  # An array's numbers end below the limit: further lines are counted from an offset.
  for ((offset = 0; offset < count; offset += limit - 1)); do
    part=
    IFS=, read -ra parts <<<"$missing"
    for range in "${parts[@]}"; do
      first=$((${range%-*} - offset)) last=$((${range#*-} - offset))
      [ "$first" -ge 1 ] || first=1
      [ "$last" -lt "$limit" ] || last=$((limit - 1))
      [ "$first" -gt "$last" ] || part+=${part:+,}$first-$last
    done
    [ -n "$part" ] || continue
    first=$(sbatch --parsable --array="$part" --output="logs/%x_%A_%a.out" ${site[@]+"${site[@]}"} \
      ${like[@]+"${like[@]}"} "$here/run_experiments.sh" --task "$here" "$offset")
    jobs+=("${first%%;*}")
    echo "job ${first%%;*}: lines $part of $experiments, counted after $offset"
  done
  local after words
  after=afterany:$(IFS=: && echo "${jobs[*]}")
  words_of --figures
  if [ ${#words[@]} -eq 0 ]; then
    echo "for the figures afterwards: plotting.sh --csv_dir FOLDER, for each folder of metrics that the list names"
  elif [ -n "${PLOT:-}" ]; then
    sbatch --dependency="$after" ${site[@]+"${site[@]}"} "$here/plotting.sh" "${words[@]}"
  else
    echo "for the figures afterwards: sbatch --dependency=$after$(printf ' %q' "$here/plotting.sh" "${words[@]}")"
  fi
}

failed=() away=() stopped=()
note() { # note N STATUS: how the Nth experiment ended
  case $2 in
  0) ;;
  "$elsewhere") away+=("$1") ;;
  "$resumable") stopped+=("$1") ;;
  *) failed+=("$1") ;;
  esac
}

reap() { # note those of $children that have ended
  local n status
  for n in "${!children[@]}"; do
    if ! kill -0 "${children[n]}" 2>/dev/null; then
      status=0
      finish "${children[n]}" || status=$?
      unset "children[$n]"
      note "$n" "$status"
    fi
  done
}

wait_for() { # wait_for N: until fewer than N experiments run here; bash before 4.3 has no `wait -n`
  while [ ${#children[@]} -ge "$1" ]; do
    sleep 0.1 || true
    reap
  done
}

numbered() { # numbered N: puts N before each line; no signal ends it before what writes to it
  trap '' USR1 TERM INT HUP
  exec sed -u "s/^/[$1] /"
}

one_by_one() {
  local n status
  for ((n = 1; n <= count; n++)); do
    status=0
    run "$n" || status=$?
    note "$n" "$status"
    [ -z "$signal" ] || break
  done
}

side_by_side() { # side_by_side N: at most N at a time
  local n cores
  cores=$(getconf _NPROCESSORS_ONLN)
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > $1 ? cores / $1 : 1))}"
  listen
  for ((n = 1; n <= count; n++)); do
    wait_for "$1"
    [ -z "$signal" ] || break
    "${apart[@]}" "${BASH_SOURCE[0]}" "$n" > >(numbered "$n") 2>&1 & # as in run: no signal comes twice
    children[n]=$!
  done
  wait_for 1
}

all() {
  local at_once=${JOBS:-1}
  [[ $at_once =~ ^[1-9][0-9]{0,3}$ ]] || refuse "JOBS=$at_once: is not a number of experiments, such as 2"
  if [ "$at_once" -eq 1 ]; then one_by_one; else side_by_side "$at_once"; fi
  [ ${#away[@]} -eq 0 ] || echo "run_experiments.sh: go on in other processes: ${away[*]}"
  [ ${#stopped[@]} -eq 0 ] || echo "run_experiments.sh: stopped, go on when called again: $(printf '%s\n' "${stopped[@]}" | sort -n | xargs)" >&2
  [ ${#failed[@]} -eq 0 ] || echo "run_experiments.sh: failed: ${failed[*]}" >&2
  [ -z "$signal" ] || exit "$resumable"
  [ ${#failed[@]} -eq 0 ] || exit 1
  [ ${#stopped[@]} -eq 0 ] || exit "$resumable"
}

[ $# -le 1 ] || [ "$1" = --task ] || refuse "one argument at most, not: $*"
case ${1-all} in
--count) echo "$count" ;;
--submit) submit ;;
--task) task $((SLURM_ARRAY_TASK_ID + $3)) ;; # --task FOLDER OFFSET: what `submit` has an array's tasks do
all)
  if [ -n "$batch" ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    task "$SLURM_ARRAY_TASK_ID"
  elif [ -n "$batch" ]; then
    submit
  else
    all
  fi
  ;;
-*) refuse "unknown argument $1: --submit, --status, --count, --help, or a number from 1 to $count" ;;
*) run "$1" ;;
esac
