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

"""What a run waits for data, in its log."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from nemo_mshubert.callbacks import data_wait
from nemo_mshubert.callbacks.data_wait import DataWait
from nemo_mshubert.data.pretraining_dataset import collate
from tests.models.fixed_update import train, utterance

pytestmark = pytest.mark.unit


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


def test_seconds_are_means_over_the_micro_batches_between_two_logs(clock):
    """Of two micro-batches that wait 3 s each and take 1 s, no wait of 6 s is logged."""
    timing, logged = DataWait(), []
    trainer, module = SimpleNamespace(log_every_n_steps=2), SimpleNamespace(log=lambda *value: logged.append(value))
    timing.on_train_start(trainer, module)
    for _ in range(6):
        clock.now += 3
        timing.on_train_batch_start(trainer, module, None, 0)
        clock.now += 1
        timing.on_train_batch_end(trainer, module, None, None, 0)
    first, *later = (dict(logged[place : place + 3]) for place in range(0, len(logged), 3))
    assert later == [{"micro_batch_seconds": 4, "data_wait_seconds": 3, "data_wait_share": 0.75}] * 2
    assert first["data_wait_seconds"] == 3  # and the first micro-batch is not over yet


def test_validations_are_no_part_of_a_micro_batch(clock):
    """Else the speed of a run depends on how often it is validated."""
    timing, logged = DataWait(), {}
    trainer, module = SimpleNamespace(log_every_n_steps=2), SimpleNamespace(log=logged.__setitem__)
    timing.on_validation_start(trainer, module)  # Lightning's sanity check
    timing.on_validation_end(trainer, module)
    timing.on_train_start(trainer, module)
    for _ in range(2):
        timing.on_train_batch_start(trainer, module, None, 0)
        clock.now += 2
        timing.on_train_batch_end(trainer, module, None, None, 0)
        timing.on_validation_start(trainer, module)
        clock.now += 300
        timing.on_validation_end(trainer, module)
    assert logged == {"micro_batch_seconds": 1, "data_wait_seconds": 0, "data_wait_share": 0}  # one of two is over
