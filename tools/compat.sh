#!/bin/sh
# Runs the examples and the tests that need other libraries on several versions of torch; see tools/compat.py.
# tools/compat.sh ["torch==2.14.1 torchvision==0.29.1 timm" ...]; environments in ${XDG_CACHE_HOME:-~/.cache}/ulfast-compat
set -e
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
exec "${PYTHON:-python3}" tools/compat.py "$@"
