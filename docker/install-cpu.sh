#!/usr/bin/env bash
# Echo-LM with Ray, MLflow and the dashboard into a virtual environment, pinned by constraints.txt, for machines without
# a GPU. Needs install-system.sh.
#
#   docker/install-cpu.sh ENVIRONMENT
#
# Where plain pip would fetch a CUDA build of torch, ECHO_LM_TORCH_WHEELS names an index or a folder with CPU builds.
set -euo pipefail
environment=${1:?usage: docker/install-cpu.sh ENVIRONMENT}
source=$(cd "$(dirname "$0")/.." && pwd)
pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -c "$source/constraints.txt")
wheels=()
if [ -d "${ECHO_LM_TORCH_WHEELS:-}" ]; then
    wheels=(--find-links "$ECHO_LM_TORCH_WHEELS")
elif [ -n "${ECHO_LM_TORCH_WHEELS:-}" ]; then
    wheels=(--extra-index-url "$ECHO_LM_TORCH_WHEELS")
fi
python3 -m venv "$environment"
"${pip[@]}" torch "${wheels[@]}"
"${pip[@]}" "echo-lm[all] @ file://$source"
"$(dirname "$0")/check-install.sh" "$environment"
