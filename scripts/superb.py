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

"""SUPERB's speech or phone recognition with a frozen encoder and a learning-rate sweep. The same command resumes.

    python scripts/superb.py --config-name asr name=MS-HuBERT model=ms.nemo train_manifests=[train-clean-100.json] \\
        dev_manifests=[dev-clean.json] test_manifests=[test-clean.json] output=exp/superb/ms_asr \\
        cache.folder=/ssd/cache
    python scripts/superb.py --config-name pr pronunciations=[librispeech-lexicon.txt] g2p=espeak ...

Writes superb.json and layer_weights.png to ``output``. Tasks: conf/superb/*.yaml.
"""

from nemo.core.config import hydra_runner
from nemo.utils import logging
from omegaconf import OmegaConf

from nemo_mshubert.analysis.superb.sweep import results_table, run_superb
from nemo_mshubert.device import choose_device


@hydra_runner(config_path="../conf/superb", config_name="asr")
def main(cfg):
    cfg.device = choose_device(cfg.device)
    logging.info(f"Hydra config: {OmegaConf.to_yaml(cfg)}")
    print(results_table(run_superb(cfg)))


if __name__ == "__main__":
    main()
