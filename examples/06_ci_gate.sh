#!/usr/bin/env bash
# Fail a CI job when a model became slower or less accurate than at the last release.
#
#     bash examples/06_ci_gate.sh baseline.json photos/ model.onnx int8.onnx
#
# The first run writes baseline.json; keep it with the models. Later runs exit with 5 when a row is slower beyond the
# noise, or wrong on more images than chance explains, and leave bench.json and bench.html for the job to keep. The
# baseline counts on the machine that it was measured on: give the job a runner of its own, with nothing else running.
set -euo pipefail

usage="usage: $0 BASELINE DATA MODEL..."
baseline=${1:?$usage}
data=${2:?$usage}
shift 2
seconds=${BENCH_SECONDS:-60}

if [ ! -f "$baseline" ]; then
    alexdeploy bench "$@" --data "$data" --seconds "$seconds" --json > "$baseline.new"
    mv "$baseline.new" "$baseline"
    echo "wrote $baseline"
    exit
fi
status=0
alexdeploy bench "$@" --data "$data" --seconds "$seconds" --baseline "$baseline" --html bench.html --json > bench.json ||
    status=$?
[ "$status" -ne 0 ] || echo "no row is worse than in $baseline"
exit "$status"
