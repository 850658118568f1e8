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

"""Updates of fine-tuning as means over utterances, over two gloo ranks too."""

from types import SimpleNamespace

import pytest
import torch
from nemo.collections.asr.models import ASRModel
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks.sentence_average import GradientOfSum, SentenceAverage
from nemo_mshubert.modules import transformer
from tests.conftest import quiet_trainer
from tests.parallel.ranks_of_a_test import run_on_ranks

LENGTHS = (16000, 9000, 12000, 7000)


def batch_of(*numbers):
    """Utterances ``numbers`` of noise with random letters, as NeMo's datasets give them."""
    signal = torch.zeros(len(numbers), max(LENGTHS[number] for number in numbers))
    letters = torch.zeros(len(numbers), 4, dtype=torch.long)
    for row, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(number)
        signal[row, : LENGTHS[number]] = 0.1 * torch.randn(LENGTHS[number], generator=generator)
        letters[row] = torch.randint(1, 27, (4,), generator=generator)
    length = torch.tensor([LENGTHS[number] for number in numbers])
    return signal, length, letters, torch.full((len(numbers),), 4)


def weights_after(path, batches, accumulate, devices=1):
    """Of a step of SGD on the micro-batches ``batches`` (of each rank), and the loss that NeMo logged last."""
    model = ASRModel.restore_from(str(path), map_location="cpu")
    trainer = quiet_trainer(
        max_steps=1,
        max_epochs=1,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        accumulate_grad_batches=accumulate,
        callbacks=[SentenceAverage()],
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    model.set_trainer(trainer)
    model.setup_optimization({"name": "sgd", "lr": 0.1})
    model._train_dl = DataLoader(batches[trainer.global_rank], batch_size=None)
    trainer.fit(model.train())
    assert type(model.loss).__name__ == "CTCLoss"  # NeMo's own again
    return model.state_dict(), trainer.callback_metrics["train_loss"].item()


@pytest.fixture(autouse=True)
def without_fourier_transforms(monkeypatch):
    """Their rounding, which the number of rows decides, would be all that differs here."""
    monkeypatch.setattr(transformer, "_takes_fourier_transforms", lambda x: False)


@pytest.fixture
def expected(letters_path):
    return weights_after(letters_path, [[batch_of(0, 1, 2, 3)]], 1)


@pytest.mark.integration
@pytest.mark.parametrize("split", [[(0, 1, 2), (3,)], [(0,), (1,), (2, 3)]])
@pytest.mark.parametrize("accumulate", [3, 8])
def test_an_utterance_weighs_the_same_in_any_micro_batch(letters_path, expected, split, accumulate):
    """Batches of short utterances hold many: they would weigh a fifth of long ones. The last update of an epoch has
    fewer micro-batches than the others, and would be smaller."""
    found, loss = weights_after(letters_path, [[batch_of(*numbers) for numbers in split]], accumulate)
    for name, value in expected[0].items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    alone = weights_after(letters_path, [[batch_of(*split[-1])]], 1)
    assert loss == pytest.approx(alone[1], rel=1e-4)  # the log has NeMo's mean of the micro-batch


@pytest.mark.integration
def test_ranks_share_an_update(letters_path, expected):
    """Two GPUs with other numbers of utterances."""

    def rank():
        batches = [[batch_of(0, 1, 2)], [batch_of(3)]]
        found, _ = weights_after(letters_path, batches, 1, devices=2)
        return {name: value.clone() for name, value in found.items()}

    for found in run_on_ranks(2, rank):
        for name, value in expected[0].items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.unit
def test_the_logged_loss_is_the_mean():
    """Of 0, or of a sum that grows with the batch, nobody could say whether a run learns."""
    scores_B = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    mean_loss = lambda scores_B, target_lengths: scores_B.square().mean()
    loss = GradientOfSum(mean_loss)(scores_B=scores_B, target_lengths=torch.ones(3))
    loss.backward()
    assert loss.item() == pytest.approx(41 / 3)
    torch.testing.assert_close(scores_B.grad, 2 * scores_B.detach())


@pytest.mark.unit
def test_every_update_counts_its_own_utterances():
    """Counted since the start of the run, they would make its updates ever smaller."""
    average, module = SentenceAverage(), torch.nn.Linear(1, 1)
    module.device = torch.device("cpu")
    trainer = SimpleNamespace(accumulate_grad_batches=2, world_size=1)
    for micro_batches in ((3, 1), (5,), (2, 8)):
        for number, utterances in enumerate(micro_batches):
            average.on_train_batch_start(trainer, module, (None, torch.ones(utterances)), number)
        module.weight.grad = torch.ones(1, 1)
        average.on_before_optimizer_step(trainer, module, None)
        assert module.weight.grad.item() == pytest.approx(2 / sum(micro_batches))
