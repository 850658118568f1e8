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

"""A few updates on four fixed utterances with fixed masks, split over micro-batches and ranks at will.

Run as a script it is one of two ranks, since Lightning starts the other by running the same command again:

    python fixed_update.py model.yaml weights.pt
"""

import sys

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.data.pretraining_dataset import collate
from nemo_mshubert.models import MSHuBERTModel
from nemo_mshubert.models.mshubert_model import Masks
from nemo_mshubert.modules.frames import frame_count
from tests.conftest import quiet_trainer

FRAMES = [24, 20, 16, 12]  # even: every second frame is masked, the same share of every utterance
TWO_RANKS = [[[0], [1]], [[2], [3]]]  # rank, micro-batch, utterances


def utterance(number, frames=None, clusters=40):
    """Noise with random labels, named ``u<number>``."""
    generator = torch.Generator().manual_seed(number)
    frames = frames or FRAMES[number]
    samples = torch.randn((frames - 1) * 320 + 400, generator=generator).numpy()
    labels = torch.randint(clusters, (frames,), generator=generator).numpy()
    return f"u{number}", samples, {clusters: labels}


def every_second_frame(length, num_samples, generator=None) -> Masks:
    """Stands in for the random masks, so that they do not depend on the batch."""
    times = torch.arange(frame_count(num_samples))
    valid_BT = times < frame_count(length)[:, None]
    mask_BT = valid_BT & (times % 2 == 1)
    return Masks(mask_BT, mask_BT.flatten().nonzero().flatten(), (valid_BT & ~mask_BT).flatten().nonzero().flatten())


def trainer_of(callbacks=(), **options) -> pl.Trainer:
    """Every second update is logged, which looks at visible frames, too. Its checkpoints are of whole updates."""
    defaults = dict(
        max_epochs=-1, use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0, log_every_n_steps=2
    )
    return quiet_trainer(callbacks=[*callbacks, SavedUpdate()], **{**defaults, **options})


def train(config, batches_of_rank, updates, devices=1, resume=None, **options) -> MSHuBERTModel:
    """A seeded model of ``config`` after ``updates`` optimizer steps on a list of batches for each part of the
    data."""
    trainer = trainer_of(devices=devices, max_steps=updates, **options)
    torch.manual_seed(0)
    model = MSHuBERTModel(config, trainer)
    model._draw_masks = every_second_frame
    model.train_dataloader = lambda: DataLoader(batches_of_rank[model.data_ranks.rank], batch_size=None)
    trainer.fit(model, ckpt_path=resume)
    return model


def train_split(config, split, updates=2, **options) -> MSHuBERTModel:
    """Updates on all utterances of ``split``: lists of rank, micro-batch, utterance number."""
    batches = [[collate([utterance(n) for n in micro_batch]) for micro_batch in rank] * updates for rank in split]
    return train(config, batches, updates, len(split), accumulate_grad_batches=len(split[0]), **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    config_path, output = sys.argv[1:]
    config = OmegaConf.load(config_path)
    trained = train_split(config.model, TWO_RANKS, strategy="ddp", gradient_clip_val=config.clip)
    if trained.global_rank == 0:
        torch.save(trained.state_dict(), output)
