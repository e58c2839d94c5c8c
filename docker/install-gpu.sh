#!/usr/bin/env bash
# The same for a GPU machine with the CUDA toolkit (nvcc): torch for CUDA, and mamba-ssm and causal-conv1d built against it.
# Half an hour and 16 GB of memory, most of it for the two builds.
#
#   docker/install-gpu.sh ENVIRONMENT
#
# TORCH_CUDA_ARCH_LIST: compute capabilities to build for (default: A100, L40S, H100). MAX_JOBS: compilers at once.
set -euo pipefail
environment=${1:?usage: docker/install-gpu.sh ENVIRONMENT}
source=$(cd "$(dirname "$0")/.." && pwd)
command -v nvcc >/dev/null || { echo "nvcc is not here: install the CUDA toolkit, or use install-cpu.sh" >&2; exit 2; }
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-"8.0;8.9;9.0"} MAX_JOBS=${MAX_JOBS:-4}
pinned=$(mktemp)
# The reference machine's torch and Triton instead of the CPU stack's.
{ grep -vE '^(torch|triton)==' "$source/constraints.txt"; echo "torch==2.11.0"; echo "triton==3.6.0"; } >"$pinned"
pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -c "$pinned")
python3 -m venv "$environment"
"${pip[@]}" torch
"${pip[@]}" "echo-lm[all] @ file://$source" setuptools wheel ninja einops
# Built against the torch above, so without an isolated environment that would fetch another one.
CAUSAL_CONV1D_FORCE_BUILD=TRUE "${pip[@]}" --no-build-isolation --no-deps causal-conv1d==1.6.1
MAMBA_FORCE_BUILD=TRUE "${pip[@]}" --no-build-isolation --no-deps mamba-ssm==2.3.2.post1
rm "$pinned"
"$(dirname "$0")/check-install.sh" "$environment"
