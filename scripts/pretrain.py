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

"""Pre-train HuBERT or MS-HuBERT on a labelled manifest. The same command resumes from the last checkpoint.

    python scripts/pretrain.py --config-name mshubert_base label_maker=km.npz \\
        train_manifest=train_labelled.json validation_manifest=dev-other_labelled.json

Experiments: conf/pretrain/*.yaml. The best weights are saved as ``exp/<name>/checkpoints/<name>.nemo``.
"""

from nemo.core.config import hydra_runner
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf

from nemo_mshubert.models import MSHuBERTModel
from nemo_mshubert.models.checkpoint_folder import checkpoint_folder, claim_folder
from nemo_mshubert.models.initial_encoder import maybe_init_encoder
from nemo_mshubert.models.training_setup import make_trainer, plan_updates
from nemo_mshubert.parallel.registration import register
from nemo_mshubert.whole_files import naming


@hydra_runner(config_path="../conf/pretrain", config_name="mshubert_base")
def main(cfg):
    register()
    plan_updates(cfg)
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    trainer = make_trainer(cfg)
    folder = checkpoint_folder(cfg.exp_manager)
    with naming(folder):
        claim_folder(folder, cfg.exp_manager.checkpoint_callback_params.save_top_k, trainer)
        exp_manager(trainer, cfg.exp_manager)
    model = MSHuBERTModel(cfg=cfg.model, trainer=trainer)
    model.maybe_init_from_pretrained_checkpoint(cfg)
    maybe_init_encoder(model, cfg.get("init_encoder"), trainer.ckpt_path)
    with naming(folder):
        trainer.fit(model)


if __name__ == "__main__":
    main()
