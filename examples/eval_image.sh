#!/usr/bin/env bash
# Measures reconstructions against their originals.
#
#   REAL_IMAGE_DIR=photos GENERATED_IMAGE_DIR=reconstructions bash examples/eval_image.sh
#   GPU=0,1,2,3 METRIC="psnr ssim lpips rfid" ... bash examples/eval_image.sh
#
# Sizes as in the reconstruction; RESOLUTION= (empty) for native ones. Flags after the script's
# name go to scripts/eval_image.py. GPU lists GPUs of this machine, NPROC processes on a machine
# without; PYTHON is the interpreter. Exit status 3: a metric's weights are missing (1 where
# several processes measured).
set -euo pipefail

: "${REAL_IMAGE_DIR:?the folder or manifest of originals}"
: "${GENERATED_IMAGE_DIR:=reconstructions}" "${RESOLUTION=256}" "${CROP_SIZE=$RESOLUTION}"
: "${BATCH_SIZE:=8}" "${NUM_WORKERS:=4}" "${SUBSET_SIZE:=0}" "${METRIC:=psnr ssim lpips}"
: "${OUTPUT_JSON:=${GENERATED_IMAGE_DIR%/}-metrics.json}"

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
read -ra metrics <<<"$METRIC"

"${launch[@]}" "$root/scripts/eval_image.py" \
  --real_image_dir "$REAL_IMAGE_DIR" \
  --generated_image_dir "$GENERATED_IMAGE_DIR" \
  ${sizes[@]+"${sizes[@]}"} \
  --batch_size "$BATCH_SIZE" \
  --num_workers "$NUM_WORKERS" \
  --subset_size "$SUBSET_SIZE" \
  --metric "${metrics[@]}" \
  --output_json "$OUTPUT_JSON" \
  "$@"
