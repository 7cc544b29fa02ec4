#!/bin/bash
# Train a model on several hosts under SLURM, here the teacher, from the project's folder on a shared file system:
#   sbatch infra/slurm.sh
# Not tested on a cluster. machine.processes in params.yaml is the number of GPUs of one host.
#SBATCH --job-name=firstkd-teacher
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# SIGTERM, two minutes before the time is up, makes training save its step; then the job goes back
# into the queue, and goes on from there.
export PET_NNODES=$SLURM_NNODES
export PET_RDZV_BACKEND=c10d
export PET_RDZV_ID=$SLURM_JOB_ID
PET_RDZV_ENDPOINT=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29400
export PET_RDZV_ENDPOINT

code=0
srun .venv/bin/python -m tasks.model teacher || code=$?
case $code in
    0) .venv/bin/dvc commit --force model-teacher ;;
    143) scontrol requeue "$SLURM_JOB_ID" ;; # stopped by SIGTERM, and saved
    *) exit "$code" ;;
esac
