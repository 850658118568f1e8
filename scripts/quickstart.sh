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

# From nothing to a word error rate: install, make (or take) speech, label, pre-train, fine-tune, evaluate, report.
#
#     bash scripts/quickstart.sh                       # speech synthesised by espeak-ng, about a quarter of an hour on 2 cores
#     bash scripts/quickstart.sh --data DIR            # a folder in LibriSpeech's layout, with train-*, dev-* and test-*
#     bash scripts/quickstart.sh --manifests DIR       # a folder with NeMo manifests train*.json, dev*.json and test*.json
#
# Every stage runs one of the public scripts and prints its command line; some stages run at the same time. Run again,
# the script skips finished stages and continues an interrupted one. If a finished stage had other options, it says
# what to remove. Of several train*.json or dev*.json, it uses the first by name; of test*.json, all. Transcripts must
# be English, or at least written in its lower-case letters; for another alphabet see docs/decoding.md, "Your own
# language".
#
# --exp DIR                 folder of all outputs (exp/quickstart)
# --alignments PATH         word or phone times of train and dev, JSONL (.gz) or a folder of TextGrids: adds the
#                           quality of the labels
# --updates N               updates of each of the two pre-trainings
# --finetune_updates N      updates of each of the two fine-tunings
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

data="" manifests="" alignments="" exp=exp/quickstart updates=1000 finetune_updates=2000
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || usage "$1"
    case "$1" in
        --data) data=$(existing "$1" "$2") ;;
        --manifests) manifests=$(existing "$1" "$2") ;;
        --alignments) alignments=$(existing "$1" "$2") ;;
        --exp) exp=$(realpath -m -- "$2") ;;
        --updates) updates=$(number "$1" "$2") ;;
        --finetune_updates) finetune_updates=$(number "$1" "$2") ;;
        *) usage "$1" ;;
    esac
    shift 2
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exp=$(new_folder "$exp")

# Put the manifests of a split into `found`. (If they were printed instead, the function would run in a subshell, and
# its exit would not end the script.)
find_split() {
    found=("$manifests/$1"*.json)
    [ -e "${found[0]}" ] || { echo "$manifests: no $1*.json; is there a $1-* subset in the data?" >&2; exit 1; }
}
for split in ${manifests:+train dev test}; do find_split "$split"; done # before the installation

alone_in "$exp"
EXTRAS=test
source scripts/environment.sh
export HYDRA_FULL_ERROR=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore

# --- Speech and manifests ---------------------------------------------------------------------------------------------
if [ -z "$data$manifests" ]; then
    data=$exp/corpus
    stage "synthesise" "$data/corpus.json" python scripts/synthesize_corpus.py --output "$data" \
        --train_minutes 30 --dev_minutes 1.5 --test_minutes 3
    alignments=$data/align_phones.jsonl.gz
fi
if [ -z "$manifests" ]; then
    manifests=$exp/manifests
    stage "prepare" "$manifests/prepared" bash -c \
        'python scripts/prepare_librispeech.py --data "$0" --output "$1" && touch "$1/prepared"' "$data" "$manifests"
fi
find_split train; train=${found[0]}
find_split dev; dev=${found[0]}
find_split test; tests=("${found[@]}")
metrics=()
[ -z "$alignments" ] || metrics=(--alignments "$alignments")

# --- Iteration 1: HuBERT on MFCC clusters -----------------------------------------------------------------------------
labels=$exp/labels/iter1
stage "k-means of MFCCs" "$labels/km.npz" python scripts/fit_kmeans.py --manifest "$train" --features mfcc \
    --clusters 100 --output "$labels/km.npz"
label() { # WHEN SPLIT OPTION...
    "$1" "label $2, $(basename "$labels")" "$labels/$2.metrics.json" python scripts/label.py make --kmeans "$labels/km.npz" \
        --manifest "${!2}" --output "$labels/$2.json" --metrics_output "$labels/$2.metrics.json" "${metrics[@]}" "${@:3}"
}
label beside dev # it mainly loads PyTorch, which takes one core
label stage train
wait_beside
iter1=$exp/hubert_iter1_tiny/checkpoints/hubert_iter1_tiny.nemo
stage "pre-train HuBERT, iteration 1" "$iter1" python scripts/pretrain.py --config-name hubert_iter1_tiny \
    "$(override label_maker "$labels/km.npz")" "$(override train_manifest "$labels/train.json")" \
    "$(override validation_manifest "$labels/dev.json")" max_updates="$updates" "$(override exp_manager.exp_dir "$exp")"

# --- Labels of MS-HuBERT: six sets of clusters of a hidden layer ------------------------------------------------------
labels=$exp/labels/iter2
stage "k-means of layer 6" "$labels/km.npz" python scripts/fit_kmeans.py --manifest "$train" --features hidden \
    --encoder "$iter1" --layer 6 --clusters 1000 500 250 125 50 25 --max_frames 10000 --output "$labels/km.npz"
label beside dev --encoder "$iter1"
label stage train --encoder "$iter1"
wait_beside
stage "tarred manifests" "$exp/tarred/tarred_audio_manifest.json" python scripts/make_tarred.py \
    --manifest "$labels/train.json" --output "$exp/tarred" --num_shards 4

# --- MS-HuBERT --------------------------------------------------------------------------------------------------------
mshubert=$exp/mshubert_tiny/checkpoints/mshubert_tiny.nemo
stage "pre-train MS-HuBERT" "$mshubert" python scripts/pretrain.py --config-name mshubert_tiny \
    "$(override label_maker "$labels/km.npz")" "$(override validation_manifest "$labels/dev.json")" \
    "$(override train_manifest "$exp/tarred/sharded_manifests/manifest__OP_0..3_CL_.json")" \
    "$(override train_tars "$exp/tarred/audio__OP_0..3_CL_.tar")" max_updates="$updates" \
    "$(override exp_manager.exp_dir "$exp")"

# --- n-gram LM of the training transcripts, where KenLM can be built ----------------------------------------------------
lm_tools() { # not every machine has a compiler, cmake and Boost: without them everything else still runs
    python -c "import kenlm, flashlight.lib.text" 2>/dev/null || pip install --quiet -e ".[decoding]" || return
    bash scripts/build_kenlm.sh
}
decode=()
mkdir -p "$exp/logs"
printf '\n== tools of the n-gram LM (part of the installation)\n'
if lm_tools >"$exp/logs/lm_tools.log" 2>&1; then
    stage "3-gram LM" "$exp/lm/3gram.bin" python scripts/train_ngram.py --text "$train" --order 3 --output "$exp/lm/3gram"
    # one process: it decodes three minutes of speech before others would have started
    decode=(--decode conf/decode/lexicon_beam.yaml --lm "$exp/lm/3gram.bin" --lexicon "$exp/lm/3gram.lexicon" --workers 1)
else
    tail -n 4 "$exp/logs/lm_tools.log"
    echo "No n-gram LM: greedy decoding only. With these tools installed, delete $exp/results and start again."
fi

# --- CTC fine-tuning, from the pre-trained encoder and from random weights --------------------------------------------
beside "CTC model, from scratch" "$exp/ctc/scratch.nemo" python scripts/ssl_to_ctc.py --ssl "$mshubert" --from_scratch \
    --output "$exp/ctc/scratch.nemo"
stage "CTC model, pre-trained" "$exp/ctc/pretrained.nemo" python scripts/ssl_to_ctc.py --ssl "$mshubert" \
    --output "$exp/ctc/pretrained.nemo"
wait_beside
finetune() { # WHEN START OPTION...
    "$1" "fine-tune, $2" "$exp/finetune_$2/checkpoints/finetune_$2.nemo" python scripts/finetune_ctc.py --config-name tiny \
        name="finetune_$2" "$(override init_model "$exp/ctc/$2.nemo")" "$(override train_manifest "$train")" \
        "$(override validation_manifest "$dev")" "$(override exp_manager.exp_dir "$exp")" max_updates="$finetune_updates" \
        validate_every_updates="$((finetune_updates / 10 > 0 ? finetune_updates / 10 : 1))" "${@:3}"
}
evaluate() { # START
    local last
    last=$(basename "${tests[-1]}" .json) # results.json exists after the first of them
    stage "evaluate, $1" "$exp/results/$1/$last.greedy.json" python scripts/evaluate.py --manifest "${tests[@]}" \
        --model "$exp/finetune_$1/checkpoints/finetune_$1.nemo" --output "$exp/results/$1" "${decode[@]}"
}
# Both run at once, each on half of the cores: such small layers gain little from more.
threads=$(($(nproc) / 2))
OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
export OMP_NUM_THREADS
# Random weights need no protection: all layers learn from the first update.
finetune beside scratch freeze_encoder_updates=0 model.encoder.feature_grad_mult=1.0
finetune stage pretrained
evaluate pretrained
wait_beside
evaluate scratch

python scripts/report.py --run "$exp" --output "$exp/report.html"
