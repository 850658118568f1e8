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

# Pre-training or fine-tuning on a SLURM cluster, with one task per GPU. srun ends all tasks when one fails. The first
# argument names the script, which gets the other arguments:
#
#     sbatch --nodes 4 scripts/slurm/train.sh scripts/pretrain.py --config-name mshubert_base label_maker=km6.npz \
#         train_manifest=... train_tars=... validation_manifest=dev-other_labelled.json
#     sbatch --nodes 1 scripts/slurm/train.sh scripts/finetune_ctc.py --config-name 960h init_model=ctc.nemo ...
#
# Five minutes before the time limit, and on preemption, SLURM sends SIGTERM. The tasks write a checkpoint; the job is
# queued again and resumes from it. Do not set exp_manager.max_time_per_run: a job that it ends is not queued again.
# The Python environment is .venv; for another one: VENV=/path/to/it sbatch ...
#SBATCH --job-name=mshubert
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
script=${1:?scripts/pretrain.py or scripts/finetune_ctc.py}
shift
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch from the repository}"
# shellcheck disable=SC1091
source "${VENV:-.venv}/bin/activate"

export OMP_NUM_THREADS=1                      # audio is decoded and cropped in loader processes
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1      # a broken link raises an error instead of waiting

# since 22.05 srun does not inherit sbatch's CPUs per task; without the option the loaders would share one CPU
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" python "$script" "$@" \
    trainer.num_nodes="$SLURM_NNODES" trainer.devices="$SLURM_NTASKS_PER_NODE" &
step=$!
stopped=0
# not "kill $step": srun does not forward SIGTERM but kills the tasks
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM     # only to the tasks, which write a checkpoint
code=0
wait "$step" || code=$?
if [ "$stopped" = 1 ]; then                   # the signal ended the first wait
    code=0
    wait "$step" || code=$?
fi
# preemption with a grace time sends the signal to the tasks, not to this script
preempted() { scontrol show job "$SLURM_JOB_ID" | grep -q "PreemptTime=[0-9]"; }
# 143: SIGTERM came before training had begun; only from then on the tasks handle it
if { [ "$code" = 0 ] || [ "$code" = 143 ]; } && { [ "$stopped" = 1 ] || preempted; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
