#!/usr/bin/env bash
# Trains on several machines under Slurm, for as long as it takes: two minutes before its time is up
# the job saves, ends and requeues itself; a preempted one goes on when Slurm requeues it.
#
#   sbatch examples/cluster/slurm.sh          (from the top of this repository)
#
# USR1 goes to this script alone (B:), which sends trainings SIGTERM: save and end. Their own SIGUSR1
# means save, draw and go on:  scancel --signal=USR1 JOB
#SBATCH --job-name=wfvae2-image
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

if [[ -z "${CONFIG:-}" ]]; then  # variables would win over what such a file of flags says
  export TRAIN_IMAGE_DIR="${TRAIN_IMAGE_DIR:-data/train}"
  export EVAL_IMAGE_DIR="${EVAL_IMAGE_DIR:-data/val}"
  export OUTPUT_DIR="${OUTPUT_DIR:-results}" EXP_NAME="${EXP_NAME:-wfvae2-image}"
fi
export RESUME_CKPT=auto SAVE_EVERY_MINUTES=20 KEEP_LAST=3 MAX_RESTARTS="${MAX_RESTARTS:-3}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100  # seconds that torchrun leaves them to save
NNODES="$SLURM_NNODES"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export NNODES MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}"

draining=""
# shellcheck disable=SC2329  # the trap calls it
drain() {
  trap '' USR1  # another one would end the wait for what saves
  draining=1
  scancel --signal=TERM "$SLURM_JOB_ID"  # to the steps, not to this script
}
trap drain USR1

# shellcheck disable=SC2016  # each machine has a number of its own
srun bash -c 'NODE_RANK=$SLURM_NODEID exec bash train_wfimagevae.sh' &
status=0
wait "$!" || status=$?
if [[ -n "$draining" ]]; then  # the signal ended that wait, not the training
  wait "$!" || true
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
