#!/usr/bin/env bash
# Full IMDB on a GPU, and on all of them where there are several: seconds, tokens per second, utilisation, accuracy.
#
#   RETRUE_DATA=/data bash benchmarks/gpu.sh             # the packages that `python3` finds must hold torch and transformers
#   RETRUE_DATA=/data bash benchmarks/gpu.sh --dry-run   # a few rows on the CPU, with two processes in place of two cards
#
# PYTHON names another interpreter, ENCODER another encoder (a folder, or a checkpoint of the hub). One JSON line a run.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
python="${PYTHON:-python3}"
export PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" ORT_DISABLE_TELEMETRY=1
: "${RETRUE_DATA:?set it to a folder with imdb_train.parquet and imdb_test.parquet}"
lacking="$("$python" - <<'PY'
import importlib.util
print(*(n for n in ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "tqdm", "scipy", "onnxruntime")
        if importlib.util.find_spec(n) is None))
PY
)"
if [ -n "$lacking" ]; then
    echo "$python lacks $lacking: install them, or name an interpreter that has them in PYTHON" >&2
    exit 1
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
encoder="${ENCODER:-minilm-l6-distilbert}"
options=()
cards="$("$python" -c 'import torch; print(torch.cuda.device_count())')"
if [ "${1:-}" = --dry-run ]; then
    options=(--rows 64 --test-rows 40 --epochs 1 --max-tokens 16 --batch-tokens 512)
    cards=2
elif [ "$cards" = 0 ]; then
    echo "there is no GPU here; --dry-run runs a few rows on the CPU" >&2
    exit 1
fi
run() { "$python" "$@" "${options[@]}"; }
run "$here/gpu.py" "$work/run" --prepare --data "$RETRUE_DATA" --encoder "$encoder"
name="$(basename "$encoder")"
run "$here/gpu.py" "$work/run" --encoder "$name"
if [ "${1:-}" != --dry-run ]; then # compiling takes a minute, which says nothing on a few rows
    run "$here/gpu.py" "$work/run" --encoder "$name" --compile
    run "$here/gpu.py" "$work/run" --encoder distilbert-shape
    run "$here/gpu.py" "$work/run" --encoder distilbert-shape --compile
fi
if [ "$cards" -gt 1 ]; then
    run -m torch.distributed.run --standalone --nproc-per-node="$cards" "$here/gpu.py" "$work/run" --encoder "$name"
fi
