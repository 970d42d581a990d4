#!/bin/bash
# Label with a Slurm array. Each task takes every eighth work unit, and the one that ends last
# finishes the set, which all of them have to see by the same path:
#
#   sbatch pipelines/slurm_array.sh --teacher MODEL --data 'docs/*.parquet' --key id --out labels/docs
#
# Send it again after a failure: finished units are skipped. One task's share alone:
#
#   sbatch --array=3 pipelines/slurm_array.sh --rank 3 --world-size 8 …
#
#SBATCH --job-name=softlabels
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

# Labels are bit-equal only for one number of threads.
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

exec softlabels precompute "$@"
