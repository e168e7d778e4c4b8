#!/usr/bin/env bash
# Runs the lines of experiments.txt; each is the flags of one run of fedalg.py.
#
#   sbatch run_experiments.sh       on SLURM: submits an array job, a task for each line that is not finished yet
#   ./run_experiments.sh --submit   the same, from where sbatch may be called, without a job for it
#   ./run_experiments.sh            here, all of them one after the other
#   ./run_experiments.sh 7          here, the 7th only
#   ./run_experiments.sh --status   a table of what has become of each
#   ./run_experiments.sh --count    how many there are
#
# A task that reaches its time limit saves its run, goes back into the queue and goes on from there; so does one whose
# node is lost. The partition, account, qos, constraint, time, gres, CPUs and memory that sbatch is given in the first
# way hold for the tasks too: sbatch --partition=long --gres=none run_experiments.sh
#
# GPUS_PER_RUN=4 gives each experiment four processes a node, one a GPU, and sbatch --nodes=2 two nodes (without a job to
# submit from: NODES=2). On nodes without GPUs (--gres=none) they share the CPUs.
#
# Environment: EXPERIMENTS=file to read instead of experiments.txt, EXTRA="flags added to every run",
# PYTHON=interpreter (default: .venv/bin/python if it is there, else python3), SETUP=file to source before it (for
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

# SLURM runs a copy of this script, so its own place tells nothing in a batch job. In an interactive one it does.
batch=
[ "${ENVIRONMENT:-}" != BATCH ] || batch=${SLURM_JOB_ID:-}
if [ -n "$batch" ]; then cd "$SLURM_SUBMIT_DIR"; else cd "$(dirname "${BASH_SOURCE[0]}")"; fi
experiments=${EXPERIMENTS:-experiments.txt}
read -ra extra <<<"${EXTRA:-}"
if [ -n "${SETUP:-}" ]; then
  set +u # what such files source seldom survives it
  # shellcheck source=/dev/null
  source "$SETUP"
  set -u
fi
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# torch would start a thread for each core of the node, and jobs that share one would trip over each other.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# One experiment an entry: comments and empty lines dropped. No line is ever given to a shell to interpret.
[ -r "$experiments" ] || { echo "run_experiments.sh: error: cannot read $experiments" >&2; exit 2; }
mapfile -t lines < <(LC_ALL=C sed -e 's/\r$//' -e 's/#.*//' -e '/^[ \t]*$/d' "$experiments")
resumable=75 # fedalg.py's status when a signal ended it

run() { # run N: the Nth experiment, from 1; a signal is passed on, and told in $signal
  if ! [[ $1 =~ ^[1-9][0-9]*$ ]] || [ "$1" -gt "${#lines[@]}" ]; then
    echo "run_experiments.sh: error: there is no experiment '$1'; $experiments has 1 to ${#lines[@]}" >&2
    return 2
  fi
  local flags child status=0
  signal=
  read -ra flags <<<"${lines[$1 - 1]}"
  flags+=(${extra[@]+"${extra[@]}"}) # bash before 4.4 takes an empty array for one that is not set
  echo "experiment $1: ${flags[*]}"
  local command=("$python" fedalg.py)
  if [ -n "${GPUS_PER_RUN:-}" ] && [ -n "$batch" ]; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    # A process that fails ends the others by itself, when what they have is saved.
    # shellcheck disable=SC2016
    command=(srun --input=none --kill-on-bad-exit=0 --wait=0 bash -c
      'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' rank "${command[@]}")
  elif [ -n "${GPUS_PER_RUN:-}" ]; then
    command=("$python" -m torch.distributed.run --standalone --nproc_per_node "$GPUS_PER_RUN" fedalg.py)
  fi
  set -m # a process group of its own: what is typed at the terminal comes to this script alone
  "${command[@]}" "${flags[@]}" &
  child=$!
  local name to
  for name in USR1 TERM INT HUP; do
    to=${name/HUP/TERM}
    [ "${command[1]}" != -m ] || to=${to/USR1/TERM} # torchrun knows no USR1
    # shellcheck disable=SC2064
    trap "signal=$name; kill -$to $child 2>/dev/null || true" "$name"
  done
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done # a signal ends a wait
  [ -z "$signal" ] || { status=0; wait "$child" || status=$?; }
  trap - USR1 TERM INT HUP
  set +m
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
  return "$status"
}

submit() { # submit what is missing as array jobs
  local missing limit jobs=() offset first last parts part range
  missing=$("$python" experiments.py "$experiments" --missing -- ${extra[@]+"${extra[@]}"})
  [ -n "$missing" ] || { echo "all ${#lines[@]} experiments are finished or under way"; return; }
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
      *) echo "run_experiments.sh: error: GPUS_PER_RUN=$GPUS_PER_RUN does not go with --gres=$gres" >&2 && exit 2 ;;
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
  for ((offset = 0; offset < ${#lines[@]}; offset += limit - 1)); do
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
      ${like[@]+"${like[@]}"} run_experiments.sh --task-after "$offset")
    jobs+=("${first%%;*}")
    echo "job ${first%%;*}: lines $part of $experiments, counted after $offset"
  done
  local after
  after=afterany:$(IFS=: && echo "${jobs[*]}")
  if [ -n "${PLOT:-}" ]; then
    sbatch --dependency="$after" ${site[@]+"${site[@]}"} plotting.sh
  else
    echo "for the figures afterwards: sbatch --dependency=$after plotting.sh"
  fi
}

case ${1-all} in
--count) echo "${#lines[@]}" ;;
--status) exec "$python" experiments.py "$experiments" -- ${extra[@]+"${extra[@]}"} ;;
--submit) submit ;;
--task-after) task $((SLURM_ARRAY_TASK_ID + $2)) ;; # what `submit` has an array's tasks do
all)
  if [ -n "$batch" ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    task "$SLURM_ARRAY_TASK_ID"
  elif [ -n "$batch" ]; then
    submit
  else
    failed=()
    for n in $(seq "${#lines[@]}"); do
      status=0
      run "$n" || status=$?
      [ -z "$signal" ] || exit "$((status ? status : resumable))"
      [ "$status" -eq 0 ] || failed+=("$n")
    done
    [ ${#failed[@]} -eq 0 ] || { echo "run_experiments.sh: failed: ${failed[*]}" >&2; exit 1; }
  fi
  ;;
*) run "$1" ;;
esac
