#!/bin/sh
# Attacks what docs/safety.md promises: damaged files, kills, full disks, two writers, bad downloads.
# tools/campaign.sh [--minutes M | --hours H] [--tries N] [--jobs J] [--seed S] [--part NAME] [--json FILE]
# Exit code 1 where something was found.
set -e
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
export PYTHONPATH="tests/scale${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-.venv/bin/python}" -m campaign "$@"
