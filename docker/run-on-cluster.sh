#!/usr/bin/env bash
# `echo-lm run` in a container beside a Ray cluster. The driver of a run needs a node of the cluster in its own container: this
# one offers no cores, so that the work goes to the workers.
#
#   docker/run-on-cluster.sh HEAD:PORT RECIPE [OVERRIDES AND OPTIONS]
set -euo pipefail
address=${1:?usage: docker/run-on-cluster.sh HEAD:PORT RECIPE [OVERRIDES AND OPTIONS]}
shift
ray start --address="$address" --num-cpus=0 --object-store-memory=268435456 >/dev/null
exec echo-lm run --address "$address" "$@"
