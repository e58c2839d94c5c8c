#!/usr/bin/env bash
# What Echo-LM needs of a Debian 12 or Ubuntu 24.04, as root: Python, a compiler for PyTorch's and DeepSpeed's small
# extensions, git for the commit that every run records. Run by the images, and by hand on a bare node.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
    ca-certificates python3 python3-dev python3-venv g++ git make procps
apt-get clean
rm -rf /var/lib/apt/lists/*
