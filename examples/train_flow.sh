#!/usr/bin/env bash
# Trains a flow: a generator of images, in pixels or in an autoencoder's latent space.
#
#   DATASET=shapes bash examples/train_flow.sh                        (nothing to download)
#   GPU=0,1,2,3 LATENTS=latents/train EVAL_LATENTS=latents/val bash examples/train_flow.sh
#   GPU=0,1,2,3 DATA=photos EVAL_DATA=held_out LABELS=folder RESOLUTION=256 \
#     VAE=WFVAE2Image:exported-vae bash examples/train_flow.sh
#
# Every flag of train_ddp.py --task flow is a variable in upper case (MODEL_NAME=FlowDiT-B/2
# OBJECTIVE=mean_flow BATCH_SIZE=256 MAX_STEPS=400000 ...); flags after the script's name win.
# Besides:
#   GPU                GPUs of this machine, comma separated; all if not given
#   NPROC              processes on a machine without GPUs (1)
#   LATENTS, EVAL_LATENTS   folders that scripts/cache_latents.py wrote
#   DATA, EVAL_DATA    folders or JSON-lines manifests of images
#   OUTPUT_DIR         folder of runs (./results)
#   RESUME_CKPT        a checkpoint, a run's folder, or auto
#   PRETRAINED_MODEL   start from these weights, a public SiT file among others
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several machines: the same command on each
#   MAX_RESTARTS       start again so often when a process fails, and go on (RESUME_CKPT=auto)
#   PYTHON             interpreter (python)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

if [[ -n "${LATENTS:-}" ]]; then
  # shellcheck disable=SC2034  # launch.sh reads them
  DATASET=latents DATA="$LATENTS" EVAL_DATA="${EVAL_LATENTS:-}"
fi

# shellcheck source=scripts/launch.sh
source "$root/scripts/launch.sh"
launch "$root/train_ddp.py" flow "$@"
