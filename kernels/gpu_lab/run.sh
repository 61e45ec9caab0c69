#!/usr/bin/env bash
# bash run.sh [OUT]: unpacks the files of `make gpu-pack` beside this script and measures. Needs python3 with torch and
# Triton, and an NVIDIA GPU. Results go to OUT (./gpu_lab_results).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:-gpu_lab_results}")
site=$(mktemp -d)
mkdir "$site/tree"
tar -xzf "$here/tree.tar.gz" -C "$site/tree"
cp -r "$here"/metadata/*.egg-info "$site/tree/"  # the entry points: commands, tasks, patterns
ln -s configs "$site/tree/spdf_configs"  # as an installation names the shipped configs
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site/wheels" "$here"/wheels/*.whl
cd "$site/tree"
export PYTHONPATH="$site/tree:$site/tree/kernels:$site/tree/launcher:$site/wheels" PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$site/triton}"
python3 -m gpu_lab run --out "$out" "${@:2}"
