#!/usr/bin/env bash
# Exports a trained model as a Hugging Face folder and checks that it reads back identically.
#
#   FROM_PRETRAINED=results/my-run SAVE_DIR=exported/my-vae bash examples/save_hf_model.sh
#
# METRICS_JSON, if set, is quoted in the model card. Flags after the script's name go to
# scripts/save_hf_model.py. PYTHON is the interpreter.
set -euo pipefail

: "${FROM_PRETRAINED:?a .ckpt file, or a folder of them}"
: "${SAVE_DIR:=exported/$(basename "$FROM_PRETRAINED" .ckpt)}"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

"${PYTHON:-python}" "$root/scripts/save_hf_model.py" \
  --from_pretrained "$FROM_PRETRAINED" \
  --save_dir "$SAVE_DIR" \
  ${METRICS_JSON:+--metrics_json "$METRICS_JSON"} \
  "$@"
