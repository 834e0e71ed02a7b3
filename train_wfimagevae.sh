#!/usr/bin/env bash
# Trains a wavelet image VAE on your photographs.
#
#   GPU=0,1,2,3 TRAIN_IMAGE_DIR=photos EVAL_IMAGE_DIR=held_out bash train_wfimagevae.sh
#   ORIGINAL_MANIFEST=photos TRAIN_RATIO=0.9 bash train_wfimagevae.sh     (holds a tenth out)
#
# Every flag of train_image_ddp.py is a variable in upper case (LR=1e-4 BATCH_SIZE=4 MAX_STEPS=50000
# GAN_SCHEDULE=alternate EMA=0 ...); flags after the script's name win over them. Besides:
#   GPU                GPUs of this machine, comma separated; all if not given
#   NPROC              processes on a machine without GPUs (1)
#   TRAIN_IMAGE_DIR, EVAL_IMAGE_DIR      folders or JSON-lines manifests
#   ORIGINAL_MANIFEST, TRAIN_RATIO       or one of these, split by that share (0.9), always alike
#   OUTPUT_DIR         folder of runs (./results)
#   RESUME_CKPT        a checkpoint, a run's folder, or auto
#   PRETRAINED_MODEL   start from these weights
#   DISABLE_WANDB=1    no tracker, whatever TRACKER says
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several machines: the same command on each
#   MAX_RESTARTS       start again so often when a process fails, and go on (RESUME_CKPT=auto)
#   PYTHON             interpreter (python)
# The recipe's own defaults: WAVELET_LOSS=1 EMA=1. With a YAML file of flags, CONFIG=run.yaml or
# --config run.yaml, there are none, and the folders may stand in the file.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python}"
has_config=""
[[ -n "${CONFIG:-}" || " $*" =~ \ --config[\ =] ]] && has_config=1
if [[ -z "$has_config" ]]; then
  : "${WAVELET_LOSS:=1}" "${EMA:=1}"
fi

if [[ -n "${ORIGINAL_MANIFEST:-}" ]]; then
  split="${OUTPUT_DIR:-./results}/manifests"
  # On every machine: the split is the same, and none has to wait for another's files.
  "$python" "$here/scripts/split_manifest.py" --manifest "$ORIGINAL_MANIFEST" \
    --train_ratio "${TRAIN_RATIO:-0.9}" --output_dir "$split"
  TRAIN_IMAGE_DIR="$split/train.jsonl" EVAL_IMAGE_DIR="$split/eval.jsonl"
fi
IMAGE_PATH="${TRAIN_IMAGE_DIR:-${IMAGE_PATH:-}}"
EVAL_IMAGE_PATH="${EVAL_IMAGE_DIR:-${EVAL_IMAGE_PATH:-}}"
# shellcheck disable=SC2034  # launch.sh reads it
[[ "${DISABLE_WANDB:-0}" =~ ^(1|true|yes|on)$ ]] && TRACKER=none
has_held_out=""
[[ -n "$EVAL_IMAGE_PATH" || "${EVAL_STEPS:-}" == 0 ]] && has_held_out=1
if [[ -z "$has_config" && ( -z "$IMAGE_PATH" || -z "$has_held_out" ) ]]; then
  echo "error: set TRAIN_IMAGE_DIR and EVAL_IMAGE_DIR (or EVAL_STEPS=0), or ORIGINAL_MANIFEST" >&2
  exit 2
fi

# shellcheck source=scripts/launch.sh
source "$here/scripts/launch.sh"
launch "$here/train_image_ddp.py" "" "$@"
