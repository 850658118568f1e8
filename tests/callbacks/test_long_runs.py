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

"""What befalls runs of weeks: preemption, a full disk, a rank that hangs, a slow loader."""

import multiprocessing
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import Logger
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks import data_wait, preemption, rank_watch
from nemo_mshubert.callbacks.configured_schedule import ConfiguredSchedule
from nemo_mshubert.callbacks.data_wait import DataWait
from nemo_mshubert.callbacks.preemption import SaveWhenPreempted, take_time_limit
from nemo_mshubert.callbacks.rank_watch import RankWatch, furthest_behind
from nemo_mshubert.data.pretraining_dataset import collate
from nemo_mshubert.models import mshubert_model
from tests.conftest import quiet_trainer
from tests.models.fixed_update import train, trainer_of, utterance
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit
UPDATES = 6


@pytest.fixture
def config(tiny_config):
    config = tiny_config("model.drop_label_sets=1", "model.encoder.layerdrop=0.3")
    config.model.optim = {"name": "adamw", "lr": 1e-3}
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True)["model"])


def train_updates(config, folder, *callbacks, resume=None, devices=1, parts=(((0,), (1,)),), **options):
    """Six updates of two micro-batches; a checkpoint of the last state in the folder."""
    batches = [[collate([utterance(n) for n in micro]) for micro in part] * UPDATES for part in parts]
    checkpoints = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=2)
    options = {"accumulate_grad_batches": 2, "enable_checkpointing": True, **options}
    return train(config, batches, UPDATES, devices, resume, callbacks=[*callbacks, checkpoints], **options)


def last(folder):
    return torch.load(folder / "last.ckpt", map_location="cpu", weights_only=False)


class At(pl.Callback):
    """Calls a function at the start of a micro-batch (counted from 0)."""

    def __init__(self, micro_batch, function):
        self.micro_batch, self.function = micro_batch, function

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.micro_batch:
            self.function(trainer)


def terminate(trainer):
    os.kill(os.getpid(), signal.SIGTERM)


# --- Preemption ------------------------------------------------------------------------------------------------------


class PerUpdate(pl.Callback):
    """Counts the micro-batches of each update."""

    def __init__(self):
        self.counts = [0]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.counts[-1] += 1

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.counts.append(0)


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
    config = OmegaConf.create({"max_time_per_run": "01:02:03:04"})
    assert take_time_limit(config) == timedelta(days=1, hours=2, minutes=3, seconds=4)
    assert config.max_time_per_run is None and take_time_limit(config) is None  # NeMo's timer is not made
    with pytest.raises(ValueError, match="max_time_per_run=4h: expected days:hours:minutes:seconds"):
        take_time_limit(OmegaConf.create({"max_time_per_run": "4h"}))
    with pytest.raises(ValueError, match="max_time_per_run=229800: expected .* in quotes"):
        take_time_limit(OmegaConf.create("max_time_per_run: 1:03:50:00"))  # base 60, says YAML


def test_a_time_limit_may_be_of_days(monkeypatch):
    """One of a day and an hour ended every job behind its first hour."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(preemption, "time", SimpleNamespace(monotonic=lambda: clock.now))
    fit_loop = SimpleNamespace(_should_accumulate=lambda: False)
    trainer, module = SimpleNamespace(fit_loop=fit_loop, checkpoint_callback=None), SimpleNamespace(device="cpu")
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


class Steps(Logger):
    """Remembers the steps that training losses are logged at."""

    name, version = "steps", 0

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        if "train_loss" in metrics:
            self.steps.append(step)

    def log_hyperparams(self, *_, **__):
        pass


def test_curves_go_on_where_they_were_cut(config, tmp_path):
    """A loss logged one step late behind every preemption shifts the curves of a run against those of others."""
    whole, resumed = Steps(), Steps()
    train_updates(config, tmp_path / "whole", logger=whole, log_every_n_steps=1)
    with pytest.raises(SystemExit):
        train_updates(config, tmp_path / "cut", SaveWhenPreempted(), At(4, terminate))
    options = dict(logger=resumed, log_every_n_steps=1)
    train_updates(config, tmp_path / "cut", resume=tmp_path / "cut" / "last.ckpt", **options)
    assert whole.steps == list(range(UPDATES))
    assert resumed.steps == whole.steps[3:]


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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss_views": "masked_stream"}, "last.ckpt: loss_views both, but the config says masked_stream"),
        ({"swap": False}, "last.ckpt: swap True, but the config says False"),
        ({"label_layers": {"1": 10, "2": 20, "3": 40}}, "last.ckpt: layers of label sets .*, but the config says"),
        (
            {"encoder": {"d_inner": 24}},
            r"last.ckpt: another architecture: misshapen tensors .* is \[.*\], expected \[24",
        ),
    ],
)
def test_a_run_does_not_go_on_as_another_one(config, tmp_path, change, message):
    """Heads that have learned one task would go on with another, without a word."""
    from omegaconf import OmegaConf

    train_updates(config, tmp_path)
    assert config.loss_views == "both" and config.encoder.d_inner != 24
    with pytest.raises(ValueError, match=f"{message}.*another name="):
        train_updates(OmegaConf.merge(config, change), tmp_path / "other", resume=tmp_path / "last.ckpt")


def test_a_run_does_not_go_on_with_labels_of_another_maker(config, tmp_path):
    train_updates(config, tmp_path)
    checkpoint = last(tmp_path)
    checkpoint["task"]["label maker"] = "0123456789abcdef"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt: label maker 0123456789abcdef, but the config says"):
        train_updates(config, tmp_path / "again", resume=tmp_path / "other.ckpt")
    del checkpoint["task"]  # of a fine-tuning with the same name=
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt: label maker None, but the config says.*another name="):
        train_updates(config, tmp_path / "again", resume=tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, []),
        ({"num_workers": 7}, []),  # of plain manifests
        ({"batch_duration": 6}, ["batch_duration was 12, is 6."]),
        ({"seed": 5, "shuffle": False}, ["seed was 1337, is 5; shuffle was True, is False."]),
    ],
    ids=str,
)
def test_a_resume_says_which_options_of_the_data_have_changed(config, tmp_path, monkeypatch, change, expected):
    """A smaller batch for a smaller GPU: the epoch does not go on exactly, and the user must not believe it."""
    warnings = []
    train_updates(config, tmp_path)
    monkeypatch.setattr(mshubert_model.logging, "warning", warnings.append)
    changed = OmegaConf.merge(config, {"train_ds": change})
    model = train_updates(changed, tmp_path / "on", resume=tmp_path / "last.ckpt")
    model.on_load_checkpoint(last(tmp_path))  # as NeMo restores the best one at the end: nothing goes on from it
    found = [warning for warning in warnings if "The data goes on" in warning]
    assert [warning.partition("interruption: ")[2] for warning in found] == expected


class Rates(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])  # of the next


@pytest.mark.parametrize("lr", [1e-3, 1e-4])
def test_a_resumed_run_follows_the_schedule_of_its_config(config, tmp_path, lr):
    """With more updates it would train at rate 0, the end of the schedule that the checkpoint had."""
    batches = [[collate([utterance(0)])] * 12]

    def rates(folder, updates, peak, resume=None):
        schedule = {"name": "PolynomialDecayAnnealing", "power": 1.0, "min_lr": 0.0, "warmup_steps": 2}
        config.optim = {"name": "adamw", "lr": peak, "sched": {**schedule, "max_steps": updates}}
        checkpoints = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)
        found = Rates()
        callbacks = [ConfiguredSchedule(), checkpoints, found]
        train(config, batches, updates, resume=resume, callbacks=callbacks, enable_checkpointing=True)
        return found.rates

    rates(tmp_path, 6, 1e-3)
    expected = rates(tmp_path / "whole", 12, lr)[2 * 6 :]
    assert rates(tmp_path, 12, lr, tmp_path / "last.ckpt") == pytest.approx(expected) and expected[0] > 0


def test_a_resumed_run_takes_the_kernel_of_its_config(config, tmp_path):
    """The checkpoint's: AdamW sharded over ranks would run the fused kernel on counts that it keeps on the CPU."""
    batches = [[collate([utterance(0)])] * 3]

    def group(updates, fused, resume=None):
        config.optim = {"name": "adamw", "lr": 1e-3, "fused": fused}
        checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1)
        callbacks = [ConfiguredSchedule(), checkpoints]
        model = train(config, batches, updates, resume=resume, callbacks=callbacks, enable_checkpointing=True)
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
    batches = [[collate([utterance(0)])] * 3]

    def found(updates, weight_decay, beta, resume=None):
        config.optim = {"name": "adamw", "lr": 1e-3, "weight_decay": weight_decay, "betas": [0.9, beta]}
        checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=1)
        callbacks = [ConfiguredSchedule(), checkpoints, decays := Decays()]
        model = train(config, batches, updates, resume=resume, callbacks=callbacks, enable_checkpointing=True)
        return decays.found, model.trainer.optimizers[0].state

    assert found(2, 0.1, 0.98)[0] == (0.1, (0.9, 0.98))
    options, moments = found(3, 0.3, 0.95, tmp_path / "last.ckpt")
    assert options == (0.3, (0.9, 0.95)) and {int(state["step"]) for state in moments.values()} == {3}


@pytest.mark.parametrize("groups", [1, 2])
def test_options_of_parts_are_those_of_the_checkpoint(groups):
    """The only optimizer takes all options of its config but the rate; of several parts each has options of its own."""
    parts = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in range(groups)]
    optimizer = torch.optim.AdamW(parts, lr=0.1, eps=1e-6, betas=(0.8, 0.9), weight_decay=0.3)
    found = {"lr": 0.05, "eps": 1e-8, "betas": (0.9, 0.98), "weight_decay": 0.01}
    for group in optimizer.param_groups:
        group.update(found)
    ConfiguredSchedule().on_train_start(SimpleNamespace(optimizers=[optimizer]), None)
    expected = {"lr": 0.05, "eps": 1e-6, "betas": (0.8, 0.9), "weight_decay": 0.3} if groups == 1 else found
    for group in optimizer.param_groups:
        assert {name: group[name] for name in expected} == expected


class Saves(pl.Callback):
    """At which micro-batch checkpoints are written."""

    def __init__(self):
        self.batches = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.batches.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def test_a_resumed_run_without_validation_saves_between_updates_only(config, tmp_path):
    """It wrote its checkpoint anew in the middle of its first update, whose gradients no checkpoint holds."""
    batches = [[collate([utterance(0)])] * 16]

    def saves(updates, resume=None):
        checkpoints = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=2)
        callbacks = [checkpoints, found := Saves()]
        options = dict(accumulate_grad_batches=2, enable_checkpointing=True)
        train(config, batches, updates, resume=resume, callbacks=callbacks, **options)
        return found.batches

    assert saves(4) == [4, 8]
    assert saves(8, tmp_path / "last.ckpt") == [12, 16]


# --- Full disk -------------------------------------------------------------------------------------------------------


def test_full_disk_leaves_the_last_checkpoint_whole(config, tmp_path):
    """Files may grow no further from the fourth update on, as on a full disk; the error says so."""

    def rank():
        limit = (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        with pytest.raises(OSError) as error:
            train_updates(config, tmp_path, At(6, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
        return str(error.value)

    (message,) = run_on_ranks(1, rank)
    assert "File too large" in message
    assert last(tmp_path)["global_step"] == 2  # every second update writes one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt"]


# --- A rank that hangs -----------------------------------------------------------------------------------------------


def test_furthest_behind():
    """The one that the others wait for, not one of those that wait."""
    assert furthest_behind({0: (7, 2), 1: (7, 1), 2: (7, 2)}) == ([1], "forward pass, batch 7")
    assert furthest_behind({0: (7, 3), 1: (8, 0), 2: (7, 3)}) == ([0, 2], "update, batch 7")
    assert furthest_behind({0: (3, 0), 1: (3, 0)}) == ([0, 1], "loading data, batch 3")


def test_a_hung_rank_is_named(config, tmp_path):
    """Rank 1 never gets its third batch; rank 0, which waits for it in the forward pass, ends with its name."""

    def ended(trainer, ranks, where):
        (tmp_path / "ended").write_text(f"{trainer.global_rank} {ranks} {where}")

    def rank():
        rank_watch.RankWatch._end = staticmethod(ended)

        def hang(trainer):
            while trainer.global_rank == 1 and not (tmp_path / "ended").exists():
                time.sleep(0.05)

        parts = (((0,), (1,)), ((2,), (3,)))
        watch = RankWatch(timeout_seconds=1.5)
        train_updates(config, tmp_path, At(2, hang), watch, devices=2, parts=parts, strategy="ddp")

    run_on_ranks(2, rank)
    assert (tmp_path / "ended").read_text() == "0 [1] loading data, batch 2"


def test_end_of_a_hung_run_is_an_error(monkeypatch, config):
    """The launcher must see a code other than 0, and the user the rank, the phase and what to do."""
    messages, codes = [], []
    monkeypatch.setattr(rank_watch.logging, "error", messages.append)
    monkeypatch.setattr(rank_watch.os, "_exit", codes.append)
    trainer = quiet_trainer()
    RankWatch()._end(trainer, [3], "forward pass, batch 7")
    assert codes == [70] and "rank 3 of 1 hangs in: forward pass, batch 7" in messages[0]


def test_marks_say_the_phase():
    """One that hangs in its file system would be looked for in its GPU."""
    watch, trainer, module = RankWatch(), SimpleNamespace(world_size=2), None
    hooks = {
        "forward pass, batch 1": lambda: watch.on_train_batch_start(trainer, module, None, 0),
        "backward pass, batch 1": lambda: watch.on_before_backward(trainer, module, None),
        "update, batch 1": lambda: watch.on_before_optimizer_step(trainer, module, None),
        "loading data, batch 1": lambda: watch.on_train_batch_end(trainer, module, None, None, 0),
        "validation, or loading data behind it, batch 1": lambda: watch.on_validation_batch_end(*[None] * 5),
        "forward pass, batch 2": lambda: watch.on_train_batch_start(trainer, module, None, 1),
    }
    for expected, hook in hooks.items():
        hook()
        assert furthest_behind({1: rank_watch._parse(watch._latest)}) == ([1], expected)


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_a_rank_that_is_done_is_not_watched(end):
    """While it writes its last files, or its error, it comes no further and would be said to hang."""
    watch, stopped = RankWatch(), []
    watch._watch = SimpleNamespace(stop=lambda: stopped.append(end))
    getattr(watch, end)(None, None, *[KeyboardInterrupt()] * (end == "on_exception"))
    assert stopped == [end]


def test_ranks_that_this_process_has_started_end_with_it(monkeypatch):
    """Left behind, they would hold the GPUs, and the next job would find no memory on them."""
    ended = []
    monkeypatch.setattr(rank_watch.os, "_exit", lambda code: ended.append(f"exit {code}"))
    launcher = SimpleNamespace(kill=lambda number: ended.append(f"kill {number}"))
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(launcher=launcher))
    RankWatch()._end(trainer, [1], "update, batch 7")
    assert ended == [f"kill {int(signal.SIGKILL)}", "exit 70"]


# --- Waiting for data ------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """``clock.now``: the seconds that `DataWait` reads."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(data_wait, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_time_waited_for_data_is_logged(config, clock, monkeypatch):
    """A loader that starves the GPU must show, in seconds and as a share; the pass itself is no waiting."""
    found = []
    batches = [collate([utterance(0)])] * 6

    class Slow:
        def __iter__(self):
            for batch in batches:
                clock.now += 3
                yield batch

    class Read(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            clock.now += 1
            metrics = trainer.callback_metrics
            names = ("data_wait_seconds", "data_wait_share", "micro_batch_seconds")
            found.append([float(metrics[name]) for name in names])

    monkeypatch.setattr("tests.models.fixed_update.DataLoader", lambda *_, **__: Slow())
    train(config, [None], 6, callbacks=[Read(), DataWait()], log_every_n_steps=1)
    assert len(found) == 6
    assert found[1:-1] == [pytest.approx([3, 0.75, 4])] * 4  # Lightning looks one batch ahead


def test_validations_are_no_part_of_a_micro_batch(clock):
    """Else the speed of a run depends on how often it is validated."""
    timing, logged = DataWait(), {}
    trainer, module = SimpleNamespace(log_every_n_steps=2), SimpleNamespace(log=logged.__setitem__)
    timing.on_train_start(trainer, module)
    for _ in range(2):
        timing.on_train_batch_start(trainer, module, None, 0)
        clock.now += 2
        timing.on_train_batch_end(trainer, module, None, None, 0)
        timing.on_validation_start(trainer, module)
        clock.now += 300
        timing.on_validation_end(trainer, module)
    assert logged == {"micro_batch_seconds": 1, "data_wait_seconds": 0, "data_wait_share": 0}  # one of two is over


def test_rank_watch_lives_with_two_validation_sets():
    """NeMo takes a list of manifests; Lightning then says which one a batch is of. Every batch is a sign of life: a
    validation of an hour is no hanging rank."""
    watch, signs = RankWatch(), []
    trainer = quiet_trainer(max_steps=1, callbacks=[watch])
    module = BoringModel()
    module.val_dataloader = lambda: [module.train_dataloader(), module.train_dataloader()]
    module.validation_step = lambda batch, batch_idx, dataloader_idx: signs.append(watch._latest)
    trainer.validate(module, verbose=False)
    assert len(signs) == len(set(signs)) == 2 * len(module.train_dataloader())
