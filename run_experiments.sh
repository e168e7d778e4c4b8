#!/usr/bin/env bash
# Runs the lines of experiments.txt; each is the flags of one run of fedalg.py.
#
#   sbatch run_experiments.sh       on SLURM, as an array job: task N runs the Nth experiment
#   ./run_experiments.sh            here, all of them one after the other
#   ./run_experiments.sh 7          here, the 7th only
#   ./run_experiments.sh --count    say how many there are, for sbatch --array=1-COUNT
#
# Environment: EXPERIMENTS=file to read instead of experiments.txt, EXTRA="flags added to every run",
# PYTHON=interpreter (default: .venv/bin/python if it is there, else python3).
#
#SBATCH --job-name=fedalg
#SBATCH --array=1-96
#SBATCH --output=logs/%x_%A_%a.out
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
set -euo pipefail

# SLURM runs a copy of this script, so its own place tells nothing there.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")}"
experiments=${EXPERIMENTS:-experiments.txt}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
read -ra extra <<<"${EXTRA:-}"
# torch would start a thread for each core of the node, and jobs that share one would trip over each other.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# One experiment an entry: comments and empty lines dropped. No line is ever given to a shell to interpret.
[ -r "$experiments" ] || { echo "run_experiments.sh: error: cannot read $experiments" >&2; exit 2; }
mapfile -t lines < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$experiments")

run() { # run N: the Nth experiment, from 1
  if ! [[ $1 =~ ^[1-9][0-9]*$ ]] || [ "$1" -gt "${#lines[@]}" ]; then
    echo "run_experiments.sh: error: there is no experiment '$1'; $experiments has 1 to ${#lines[@]}" >&2
    return 2
  fi
  local flags
  read -ra flags <<<"${lines[$1 - 1]}"
  echo "experiment $1: ${flags[*]} ${extra[*]}"
  "$python" fedalg.py "${flags[@]}" "${extra[@]}"
}

if [ "${1:-}" = --count ]; then
  echo "${#lines[@]}"
elif [ $# -gt 0 ]; then
  run "$1"
elif [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  run "$SLURM_ARRAY_TASK_ID"
else
  failed=()
  for n in $(seq "${#lines[@]}"); do run "$n" || failed+=("$n"); done
  [ ${#failed[@]} -eq 0 ] || { echo "run_experiments.sh: failed: ${failed[*]}" >&2; exit 1; }
fi
