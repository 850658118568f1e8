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

"""NeMo's adapters on a CTC model around our encoder, through the calls of NeMo's own scripts."""

import pytest
import torch
from nemo.collections.asr.models import ASRModel
from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig
from omegaconf import OmegaConf

from nemo_mshubert.models.loading import restore_model, save_model

pytestmark = pytest.mark.unit


def adapter(dim=8):
    return OmegaConf.structured(LinearAdapterConfig(in_features=24, dim=dim))


def hidden(model, seed=3):
    """Encoded frames ``[2, D, T]`` of two utterances of noise, the second one shorter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.encoder(audio_signal=torch.randn(2, 1, 8000), length=torch.tensor([8000, 5000]))[0]


def randomise(model):
    """A new adapter adds nothing: its last layer is zero."""
    for name, parameter in model.named_parameters():
        if ".adapter_layer." in name:
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.fixture
def model(letters_path):
    return ASRModel.restore_from(str(letters_path), map_location="cpu").eval()


def test_a_new_adapter_changes_nothing_and_a_trained_one_can_be_switched(model):
    """Disabled, the model is bit by bit the one without adapters."""
    before, names = hidden(model), set(model.state_dict())
    model.add_adapter("encoder:german", adapter())
    assert model.is_adapter_available() and model.get_enabled_adapters() == ["german"]
    torch.testing.assert_close(hidden(model), before)
    added = set(model.state_dict()) - names
    assert {name.split(".")[2] for name in added} == {"0", "1", "2", "3"}  # every block
    assert all(name.startswith("encoder.layers.") for name in added)
    randomise(model)
    assert (hidden(model) - before).abs().max() > 0.1
    model.add_adapter("encoder:noise", adapter(4))
    model.set_enabled_adapters("encoder:german", enabled=False)
    assert model.get_enabled_adapters() == ["noise"]
    torch.testing.assert_close(hidden(model), before)
    model.set_enabled_adapters(enabled=False)
    assert torch.equal(hidden(model), before)
    assert model.encoder.adapter_names() == ["german", "noise"]  # they are there, for whoever converts the model
    model.add_adapter("encoder:wide", OmegaConf.structured(LinearAdapterConfig(in_features=99, dim=4)))
    torch.testing.assert_close(hidden(model), before)  # it was made to fit
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("encoder:german", adapter())


def test_only_adapters_learn(model):
    """freeze, unfreeze_enabled_adapters, a step: as train_asr_adapter.py does."""
    model.add_adapter("encoder:german", adapter())
    model.freeze()
    model.train()
    model.unfreeze_enabled_adapters()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".adapter_layer.german." in name for name in trained)
    log_probs, frames, _ = model(input_signal=torch.randn(2, 8000), input_signal_length=torch.tensor([8000, 8000]))
    loss = model.loss(
        log_probs=log_probs,
        targets=torch.tensor([[1, 2], [3, 4]]),
        input_lengths=frames,
        target_lengths=torch.tensor([2, 2]),
    )
    loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == trained
    last_layers = [p.grad for n, p in model.named_parameters() if n in trained and p.grad.abs().sum() > 0]
    assert len(last_layers) >= 4


def test_adapters_survive_their_files(model, letters_path, tmp_path, monkeypatch):
    """The whole ``.nemo``; and the adapters alone, loaded into the model they were trained on."""
    model.add_adapter("encoder:german", adapter())
    randomise(model)
    save_model(model, tmp_path / "adapted.nemo")
    again = restore_model(tmp_path / "adapted.nemo").eval()
    assert again.get_enabled_adapters() == ["german"]
    assert torch.equal(hidden(again), hidden(model))
    model.save_adapters(str(tmp_path / "german.pt"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # NeMo's own advice for its file
    fresh = ASRModel.restore_from(str(letters_path), map_location="cpu").eval()
    fresh.load_adapters(str(tmp_path / "german.pt"), map_location="cpu")
    assert torch.equal(hidden(fresh), hidden(model))


def test_another_kind_of_adapter_is_refused(model):
    kind = (
        "nemo.collections.asr.parts.submodules.adapters.multi_head_attention_adapter_module.MultiHeadAttentionAdapter"
    )
    with pytest.raises(ValueError, match="not in the list of accepted adapter types"):
        model.add_adapter("encoder:attention", OmegaConf.create({"_target_": kind, "n_head": 2, "n_feat": 24}))
