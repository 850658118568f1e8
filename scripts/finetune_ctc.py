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

"""Fine-tune a CTC model with the wav2vec 2.0 strategy. The same command resumes from the last checkpoint.

    python scripts/finetune_ctc.py --config-name 10h init_model=ctc.nemo train_manifest=10h.json \\
        validation_manifest=dev-other.json

Splits: conf/finetune/*.yaml. The weights with the best greedy WER are saved as
``exp/<name>/checkpoints/<name>.nemo``. The file ``finished`` beside it means that the run has made all its updates,
and was not stopped earlier by a time limit.
"""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LambdaCallback
from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf

from nemo_mshubert.callbacks.encoder_freeze import EncoderFreeze
from nemo_mshubert.callbacks.finished_run import has_all_updates
from nemo_mshubert.callbacks.nonfinite_guard import NonfiniteGuard
from nemo_mshubert.callbacks.other_ranks import OtherRanks
from nemo_mshubert.callbacks.same_start import SameStart
from nemo_mshubert.callbacks.sentence_average import SentenceAverage
from nemo_mshubert.models.checkpoint_folder import checkpoint_folder, claim_folder
from nemo_mshubert.models.finetuning import restore_for_finetuning, seed_of_session
from nemo_mshubert.models.training_setup import make_trainer, plan_updates
from nemo_mshubert.whole_files import naming


def mark_when_finished(folder: Path) -> pl.Callback:
    """Create the file ``finished`` when all updates have been made."""

    def mark(trainer, _):
        if trainer.is_global_zero and has_all_updates(trainer):
            (folder / "finished").touch()

    # At the end of training NeMo restores the best checkpoint with its number of updates, so we look before that, in
    # on_train_end. If the checkpoint already has all updates, training does not begin or end: hence on_fit_end.
    return LambdaCallback(on_train_end=mark, on_fit_end=mark)


@hydra_runner(config_path="../conf/finetune", config_name="10h")
def main(cfg):
    plan_updates(cfg)
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    folder = checkpoint_folder(cfg.exp_manager)
    # the average comes first: the guard must look at the averaged gradients
    guards = [SentenceAverage(), NonfiniteGuard(cfg.max_nonfinite_steps), OtherRanks()]
    callbacks = [EncoderFreeze(cfg.freeze_encoder_updates), *guards, mark_when_finished(folder)]
    trainer = make_trainer(cfg, callbacks)
    with naming(folder):
        claim_folder(folder, cfg.exp_manager.checkpoint_callback_params.save_top_k, trainer)
        if trainer.is_global_zero:
            (folder / "finished").unlink(missing_ok=True)  # this run may have to make more updates than that one
        exp_manager(trainer, cfg.exp_manager)
    model = restore_for_finetuning(cfg.init_model, cfg.model, trainer)
    trainer.callbacks.insert(0, SameStart(model))  # before other callbacks read the checkpoint
    # NeMo's loaders, which exist by now, have set the seed to 0
    pl.seed_everything(seed_of_session(cfg.model.train_ds.seed, trainer), verbose=False)
    with naming(folder):
        trainer.fit(model)


if __name__ == "__main__":
    main()
