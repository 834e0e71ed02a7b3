# shellcheck shell=bash
# Sourced by the training scripts: variables in upper case become flags of a trainer, which then
# starts on the GPUs and machines that the environment names.
#
#   launch SCRIPT TASK USER_FLAGS...    (no TASK, "": the script has none to choose)
#
# Reads GPU, NPROC, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, MAX_RESTARTS and PYTHON; see
# train_wfimagevae.sh.

launch() {
  local trainer=("$1" ${2:+--task "$2"}) flags=() listed variable flag kind value
  shift 2
  local python="${PYTHON:-python}" nodes="${NNODES:-1}" restarts="${MAX_RESTARTS:-0}" processes
  local DEVICE="${DEVICE:-${GPU:+cuda}}"  # GPUs asked for by number: never the CPU instead
  # What starts again goes on where it was.
  [[ "$restarts" == 0 ]] || local RESUME_FROM_CHECKPOINT="${RESUME_FROM_CHECKPOINT:-auto}"
  # Short names of flags, which win over the flags' own.
  local DATA_PATH="${DATA:-${DATA_PATH:-}}" EVAL_DATA_PATH="${EVAL_DATA:-${EVAL_DATA_PATH:-}}"
  local CKPT_DIR="${OUTPUT_DIR:-${CKPT_DIR:-}}"
  local RESUME_FROM_CHECKPOINT="${RESUME_CKPT:-${RESUME_FROM_CHECKPOINT:-}}"
  local PRETRAINED_MODEL_NAME_OR_PATH="${PRETRAINED_MODEL:-${PRETRAINED_MODEL_NAME_OR_PATH:-}}"
  listed="$("$python" "${trainer[@]}" --list_flags)"
  while read -r variable flag kind; do
    value="${!variable:-}"
    [[ -n "$value" && "$flag" != task ]] || continue  # the recipe says what to train
    if [[ "$kind" == value ]] || [[ "$kind" == values && ("$value" != *" "* || -e "$value") ]]; then
      flags+=("--$flag=$value")
    elif [[ "$kind" == values ]]; then
      # shellcheck disable=SC2206  # several values in one variable, apart by spaces
      flags+=("--$flag" $value)
    elif [[ "$value" =~ ^(1|true|True|yes|on)$ ]]; then
      flags+=("--$flag")
    elif [[ ! "$value" =~ ^(0|false|False|no|off)$ ]]; then
      echo "error: $variable=$value: write 1 or 0" >&2
      return 2
    elif grep -qx "NO_$variable no_$flag switch" <<<"$listed"; then
      flags+=("--no_$flag")
    fi
  done <<<"$listed"
  # Variables that the recipe or this file names are theirs; LANGUAGE is of every desktop.
  "$python" -c '
import difflib, os, re, sys
flags = re.findall("^[A-Z0-9_]+", sys.argv[1], re.MULTILINE)
for name in set(os.environ) - {*flags, "LANGUAGE", *re.findall("[A-Z0-9_]+", sys.argv[2])}:
    for near in difflib.get_close_matches(name, flags, n=1, cutoff=0.88):
        print(f"warning: {name} is no variable of this training; did you mean {near}?")
' "$listed" "$(cat "${BASH_SOURCE[@]}")" >&2

  if [[ -n "${GPU:-}" ]]; then
    export CUDA_VISIBLE_DEVICES="$GPU"
    local commas="${GPU//[^,]/}"
    processes=$((${#commas} + 1))
  else
    processes="${NPROC:-$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')}"
  fi
  local share="import os; print(max((os.cpu_count() or 1) // $processes, 1))"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$("$python" -c "$share")}"

  trainer+=(${flags[@]+"${flags[@]}"} "$@")
  local torchrun=("$python" -m wfimagevae.torchrun) port="${MASTER_PORT:-29500}"
  if [[ "$nodes$processes$restarts" == 110 ]]; then
    exec "$python" "${trainer[@]}"
  elif [[ "$nodes" == 1 && -z "${MASTER_PORT:-}" ]]; then
    torchrun+=(--standalone)
  elif [[ "$restarts" == 0 ]]; then
    torchrun+=(--nnodes "$nodes" --node_rank "${NODE_RANK:-0}"
      --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$port")
  else  # machines meet again after each restart, one that was replaced too, for which they wait
    local host=false
    [[ "${NODE_RANK:-0}" == 0 ]] && host=true
    torchrun+=(--nnodes "$nodes" --rdzv_backend c10d --rdzv_id "wfimagevae"
      --rdzv_endpoint "${MASTER_ADDR:-127.0.0.1}:$port"
      --rdzv_conf "is_host=$host,join_timeout=3600")
  fi
  torchrun+=(--nproc_per_node "$processes" --max_restarts "$restarts")
  exec "${torchrun[@]}" "${trainer[@]}"
}
