#!/bin/sh
# Writes every lock file again from pyproject.toml: one set of versions for all, hashes for each.
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-package torch --no-emit-package retrue "$@"
}
compile pyproject.toml --extra dev -o locks/dev.txt
for pair in predict:predict/requirements.txt batch:batch/requirements.txt monitor:monitor/requirements.txt \
    steps:train/requirements.txt train:train/requirements-job.txt; do
    compile pyproject.toml --extra "${pair%%:*}" -c locks/dev.txt -o "functions/${pair##*:}"
done
compile locks/checkov.in -o locks/checkov.txt
compile locks/cloud.in -o locks/cloud.txt
compile locks/sam.in -o locks/sam.txt
compile locks/images.in -o locks/images.txt
compile --no-deps locks/bench.in -o locks/bench.txt
compile locks/bench-evidently.in -o locks/bench-evidently.txt
compile --no-emit-package nvidia-nccl-cu12 locks/bench-nannyml.in -o locks/bench-nannyml.txt # 300 MB for several GPUs
compile locks/bench-optimum.in -o locks/bench-optimum.txt
compile locks/bench-openvino.in -o locks/bench-openvino.txt
compile --no-deps locks/bench-ctranslate2.in -o locks/bench-ctranslate2.txt
