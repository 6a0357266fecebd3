#!/bin/bash
# Two machines of 8 GPUs; a shared file system holds this folder. sbatch recipes/slurm/train.sh --config RECIPE [--flag value ...]
#SBATCH --job-name=gptlite
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300  # five minutes before the end: a checkpoint, and the job may be submitted again
#SBATCH --requeue

set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD
# The same command goes on with what an earlier job left.
exec srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$HEAD:29500" -m scripts.train "$@"' train "$@"
