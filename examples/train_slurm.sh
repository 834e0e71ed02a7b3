#!/usr/bin/env bash
# Trains on several machines under Slurm; a preempted or timed-out job goes on when requeued.
#
#   sbatch examples/train_slurm.sh
#SBATCH --job-name=wfvae2-image
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

if [[ -z "${CONFIG:-}" ]]; then  # variables would win over what such a file of flags says
  export TRAIN_IMAGE_DIR="${TRAIN_IMAGE_DIR:-data/train}"
  export EVAL_IMAGE_DIR="${EVAL_IMAGE_DIR:-data/val}"
  export OUTPUT_DIR="${OUTPUT_DIR:-results}" EXP_NAME="${EXP_NAME:-wfvae2-image}"
fi
export RESUME_CKPT=auto SAVE_EVERY_MINUTES=20 KEEP_LAST=3
NNODES="$SLURM_NNODES"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export NNODES MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}"

# shellcheck disable=SC2016  # each machine has a number of its own
srun bash -c 'NODE_RANK=$SLURM_NODEID exec bash train_wfimagevae.sh'
