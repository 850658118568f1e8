#!/usr/bin/env bash
# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# Everything that needs a GPU: the GPU tests, then the GPU measurements of docs/performance.md, of base and of large at
# 56 and 225 s. Tables and JSON files go to OUTPUT. Run again, the same command skips finished measurements. The
# environment needs `pip install -e '.[test,gpu]'`.
#
#     bash scripts/benchmark_gpu.sh LABELLED_MANIFEST OUTPUT [CTC.nemo]
#
# LABELLED_MANIFEST: a manifest from scripts/label.py with "text" and FLAC files; one hour of its speech is used.
# CTC.nemo: a fine-tuned model; without it, greedy decoding is measured with random weights.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"
[[ ${1:-} != -* ]] || usage "$1"
manifest=$(realpath -e "${1:?labelled manifest}") && model=${3:+$(realpath -e "$3")} || exit
mkdir -p "${2:?output folder}" && output=$(realpath "$2") || exit
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "PyTorch finds no GPU here." >&2; exit 1; }
failed=0

measure() {  # NAME COMMAND...: run the command and print the end of its output
    local name=$1; shift
    [ -s "$output/$name.md" ] && { echo "== $name: done before"; return; }
    echo "== $name: $*"
    if "$@" 2> "$output/$name.log" > "$output/.$name.md"; then
        mv "$output/.$name.md" "$output/$name.md"
        tail -n 12 "$output/$name.md"
    else
        failed=1
        echo "failed: $output/$name.log and $output/.$name.md" >&2
        tail -n 3 "$output/$name.log" >&2
        tail -n 12 "$output/.$name.md" >&2  # pytest writes there what failed
    fi
}

benchmark() {  # NAME SUBCOMMAND ARGUMENTS...
    local name=$1; shift
    measure "$name" python scripts/benchmark.py "$@" --output "$output/$name.json"
}

measure tests python -m pytest tests/gpu -q
benchmark pretrain_base pretrain --sizes base --batch_seconds 87.5 350 1400
benchmark host host --sizes base large --threads 1
benchmark inference_fp32 inference --manifest "$manifest" --precision fp32 ${model:+--model "$model"}
benchmark inference_bf16 inference --manifest "$manifest" --precision bf16 ${model:+--model "$model"}
benchmark loader loader --manifest "$manifest" --workers 0 1 2 4 8 --seconds 10
benchmark pretrain_large pretrain --sizes large --batch_seconds 56.25 225 --repeats 10
benchmark labelling labelling --manifest "$manifest"
# Do reading threads wait for each other while Linux clears new memory, one thread at a time? Then this run is faster.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
benchmark labelling_with_kept_memory labelling --manifest "$manifest"
exit "$failed"
