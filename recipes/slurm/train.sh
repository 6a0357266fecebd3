#!/bin/bash
# Trains on two machines with 8 GPUs each. This folder must be on a shared file system.
# sbatch recipes/slurm/train.sh --config RECIPE [--flag value ...]
#SBATCH --job-name=gptlite
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300  # 300 s before the time limit, to write a checkpoint
#SBATCH --requeue

set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD
# Resumes from the newest checkpoint of an earlier job.
exec srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$HEAD:29500" -m scripts.train "$@"' train "$@"
