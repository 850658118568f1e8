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

"""A resumed run trains with the schedule and the optimizer of its config, not with those of its checkpoint."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from nemo_mshubert.callbacks.configured_schedule import ConfiguredSchedule
from nemo_mshubert.data.pretraining_dataset import collate
from tests.models.fixed_update import train, utterance

pytestmark = pytest.mark.unit


class Rates(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])  # of the next


def train_on(config, folder, updates, optim, resume=None, callbacks=()):
    """The model after so many updates; ``last.ckpt`` in the folder is of the last."""
    config.optim = {"name": "adamw", "lr": 1e-3, **optim}
    checkpoints = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)
    callbacks = [ConfiguredSchedule(), checkpoints, *callbacks]
    batches = [[collate([utterance(0)])] * 12]
    return train(config, batches, updates, resume=resume, callbacks=callbacks, enable_checkpointing=True)


def rates_of(*arguments, **options):
    """The rates of `train_on` before each update and behind it."""
    found = Rates()
    train_on(*arguments, **options, callbacks=[found])
    return found.rates


@pytest.mark.parametrize("lr", [1e-3, 1e-4])
def test_a_resumed_run_follows_the_schedule_of_its_config(config, tmp_path, lr):
    """With more updates it would train at rate 0, the end of the schedule that the checkpoint had."""

    def rates(folder, updates, peak, resume=None):
        schedule = {"name": "PolynomialDecayAnnealing", "power": 1.0, "min_lr": 0.0, "warmup_steps": 2}
        return rates_of(config, folder, updates, {"lr": peak, "sched": {**schedule, "max_steps": updates}}, resume)

    rates(tmp_path, 6, 1e-3)
    expected = rates(tmp_path / "whole", 12, lr)[2 * 6 :]
    assert rates(tmp_path, 12, lr, tmp_path / "last.ckpt") == pytest.approx(expected) and expected[0] > 0


def test_a_resumed_run_takes_the_kernel_of_its_config(config, tmp_path):
    """The checkpoint's: AdamW sharded over ranks would run the fused kernel on counts that it keeps on the CPU."""

    def group(updates, fused, resume=None):
        model = train_on(config, tmp_path, updates, {"fused": fused}, resume)
        (found,) = model.trainer.optimizers[0].param_groups
        return found["fused"], {int(state["step"]) for state in model.trainer.optimizers[0].state.values()}

    assert group(2, True) == (True, {2})
    assert group(3, None, tmp_path / "last.ckpt") == (None, {3})


class Decays(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (group,) = trainer.optimizers[0].param_groups
        self.found = group["weight_decay"], tuple(group["betas"])


def test_a_resumed_run_takes_the_optimizer_of_its_config(config, tmp_path):
    """PyTorch takes that of the checkpoint: another weight decay had no effect, without a word."""

    def found(updates, weight_decay, beta, resume=None):
        decays, optim = Decays(), {"weight_decay": weight_decay, "betas": [0.9, beta]}
        model = train_on(config, tmp_path, updates, optim, resume, [decays])
        return decays.found, model.trainer.optimizers[0].state

    assert found(2, 0.1, 0.98)[0] == (0.1, (0.9, 0.98))
    options, moments = found(3, 0.3, 0.95, tmp_path / "last.ckpt")
    assert options == (0.3, (0.9, 0.95)) and {int(state["step"]) for state in moments.values()} == {3}


@pytest.mark.parametrize("groups", [1, 2])
def test_options_of_parts_are_those_of_the_checkpoint(groups):
    """The only optimizer takes all options of its config but the rate; of several parts each has options of its
    own."""
    parts = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(groups)]
    optimizer = torch.optim.AdamW(parts, lr=0.1, eps=1e-6, betas=(0.8, 0.9), weight_decay=0.3)
    found = {"lr": 0.05, "eps": 1e-8, "betas": (0.9, 0.98), "weight_decay": 0.01}
    for group in optimizer.param_groups:
        group.update(found)
    ConfiguredSchedule().on_train_start(SimpleNamespace(optimizers=[optimizer]), None)
    expected = {"lr": 0.05, "eps": 1e-6, "betas": (0.8, 0.9), "weight_decay": 0.3} if groups == 1 else found
    for group in optimizer.param_groups:
        assert {name: group[name] for name in expected} == expected


def test_a_schedule_that_loads_more_than_its_progress_goes_on(config, tmp_path):
    """CyclicLR: a KeyError, also at the end of training, when NeMo loads the best checkpoint."""
    schedule = {"name": "CyclicLR", "base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 4, "cycle_momentum": False}
    optim = {"sched": schedule}
    assert rates_of(config, tmp_path, 2, optim)[-1] == pytest.approx(5.5e-4)
    assert rates_of(config, tmp_path, 3, optim, tmp_path / "last.ckpt")[-1] == pytest.approx(7.75e-4)


def test_a_resumed_run_without_a_schedule_has_the_rate_of_its_config(config, tmp_path):
    """More updates at a constant rate: they were made at 0, the end of the schedule that the checkpoint had."""
    schedule = {"name": "PolynomialDecayAnnealing", "power": 1.0, "min_lr": 0.0, "warmup_steps": 1, "max_steps": 2}
    assert rates_of(config, tmp_path, 2, {"sched": schedule})[-1] == 0
    assert rates_of(config, tmp_path, 4, {}, tmp_path / "last.ckpt") == [1e-3] * 4


def test_parts_without_a_schedule_have_the_rates_that_they_began_with():
    """The parts of a model whose schedule had come to its end were not trained any more."""
    parts = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.2)]
    optimizer = torch.optim.SGD(parts)
    for group in optimizer.param_groups:
        group.update(initial_lr=group["lr"], lr=0.0)
    resumed = ConfiguredSchedule()
    resumed.on_load_checkpoint(None, None, {})
    resumed.on_train_start(SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[]), None)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_a_schedule_that_follows_a_loss_is_not_told_an_update_in_its_place():
    """The number of the update would be the best loss there is on a resume, and the rate fall with every one behind
    it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    resumed = ConfiguredSchedule()
    resumed.on_load_checkpoint(None, None, {})
    configs = [SimpleNamespace(scheduler=schedule)]
    resumed.on_train_start(SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=configs), None)
    schedule.step(2.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_schedule_that_follows_a_loss_keeps_what_it_waits_for():
    """Its patience began anew on every resume: a run of short jobs never had a lower rate."""

    def schedule():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1), optimizer

    before, _ = schedule()
    for loss in (2.0, 2.5):
        before.step(loss)
    state = before.state_dict()
    ConfiguredSchedule().on_load_checkpoint(None, None, {"lr_schedulers": [state]})
    after, optimizer = schedule()
    after.load_state_dict(state)
    after.step(2.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
