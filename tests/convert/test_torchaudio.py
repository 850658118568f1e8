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

"""State dicts of torchaudio, spelled by hand; against torchaudio itself where it is installed."""

import pytest
import torch

from nemo_mshubert.convert.conversion import read_checkpoint
from nemo_mshubert.convert.torchaudio import from_torchaudio
from tests.convert.conftest import ENGLISH, make_encoder

MOVED = {
    "feature_projection.": "encoder.feature_projection.",
    "encoder.": "encoder.transformer.",
    "feature_extractor.": "feature_extractor.",
}


def spell_as_torchaudio(model):
    """State dict of a base model of transformers with torchaudio's names; WavLM's attention is packed."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        for theirs, torchaudios in MOVED.items():
            if name.startswith(theirs):
                state[name.replace(theirs, torchaudios, 1)] = tensor
    if model.config.model_type == "wavlm":
        for stem in [name[: -len(".q_proj.weight")] for name in state if name.endswith(".q_proj.weight")]:
            for leaf in ("weight", "bias"):
                parts = [state.pop(f"{stem}.{part}_proj.{leaf}") for part in "qkv"]
                state[f"{stem}.attention.in_proj_{leaf}"] = torch.cat(parts)
                state[f"{stem}.attention.out_proj.{leaf}"] = state.pop(f"{stem}.out_proj.{leaf}")
    return state


@pytest.mark.unit
@pytest.mark.parametrize("family", ["hubert-base", "wav2vec2-lv60k", "wavlm-base"])
def test_hidden_states_equal_transformers(peer, difference, tmp_path, family):
    """Heads are not in the file: one of 24 is assumed, so the peers have one."""
    theirs = peer(family, num_attention_heads=1)
    torch.save(spell_as_torchaudio(theirs), tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    if family == "wavlm-base":
        checkpoint.encoder["position_max_distance"] = 40  # 800 in all published models
    assert difference(checkpoint, theirs) < 1e-4
    assert any("random mask embedding" in note for note in checkpoint.notes)


@pytest.mark.unit
@pytest.mark.parametrize("rows", [32, 29])
def test_output_layer(peer, rows):
    """English letters, with or without fairseq's special rows; two rows swapped write two letters for each other."""
    state = spell_as_torchaudio(peer("hubert-base"))
    state.update({"aux.weight": torch.randn(rows, 24), "aux.bias": torch.randn(rows)})
    checkpoint = from_torchaudio(state, "model.pt")
    letters = checkpoint.ctc.letters()
    assert len(letters.labels) == 28
    assert torch.equal(letters.weight[-1], state["aux.weight"][0])
    assert torch.equal(letters.weight[letters.labels.index("z")], state["aux.weight"][-1])
    for row, token in enumerate(ENGLISH[4:], start=rows - 28):
        label = letters.labels.index(token.replace("|", " ").lower())
        assert torch.equal(letters.weight[label], state["aux.weight"][row]), token
        assert letters.bias[label] == state["aux.bias"][row], token
    assert f"for its {rows} outputs" in checkpoint.notes[-1] and "its texts are wrong" in checkpoint.notes[-1]
    # 32 rows, too, in another order: 20 of 28 letters were others
    assert from_torchaudio(state, "dir/wav2vec2_voxpopuli_base_10k_asr_en.pt").ctc.letters() is None
    assert from_torchaudio(state, "voxpopuli/model.pt").ctc.letters().labels == letters.labels  # of another origin
    state.update({"aux.weight": torch.randn(7, 24), "aux.bias": torch.randn(7)})
    assert from_torchaudio(state, "model.pt").ctc.letters() is None


@pytest.mark.unit
def test_pretraining_model(peer):
    """Mask embedding and prediction head are kept; Lightning's wrapper is looked into."""
    state = {f"model.wav2vec2.{name}": tensor for name, tensor in spell_as_torchaudio(peer("hubert-base")).items()}
    state["model.mask_generator.mask_embedding"] = torch.rand(24)
    state["model.logit_generator.label_embeddings"] = torch.rand(10, 8)
    state["model.logit_generator.final_proj.weight"] = torch.rand(8, 24)
    state["model.logit_generator.final_proj.bias"] = torch.rand(8)
    checkpoint = from_torchaudio({"state_dict": state}, "model.ckpt")
    assert torch.equal(checkpoint.weights["mask_embedding"], state["model.mask_generator.mask_embedding"])
    assert checkpoint.prediction_heads[0].embeddings.shape == (10, 8)
    (head,) = checkpoint.prediction_heads
    for ours, name in ((head.weight, "final_proj.weight"), (head.bias, "final_proj.bias")):
        assert torch.equal(ours, state[f"model.logit_generator.{name}"]), name
    assert torch.equal(head.embeddings, state["model.logit_generator.label_embeddings"])


@pytest.mark.unit
@pytest.mark.parametrize("pre_norm", [False, True])
def test_hidden_states_equal_torchaudio(pre_norm):
    """Its own class, where there is one."""
    models = pytest.importorskip("torchaudio", exc_type=(ImportError, OSError)).models
    torch.manual_seed(2)
    theirs = models.wav2vec2_model(
        extractor_mode="layer_norm" if pre_norm else "group_norm",
        extractor_conv_layer_config=[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2,
        extractor_conv_bias=pre_norm,
        encoder_embed_dim=64,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=4,
        encoder_num_layers=2,
        encoder_num_heads=1,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=32,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=pre_norm,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()
    encoder = make_encoder(from_torchaudio(theirs.state_dict(), "model.pt"))
    signal = torch.randn(1, 4000)
    with torch.no_grad():
        states, _ = encoder.hidden_states(signal[:, None], torch.tensor([4000]))
        expected, _ = theirs.extract_features(signal)
    if pre_norm:
        states, expected = states[:-1], expected[:-1]  # torchaudio's are without the last norm
    for ours, other in zip(states[1:], expected):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
