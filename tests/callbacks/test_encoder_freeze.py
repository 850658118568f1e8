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

"""EncoderFreeze: only the output layer learns for N updates, then all but the convolutions, also over a resume."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from nemo_mshubert.callbacks.encoder_freeze import EncoderFreeze
from tests.conftest import quiet_trainer

pytestmark = pytest.mark.unit
FROZEN_UPDATES = 3
ACCUMULATE = 2


class Recorder(pl.Callback):
    """Weights after every update; kinds of gradients of the encoder at every micro-batch."""

    def __init__(self):
        self.weights = {}
        self.gradients = {}

    def on_train_start(self, trainer, model):
        self.note(trainer, model)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.note(trainer, model)

    def note(self, trainer, model):
        self.weights[trainer.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_after_backward(self, trainer, model):
        kinds = self.gradients.setdefault(trainer.global_step, {})
        for name, parameter in model.encoder.named_parameters():
            if parameter.grad is None:
                kinds[name] = "missing"
            else:
                kinds[name] = "some" if parameter.grad.any() else "zero"

    def changed(self, update):
        """Names of the parameters that the given update (from 1) changed."""
        before, after = self.weights[update - 1], self.weights[update]
        return {name for name in after if not torch.equal(before[name], after[name])}


def batches():
    """Endless supply of the same four utterances: ``(audio, length, letters, length)`` as NeMo's loaders give it."""
    generator = torch.Generator().manual_seed(3)
    audio = 0.1 * torch.randn(4, 8000, generator=generator)
    letters = torch.randint(1, 27, (4, 5), generator=generator)
    batch = audio, torch.full((4,), 8000), letters, torch.full((4,), 5)
    return DataLoader([batch] * 100, batch_size=None)


def train(model, max_updates, num_updates=FROZEN_UPDATES, resume_from=None, save_to=None, weight_decay=0.0):
    recorder = Recorder()
    trainer = quiet_trainer(
        max_steps=max_updates, accumulate_grad_batches=ACCUMULATE, callbacks=[EncoderFreeze(num_updates), recorder]
    )
    model.set_trainer(trainer)
    model.setup_optimization({"name": "adam", "lr": 1e-3, "weight_decay": weight_decay})
    model._train_dl = batches()
    trainer.fit(model, ckpt_path=resume_from)
    if save_to:
        trainer.save_checkpoint(save_to)
    return recorder


@pytest.fixture
def model(tiny_ctc):
    """With the masks and the fixed front end of conf/finetune."""
    options = dict(feature_grad_mult=0.0, mask_prob=0.5, mask_length=4, mask_channel_prob=0.2, layerdrop=0.3)
    return lambda: tiny_ctc(**options).train()  # Lightning leaves the mode as it is


def trainable(model):
    """Encoder parameters that fine-tuning is to change: all but those of the convolutional front end."""
    names = {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
    return {name for name in names if not name.startswith("encoder.feature_extractor.")}


@pytest.mark.parametrize("weight_decay", [0.0, 1e-3])
def test_encoder_is_kept_for_n_updates_and_the_front_end_for_good(model, weight_decay):
    """A random output layer would wreck the pre-trained encoder; counted in updates, not in micro-batches. Adam scales
    the gradient of weight decay, where there is no other, to whole steps."""
    model = model()
    recorder = train(model, FROZEN_UPDATES + 3, weight_decay=weight_decay)
    decoder = {f"decoder.{name}" for name, _ in model.decoder.named_parameters()}
    for update in range(1, FROZEN_UPDATES + 1):
        assert recorder.changed(update) == decoder
    for update in range(FROZEN_UPDATES + 2, FROZEN_UPDATES + 4):  # moments are not zero any more
        changed = recorder.changed(update)
        assert decoder <= changed and not any("feature_extractor" in name for name in changed)
    assert recorder.changed(FROZEN_UPDATES + 1) & trainable(model)
    first, last = recorder.weights[FROZEN_UPDATES], recorder.weights[FROZEN_UPDATES + 3]
    assert {name for name in trainable(model) if not torch.equal(first[name], last[name])} == trainable(model)


def test_gradients_are_zero_not_missing_while_frozen(model):
    """DDP waits for every trainable parameter on every rank: a missing gradient ends a run on several GPUs."""
    model = model()
    recorder = train(model, FROZEN_UPDATES + 1)
    names = {name.removeprefix("encoder.") for name in trainable(model)}
    for update, kinds in recorder.gradients.items():
        assert {name for name, kind in kinds.items() if kind == "missing"} == set(kinds) - names
        if update < FROZEN_UPDATES:
            assert {kinds[name] for name in names} == {"zero"}
    trained = recorder.gradients[FROZEN_UPDATES]
    assert "some" in {trained[name] for name in names}


@pytest.mark.parametrize("stopped_at", [FROZEN_UPDATES - 1, FROZEN_UPDATES + 2])
def test_resumed_run_knows_where_it_was(model, tmp_path, stopped_at):
    """A job that starts again beyond N must not freeze the encoder again, one before N must not thaw it too early."""
    train(model(), stopped_at, save_to=tmp_path / "stopped.ckpt")
    resumed = model()
    recorder = train(resumed, FROZEN_UPDATES + 3, resume_from=tmp_path / "stopped.ckpt")
    assert min(recorder.weights) == stopped_at
    for update in range(stopped_at + 1, FROZEN_UPDATES + 4):
        assert bool(recorder.changed(update) & trainable(resumed)) == (update > FROZEN_UPDATES)


def test_zero_updates_freeze_nothing(model):
    """100 h and 960 h train everything from the first update."""
    model = model()
    assert train(model, 1, num_updates=0).changed(1) & trainable(model)


def test_dropout_and_masks_stay_on_while_frozen(model):
    """As in fairseq: the output layer must not get used to unmasked frames; the outputs are those of training."""
    encoder = model().encoder.train()
    signal, length = torch.randn(2, 1, 8000), torch.tensor([8000, 6000])
    outputs = []
    for frozen in (False, True):
        encoder.frozen = frozen
        torch.manual_seed(5)
        outputs.append(encoder(audio_signal=signal, length=length)[0].detach())
    assert torch.equal(*outputs)
    encoder.eval()
    assert not torch.allclose(outputs[0], encoder(audio_signal=signal, length=length)[0])
