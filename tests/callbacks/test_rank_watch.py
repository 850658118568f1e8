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

"""A rank that hangs ends the run, by name."""

import signal
import time
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from nemo_mshubert.callbacks import rank_watch
from nemo_mshubert.callbacks.rank_watch import RankWatch, furthest_behind
from tests.callbacks.short_runs import At, train_updates
from tests.conftest import quiet_trainer
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


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


def told_of(patience, batches_of_rank):
    """What rank 0 is told within ``patience`` seconds, and when, while each rank begins that many batches, one every
    quarter of a second."""
    torch.distributed.init_process_group("gloo")
    watch, told, begin = RankWatch(2.0), [], time.monotonic()
    watch._end = lambda _, ranks, where: told.append((ranks, where, time.monotonic() - begin))
    watch.on_train_start(SimpleNamespace(world_size=2), None)
    for _ in range(batches_of_rank[torch.distributed.get_rank()]):
        watch.on_train_batch_start(None, None, None, 0)
        time.sleep(0.25)
    while not told and time.monotonic() - begin < patience:
        time.sleep(0.05)
    first = told[0] if told else None
    torch.distributed.barrier()  # else the rank that ends first would leave the other to be told of
    watch.on_train_end(None, None)
    torch.distributed.barrier()
    return first


def test_a_first_batch_that_never_comes_ends_the_run():
    """The usual place: a file system that a node cannot reach. The run ends behind the timeout, not before."""
    ranks, where, seconds = run_on_ranks(2, told_of, 8, (0, 0))[0]
    assert (ranks, where) == ([0, 1], "loading data, batch 0") and seconds > 2.0


def test_a_rank_that_has_more_to_do_may_do_it():
    """The other one waits for it longer than a rank may hang, as behind a validation of files that are shorter."""
    assert run_on_ranks(2, told_of, 4, (1, 12)) == [None, None]


def test_end_of_a_hung_run_is_an_error(monkeypatch):
    """The launcher must see a code other than 0, and the user the rank, the phase and what to do."""
    messages, codes = [], []
    monkeypatch.setattr(rank_watch.logging, "error", messages.append)
    monkeypatch.setattr(rank_watch.os, "_exit", codes.append)
    trainer = quiet_trainer()
    RankWatch(timeout_seconds=90)._end(trainer, [3], "forward pass, batch 7")
    assert codes == [70] and "rank 3 of 1 hangs in: forward pass, batch 7" in messages[0]
    assert messages[0].startswith("No progress for 90 s: ") and "resumes it from the last checkpoint" in messages[0]


def test_the_end_is_told_on_other_ranks_too(monkeypatch, capfd):
    """Rank 1 alone can tell that rank 0 was stopped, and NeMo's logger is silent on it."""
    monkeypatch.setattr(rank_watch.os, "_exit", lambda code: None)
    monkeypatch.setattr(rank_watch.logging, "error", lambda message: None)
    for rank, times in ((1, 1), (0, 0)):  # on rank 0 the log has said it
        trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=SimpleNamespace(launcher=None))
        RankWatch()._end(trainer, [0], "update, batch 7")
        assert capfd.readouterr().err.count("rank 0 of 2 hangs in: update, batch 7") == times


def test_marks_say_the_phase():
    """One that hangs in its file system would be looked for in its GPU."""
    watch, trainer, module = RankWatch(), SimpleNamespace(world_size=2), None
    hooks = {
        "forward pass, batch 1": lambda: watch.on_train_batch_start(trainer, module, None, 0),
        "backward pass, batch 1": lambda: watch.on_before_backward(trainer, module, None),
        "update, batch 1": lambda: watch.on_before_optimizer_step(trainer, module, None),
        "loading data, batch 1": lambda: watch.on_train_batch_end(trainer, module, None, None, 0),
        "validation, or loading data behind it, batch 1": lambda: watch.on_validation_batch_end(*[None] * 5),
        "forward pass, batch 2": lambda: watch.on_train_batch_start(trainer, module, None, 0),  # of the next epoch
    }
    for expected, hook in hooks.items():
        hook()
        assert furthest_behind({1: rank_watch._parse(watch._latest)}) == ([1], expected)


def test_batches_are_compared_as_numbers():
    """As texts, batch 10 would be behind batch 9, and the rank that waits would be named."""
    watch, marks = RankWatch(), {}
    for batch in range(1, 11):
        watch.on_train_batch_start(None, None, None, 0)
        marks[batch] = rank_watch._parse(watch._latest)
    assert furthest_behind({0: marks[10], 1: marks[9]}) == ([1], "forward pass, batch 9")


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
    trainer = SimpleNamespace(world_size=2, global_rank=0, strategy=SimpleNamespace(launcher=launcher))
    RankWatch()._end(trainer, [1], "update, batch 7")
    assert ended == [f"kill {int(signal.SIGKILL)}", "exit 70"]


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
