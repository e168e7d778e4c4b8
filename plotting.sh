#!/usr/bin/env bash
# Draws the comparison figures and tables of all finished runs: sbatch plotting.sh, or ./plotting.sh here.
# Arguments go to plotting.py; paths are the caller's. Without any: --csv_dir metrics --output_dir final_plots.
# Environment: PYTHON=interpreter (default: .venv/bin/python beside this script, else python3).
#
#SBATCH --job-name=plotting
#SBATCH --output=logs/%x_%j.out
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=00:30:00
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
if [ "${ENVIRONMENT:-}" = BATCH ] && [ -n "${SLURM_JOB_ID:-}" ]; then # SLURM runs a copy of this script
  cd "$SLURM_SUBMIT_DIR"
  here=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's|^ *Command=\(/.*\)/plotting\.sh.*|\1|p') || true
  [ -f "$here/plotting.py" ] || here=$PWD
fi
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python3)}
exec "$python" "$here/plotting.py" "$@"
