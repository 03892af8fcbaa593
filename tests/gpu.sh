#!/usr/bin/env bash
# All that waits for an accelerator, in at most eight minutes on a machine that has one and nothing else: tests marked
# gpu, benchmarks, then training. What is done is in $OUT at once; a part that fails or runs out of its time stops none.
#
# Before, here, once (CIFAR-100 goes over in parts of less than 64 MiB; packages that the machine lacks go with them):
#     python tests/gpu_data.py pack .gpu
#     pip install --no-deps --target .gpu/site lightning-fabric lightning-utilities tyro docstring-parser typeguard \
#         beartype lightly lightly-utils hydra-core omegaconf aenum pynndescent
# There, in the root of the tree, each time with what of .gpu has come along:
#     bash tests/gpu.sh unpack          a part of the images that the last call does not bring, into $DATA
#     bash tests/gpu.sh                 everything; without all of CIFAR-100, training is on drawn shapes
# Afterwards, here: tar -xzf $OUT/results.tgz; sagkit study results
set -u
cd "$(dirname "$0")/.."
: "${OUT:=runs/gpu}" "${DATA:=/tmp/sagkit-data}" "${PYTHON:=python3}" "${MINUTES:=8}"
mkdir -p "$OUT" "$DATA"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}:$PWD/.gpu/site" PYTHONUNBUFFERED=1
end=$((SECONDS + MINUTES * 60 - 15))

# part NAME SECONDS COMMAND...: its output to the log and the end of it to the screen, within what time is left
part() {
  local name=$1 most=$2 left=$((end - SECONDS)) begin=$SECONDS
  shift 2
  [ "$left" -lt "$most" ] && most=$left
  if [ "$most" -lt 10 ]; then echo "$name: not begun, no time is left" | tee -a "$OUT/parts.txt"; return; fi
  timeout -k 5 "$most" "$@" > "$OUT/$name.log" 2>&1
  echo "$name: exit code $?, $((SECONDS - begin)) s" | tee -a "$OUT/parts.txt"
  tail -n 4 "$OUT/$name.log"
}

results() { tar -czf "$OUT/results.tgz" figures/results/bench/gpu.json -C runs/gpu-out . 2>> "$OUT/parts.txt"; }

ls .gpu/part*.safetensors > /dev/null 2>&1 && part unpack 60 "$PYTHON" tests/gpu_data.py unpack .gpu "$DATA"
[ "${1:-}" = unpack ] && exit
mkdir -p runs/gpu-out
data=shapes
part check 60 "$PYTHON" tests/gpu_data.py check "$DATA"
if grep -qs "is what was packed" "$OUT/check.log"; then
  export SAGKIT_DATA=$DATA
  data=cifar100
fi
part tests 120 "$PYTHON" -m pytest -m gpu -p no:cacheprovider tests
part bench 150 "$PYTHON" tests/bench_gpu.py
results
for method in sag-vicreg vicreg; do
  part "$method" 200 "$PYTHON" -m sagkit.train --method "$method" --profile gpu-minute --data "$data" \
    --results runs/gpu-out/results --runs runs/gpu-out/runs
  results
done
cat "$OUT/parts.txt"
