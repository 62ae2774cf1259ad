#!/usr/bin/env bash
# Trains both forms at once with one thread each, then draws the report and stores what is committed.
set -euo pipefail
runs=${1:-runs/long}
here=experiments/held_out_family
train() { OMP_NUM_THREADS=1 oblique-clip train --form "$1" --epochs 70 --batch-size 64 --threads 1 --out "$runs/$1"; }
train sphere & first=$!
train oblique & second=$!
wait "$first" && wait "$second"
oblique-clip report "$runs/sphere" "$runs/oblique" --out "$runs/report"
cp "$runs"/report/*.png "$here"
for form in sphere oblique; do cp "$runs/$form/result.json" "$here/$form.json"; done
python -m experiments.held_out_family.ship "$runs"
