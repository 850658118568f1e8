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

"""NonfiniteGuard: an update with NaN leaves no trace in a stock model, and many in a row end the run."""

from types import SimpleNamespace

import pytest
import torch
from nemo.utils import logging
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks.nonfinite_guard import NonfiniteGuard
from nemo_mshubert.callbacks.step_guard import NonFiniteTrainingError
from tests.conftest import quiet_trainer

pytestmark = pytest.mark.unit


@pytest.fixture
def train(tiny_ctc):
    """``train("gnb", guard)``: weights after updates of two micro-batches each: good, NaN, or good but other audio."""

    def run(kinds, *callbacks):
        generator = torch.Generator().manual_seed(3)
        good, other = 0.1 * torch.randn(2, 4, 8000, generator=generator)
        length, tokens = torch.full((4,), 8000), torch.randint(1, 27, (4, 5), generator=generator)
        audio = {"g": good, "b": other, "n": torch.where(torch.arange(8000) == 7000, torch.nan, good)}
        batches = [(audio[kind], length, tokens, torch.full((4,), 5)) for kind in kinds]
        trainer = quiet_trainer(
            max_steps=len(kinds) // 2, accumulate_grad_batches=2, gradient_clip_val=1.0, callbacks=list(callbacks)
        )
        model = tiny_ctc().train()
        model.set_trainer(trainer)
        model.setup_optimization({"name": "adam", "lr": 1e-3})
        model._train_dl = DataLoader(batches, batch_size=None)
        trainer.fit(model)
        return {name: value.clone() for name, value in model.named_parameters()}

    return run


def test_a_bad_update_leaves_no_trace(train, monkeypatch):
    """Weights and the optimizer's moments are those of a run without it, whichever of its micro-batches was bad."""
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *_, **__: warnings.append(str(message)))
    guard = NonfiniteGuard(max_consecutive=2)
    guarded = train("gg" + "ng" + "bb" + "bn" + "gb", guard)
    expected = train("gg" + "bb" + "gb")
    assert all(torch.equal(guarded[name], value) for name, value in expected.items())
    assert guard.guard.num_skipped == 2
    skipped = [warning for warning in warnings if "skipped" in warning]
    assert len(skipped) == 2 and "Update 1 skipped" in skipped[0] and "utterances: batch 2." in skipped[0]


def test_without_it_the_model_is_lost(train):
    """What the guard is for."""
    assert any(not value.isfinite().all() for value in train("ggngbb").values())


def test_too_many_in_a_row_end_the_run(train):
    """A broken data set must not look like training for days."""
    with pytest.raises(NonFiniteTrainingError, match="3 updates in a row were not finite"):
        train("gg" + "nn" * 3 + "gg", NonfiniteGuard(max_consecutive=3))


@pytest.mark.parametrize("overflown", [0, 1, 2])
def test_an_overflow_in_one_layer_is_enough(overflown):
    """NaN in the audio spoils all gradients, but in half precision that of a single bias may overflow."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
    parameters = list(module.parameters())
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, torch.inf if number == overflown else 1.0)
    guard = NonfiniteGuard(max_consecutive=2)
    guard.on_before_optimizer_step(SimpleNamespace(global_step=5), module, torch.optim.SGD(parameters, lr=1.0))
    assert guard.guard.num_skipped == 1 and all(parameter.grad is None for parameter in parameters)
