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

# Label a large corpus with an array of SLURM jobs, one GPU each, then join their shards in one more job:
#
#     jobs=$(sbatch --parsable --array 0-63 scripts/slurm/label.sh make --kmeans km6.npz --encoder hubert_iter1_base.nemo \
#         --manifest train.json --output train_labelled.json)
#     sbatch --dependency afterok:"$jobs" --array 0 scripts/slurm/label.sh merge --shards 64 --kmeans km6.npz \
#         --manifest train.json --output train_labelled.json
#
# A restarted job continues after the last line it wrote. To run failed tasks again: SHARDS=64 sbatch --array 5,17 ...
# The Python environment is .venv; for another one: VENV=/path/to/it sbatch ...
#SBATCH --job-name=label
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch from the repository}"
# shellcheck disable=SC1091
source "${VENV:-.venv}/bin/activate"

command=${1:?make or merge}
shift
if [ "$command" = make ]; then
    set -- --shard "${SLURM_ARRAY_TASK_ID:?submit it with --array, such as --array 0-63}/${SHARDS:-$SLURM_ARRAY_TASK_COUNT}" "$@"
fi
python scripts/label.py "$command" "$@"
