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

# What do the layers know of phones and words, with and without Swap and the Multicluster loss? This script pre-trains
# HuBERT, "- Swap" and MS-HuBERT at the tiny size, on the same labelled speech, with the same number of updates and
# several seeds. It plots the CCA of every layer (mean and range over the seeds), together with the same encoder with
# random weights (Figure 2).
#
#     bash scripts/compare_pretraining.sh --kmeans km.npz --encoder hubert_iter1.nemo --train train.json --dev dev.json \
#         --test test_clean.json --test test_other.json --phones phones.jsonl.gz --words words.jsonl.gz
#
# --kmeans FILE             six label sets from scripts/fit_kmeans.py
# --encoder FILE            the encoder whose layer they were fitted on; leave it out for MFCCs
# --train, --dev FILE       manifests, which the script labels with them
# --test FILE               speech from which the CCA takes its instances; may be repeated
# --phones, --words PATH    alignments of the test speech, JSONL (.gz) or a folder of TextGrids; give at least one.
#                           --phones must also cover --train and --dev, for the quality of labels and layers
# --top N, --instances N    number of words (100) and of instances of a word (15), see analyze_cca.py
# --updates N (800, of 8 s each), --seeds "1 2 3", --exp DIR (exp/compare)
#
# Every stage runs one of the public scripts and prints its command line. Run again, the script skips finished stages,
# continues an interrupted pre-training from its last validation, and computes only what is new if you add seeds or
# change options of the CCA. If a finished stage had other options, the script says what to remove.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

kmeans="" encoder="" train="" dev="" tests=() phones="" words="" top=100 instances=15 updates=800 seeds="1 2 3"
exp=exp/compare
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || usage "$1"
    case "$1" in
        --kmeans | --encoder | --train | --dev | --phones | --words)
            path=$(existing "$1" "$2")
            printf -v "${1#--}" %s "$path" ;;
        --test) path=$(existing "$1" "$2"); tests+=("$path") ;;
        --exp) exp=$(realpath -m -- "$2") ;;
        --top | --instances | --updates)
            value=$(number "$1" "$2")
            printf -v "${1#--}" %s "$value" ;;
        --seeds) seeds=$2 ;;
        *) usage "$1" ;;
    esac
    shift 2
done
for option in kmeans train dev; do
    [ -n "${!option}" ] || { echo "compare_pretraining.sh: --$option is missing." >&2; exit 2; }
done
[ ${#tests[@]} -gt 0 ] || { echo "compare_pretraining.sh: --test is missing." >&2; exit 2; }
[ -n "$phones$words" ] || { echo "compare_pretraining.sh: give --phones or --words." >&2; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exp=$(new_folder "$exp")

alone_in "$exp"
EXTRAS=test
source scripts/environment.sh
export HYDRA_FULL_ERROR=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore

# --- Labels -----------------------------------------------------------------------------------------------------------
labels=$exp/labels/iter2
alignments=() from_encoder=()
[ -z "$phones" ] || alignments=(--alignments "$phones")
[ -z "$encoder" ] || from_encoder=(--encoder "$encoder")
for split in train dev; do
    stage "label $split" "$labels/$split.metrics.json" python scripts/label.py make --kmeans "$kmeans" \
        "${from_encoder[@]}" --manifest "${!split}" --output "$labels/$split.json" "${alignments[@]}" \
        --metrics_output "$labels/$split.metrics.json"
done

# --- Pre-training: the last weights of each model are used, so that all have had the same number of updates -----------
models=() pretrained=()
for seed in $seeds; do
    settings=(model.seed="$seed" "$(override label_maker "$kmeans")" "$(override train_manifest "$labels/train.json")"
        "$(override validation_manifest "$labels/dev.json")" max_updates="$updates"
        validate_every_updates="$((updates / 4 > 0 ? updates / 4 : 1))" "$(override exp_manager.exp_dir "$exp")"
        exp_manager.checkpoint_callback_params.save_best_model=false)
    hubert=hubert_seed$seed noswap=noswap_seed$seed mshubert=mshubert_seed$seed
    stage "pre-train HuBERT, seed $seed" "$exp/$hubert/checkpoints/$hubert.nemo" \
        python scripts/pretrain.py --config-name hubert_iter2_tiny name="$hubert" "${settings[@]}"
    stage "pre-train - Swap, seed $seed" "$exp/$noswap/checkpoints/$noswap.nemo" \
        python scripts/pretrain.py --config-name mshubert_tiny_noswap name="$noswap" "${settings[@]}"
    stage "pre-train MS-HuBERT, seed $seed" "$exp/$mshubert/checkpoints/$mshubert.nemo" \
        python scripts/pretrain.py --config-name mshubert_tiny name="$mshubert" "${settings[@]}"
    stage "random weights, seed $seed" "$exp/random/seed$seed.nemo" python scripts/ssl_to_ctc.py --from_scratch \
        --seed "$seed" --ssl "$exp/$mshubert/checkpoints/$mshubert.nemo" --output "$exp/random/seed$seed.nemo"
    pretrained+=("HuBERT=$exp/$hubert/checkpoints/$hubert.nemo" "- Swap=$exp/$noswap/checkpoints/$noswap.nemo"
        "MS-HuBERT=$exp/$mshubert/checkpoints/$mshubert.nemo")
    models+=("${pretrained[@]: -3}" "random weights=$exp/random/seed$seed.nemo")
done

# --- What each layer knows --------------------------------------------------------------------------------------------
[ -z "$phones" ] || resuming "phone-CCA" "$exp/cca_phones/summary.md" python scripts/analyze_cca.py --units phones \
    --model "${models[@]}" --manifest "${tests[@]}" --alignments "$phones" --output "$exp/cca_phones"
[ -z "$words" ] || resuming "word-CCA" "$exp/cca_words/summary.md" python scripts/analyze_cca.py --units words \
    --top "$top" --instances "$instances" --model "${models[@]}" --manifest "${tests[@]}" --alignments "$words" \
    --output "$exp/cca_words"
resuming "diagnostics" "$exp/diagnostics/diagnostics.png" python scripts/diagnose.py --model "${pretrained[@]}" \
    --manifest "$labels/dev.json" "${alignments[@]}" --max_frames 6000 --output "$exp/diagnostics"

python scripts/report.py --run "$exp" --output "$exp/report.html"
