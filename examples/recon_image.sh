#!/usr/bin/env bash
# Reconstructs the images of a folder with a trained model.
#
#   FROM_PRETRAINED=results/my-run REAL_IMAGE_DIR=photos bash examples/recon_image.sh
#   GPU=0,1,2,3 RESOLUTION=512 CROP_SIZE=512 ... bash examples/recon_image.sh --output_origin
#
# Flags after the script's name go to scripts/recon_image.py. RESOLUTION= (empty) keeps native
# sizes. GPU lists GPUs of this machine, NPROC processes on a machine without; PYTHON is the
# interpreter.
set -euo pipefail

: "${FROM_PRETRAINED:?a Hugging Face folder, a .ckpt file, or a folder of them}"
: "${REAL_IMAGE_DIR:?the folder or manifest of originals}"
: "${GENERATED_IMAGE_DIR:=reconstructions}" "${RESOLUTION=256}" "${CROP_SIZE=$RESOLUTION}"
: "${BATCH_SIZE:=8}" "${NUM_WORKERS:=4}" "${SUBSET_SIZE:=0}" "${MIXED_PRECISION:=fp32}"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python="${PYTHON:-python}"
processes="${NPROC:-1}"
if [[ -n "${GPU:-}" ]]; then
  export CUDA_VISIBLE_DEVICES="$GPU"
  commas="${GPU//[^,]/}"
  processes=$((${#commas} + 1))
fi
launch=("$python")
if ((processes > 1)); then
  launch+=(-m wfimagevae.torchrun --standalone --nproc_per_node "$processes")
fi
sizes=()
[[ -z "$RESOLUTION" ]] || sizes+=(--resolution "$RESOLUTION")
[[ -z "$CROP_SIZE" ]] || sizes+=(--crop_size "$CROP_SIZE")

"${launch[@]}" "$root/scripts/recon_image.py" \
  --from_pretrained "$FROM_PRETRAINED" \
  --real_image_dir "$REAL_IMAGE_DIR" \
  --generated_image_dir "$GENERATED_IMAGE_DIR" \
  ${sizes[@]+"${sizes[@]}"} \
  --batch_size "$BATCH_SIZE" \
  --num_workers "$NUM_WORKERS" \
  --subset_size "$SUBSET_SIZE" \
  --mixed_precision "$MIXED_PRECISION" \
  "$@"
