#!/usr/bin/env bash
# Fine-tunes GLIDE on captioned images: the base model of 64 px, or its upsampler.
#
#   GPU=0 DATA=captioned EVAL_DATA=held_out bash examples/train_glide.sh
#   GPU=0,1 MODEL_NAME=GLIDE-upsample DATA=captioned EVAL_DATA=held_out bash examples/train_glide.sh
#   DATASET=shapes PRETRAINED_MODEL=scratch bash examples/train_glide.sh     (no data to prepare)
#
# A caption is a .txt beside its image; DATA may also be a JSON-lines manifest (CAPTIONS=manifest)
# or WebDataset shards (DATASET_PRESET=laion knows public sets). OpenAI's weights and GPT-2's
# vocabulary are downloaded once, or named: PRETRAINED_MODEL=base.pt TEXT_ENCODER=gpt2:FOLDER.
#
# Every flag of train_ddp.py --task glide is a variable in upper case (TRAIN=unet BATCH_SIZE=16
# PROMPT_FILE=examples/prompts.txt UPSAMPLER=upsample.pt ...); flags after the script's name win.
# Besides:
#   GPU                GPUs of this machine, comma separated; all if not given
#   NPROC              processes on a machine without GPUs (1)
#   DATA, EVAL_DATA    captioned images to learn, and held-out ones
#   OUTPUT_DIR         folder of runs (./results)
#   RESUME_CKPT        a checkpoint, a run's folder, or auto
#   PRETRAINED_MODEL   where to start: pretrained, scratch, a file, a run, pixel-transfer:FILE
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several machines: the same command on each
#   MAX_RESTARTS       start again so often when a process fails, and go on (RESUME_CKPT=auto)
#   PYTHON             interpreter (python)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# shellcheck source=scripts/launch.sh
source "$root/scripts/launch.sh"
launch "$root/train_ddp.py" glide "$@"
