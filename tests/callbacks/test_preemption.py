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

"""SIGTERM and time limits: a run ends behind an update, with a checkpoint that resumes exactly."""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks import preemption
from nemo_mshubert.callbacks.preemption import SaveWhenPreempted, take_time_limit
from tests.callbacks.short_runs import UPDATES, At, Curve, PerUpdate, last, train_updates
from tests.models.fixed_update import trainer_of
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


def terminate(trainer):
    os.kill(os.getpid(), signal.SIGTERM)


def test_updates_of_fine_tuning_are_whole_behind_a_preemption(tmp_path):
    """Of models of NeMo, too: the first update of a resumed run was one micro-batch, its gradient an eighth."""
    found = []
    for resume in (None, tmp_path / "last.ckpt"):
        counter = PerUpdate()
        callbacks = [SaveWhenPreempted(), counter, ModelCheckpoint(tmp_path, save_last=True)]
        callbacks += [] if resume else [At(5, terminate)]
        trainer = trainer_of(max_steps=4, accumulate_grad_batches=4, callbacks=callbacks, enable_checkpointing=True)
        with suppress(SystemExit):
            trainer.fit(BoringModel(), ckpt_path=resume)
        found.append([count for count in counter.counts if count])
        assert trainer.global_step == (4 if resume else 2)
    assert found == [[4, 4], [4, 4]]


def test_a_time_limit_ends_a_run_between_updates(tmp_path):
    """NeMo's timer ended it behind any micro-batch, whose gradients were lost: the next update was a short one."""
    found = []
    for limit, resume in ((timedelta(0), None), (None, tmp_path / "last.ckpt")):
        counter = PerUpdate()
        callbacks = [SaveWhenPreempted(limit), counter, ModelCheckpoint(tmp_path, save_last=True)]
        trainer = trainer_of(max_steps=3, accumulate_grad_batches=4, callbacks=callbacks, enable_checkpointing=True)
        with suppress(SystemExit):
            trainer.fit(BoringModel(), ckpt_path=resume)
        found.append([count for count in counter.counts if count])
        assert trainer.global_step == (3 if resume else 1)
    assert found == [[4], [4, 4]]


def test_the_time_limit_is_nemos_option():
    for text in ("01:02:03:04", "1:2:3:4"):
        config = OmegaConf.create({"max_time_per_run": text})
        OmegaConf.set_struct(config, True)  # as Hydra's
        assert take_time_limit(config) == timedelta(days=1, hours=2, minutes=3, seconds=4)
        assert config.max_time_per_run is None and take_time_limit(config) is None  # NeMo's timer is not made
    for text in ("4h", "00:03:50:00h", "00:00:120:00"):
        with pytest.raises(ValueError, match=f"max_time_per_run={text}: expected days:hours:minutes:seconds"):
            take_time_limit(OmegaConf.create({"max_time_per_run": text}))
    with pytest.raises(ValueError, match="max_time_per_run=229800: expected .* in quotes"):
        take_time_limit(OmegaConf.create("max_time_per_run: 1:03:50:00"))  # base 60, says YAML


def test_a_time_limit_may_be_of_days(monkeypatch):
    """One of a day and an hour ended every job behind its first hour."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(preemption, "time", SimpleNamespace(monotonic=lambda: clock.now))
    fit_loop = SimpleNamespace(_should_accumulate=lambda: False)
    trainer = SimpleNamespace(fit_loop=fit_loop, checkpoint_callback=None, max_steps=-1, global_step=1)
    module = SimpleNamespace(device="cpu")
    limit = SaveWhenPreempted(timedelta(days=1, hours=1))
    limit.on_train_start(trainer, module)
    try:
        clock.now += 25 * 3600 - 1
        limit.on_train_batch_end(trainer, module, None, None, 0)
        clock.now += 1
        with pytest.raises(SystemExit):
            limit.on_train_batch_end(trainer, module, None, None, 1)
    finally:
        limit.on_fit_end(trainer, module)


@pytest.mark.parametrize("micro_batch", [4, 5])
def test_preempted_run_ends_between_updates_and_resumes_exactly(config, tmp_path, micro_batch):
    """SIGTERM in either micro-batch of the third update: its gradients are neither lost nor counted twice."""
    original = signal.getsignal(signal.SIGTERM)
    train_updates(config, tmp_path / "whole")
    with pytest.raises(SystemExit) as end:
        train_updates(config, tmp_path / "cut", SaveWhenPreempted(), At(micro_batch, terminate))
    assert end.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == original
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert last(tmp_path / "cut")["global_step"] == 3
    train_updates(config, tmp_path / "cut", SaveWhenPreempted(), resume=tmp_path / "cut" / "last.ckpt")
    whole, resumed = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert whole["global_step"] == resumed["global_step"] == UPDATES
    for name, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def test_a_signal_in_the_last_moment_does_not_kill_a_finished_run():
    """The job would be counted as failed, though all was trained and written."""
    received = []
    original = signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
    try:
        preempted = SaveWhenPreempted()
        preempted.on_fit_start(None, None)
        preempted.on_train_start(None, None)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)  # and not a thread that lets it through
        preempted.on_fit_end(None, None)
        assert not received and signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == ["SIGTERM"]  # by the handler that was there before
    finally:
        signal.signal(signal.SIGTERM, original)


def test_an_error_before_training_is_told_as_it_is():
    """Of the first validation, say: no handler is there yet that could be put back."""
    original = signal.getsignal(signal.SIGTERM)
    preempted = SaveWhenPreempted()
    preempted.on_fit_start(None, None)
    preempted.on_exception(None, None, FileNotFoundError("dev.json"))
    assert signal.getsignal(signal.SIGTERM) == original
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_curves_go_on_where_they_were_cut(config, tmp_path):
    """A loss logged one step late behind every preemption shifts the curves of a run against those of others."""
    whole, resumed = Curve("train_loss"), Curve("train_loss")
    train_updates(config, tmp_path / "whole", logger=whole, log_every_n_steps=1)
    with pytest.raises(SystemExit):
        train_updates(config, tmp_path / "cut", SaveWhenPreempted(), At(4, terminate))
    options = dict(logger=resumed, log_every_n_steps=1)
    train_updates(config, tmp_path / "cut", resume=tmp_path / "cut" / "last.ckpt", **options)
    steps = [step for step, _ in whole.points]
    assert steps == list(range(UPDATES))
    assert [step for step, _ in resumed.points] == steps[3:]


def test_loader_processes_outlive_the_signal(config, tmp_path, monkeypatch):
    """SLURM signals all processes of a task; PyTorch ends a run that has lost a loader process, without a
    checkpoint."""

    def terminate_all(trainer):
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
        terminate(trainer)
        time.sleep(1)  # in which PyTorch would find them dead

    monkeypatch.setattr("tests.models.fixed_update.DataLoader", partial(DataLoader, num_workers=2))
    with pytest.raises(SystemExit) as end:
        train_updates(config, tmp_path, SaveWhenPreempted(), At(4, terminate_all))
    assert end.value.code == 0 and last(tmp_path)["global_step"] == 3
    for worker in multiprocessing.active_children():
        worker.join(timeout=20)
    assert not multiprocessing.active_children()


def test_loader_processes_do_not_outlive_an_error(config, tmp_path, monkeypatch):
    """Python waits for them when it exits: behind the traceback of a loader's error the run would hang, and with it
    the other ranks."""

    def fail(batch):
        raise FileNotFoundError("audio_3.tar")

    monkeypatch.setattr("tests.models.fixed_update.DataLoader", partial(DataLoader, num_workers=2, collate_fn=fail))
    with pytest.raises(FileNotFoundError, match="audio_3.tar") as error:
        train_updates(config, tmp_path, SaveWhenPreempted())
    assert error.traceback  # which holds the loader, as that of an error which nobody catches does
    assert not multiprocessing.active_children()


def test_all_ranks_stop_when_one_is_preempted(config, tmp_path):
    """The one that is not rank 0, and no other."""

    def rank():
        rank_one_is_preempted = At(4, lambda trainer: trainer.global_rank == 1 and terminate(trainer))
        callbacks = (SaveWhenPreempted(), rank_one_is_preempted)
        parts = (((0,), (1,)), ((2,), (3,)))
        try:
            train_updates(config, tmp_path, *callbacks, devices=2, parts=parts, strategy="ddp")
        except SystemExit as end:
            return end.code

    assert run_on_ranks(2, rank) == [0, 0]
    assert last(tmp_path)["global_step"] == 3
