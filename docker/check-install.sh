#!/usr/bin/env bash
# Whether an environment can do its work: every command's modules load, and the versions are those that fit together.
#
#   docker/check-install.sh ENVIRONMENT
set -euo pipefail
environment=${1:?usage: docker/check-install.sh ENVIRONMENT}
cd / # not in the sources: what is installed is to be checked
"$environment/bin/python" - <<'PYTHON'
import deepspeed, fastapi, mlflow, plotly, ray, torch, transformers, uvicorn
import echo_lm.orchestration.cli.main, echo_lm.orchestration.dashboard.app, echo_lm.pipeline.loop

print(f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, ray {ray.__version__}, mlflow {mlflow.__version__}")
if torch.version.cuda:
    import causal_conv1d, mamba_ssm
PYTHON
"$environment/bin/python" -m pip check
"$environment/bin/echo-lm" models echo-1m >/dev/null
echo "$environment: complete"
