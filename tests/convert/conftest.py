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

"""Randomly initialised peers of transformers, small, and the comparison of their hidden states with ours."""

import json

import pytest
import torch
import transformers

SMALL = dict(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=40,
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    mask_time_prob=0.05,
)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True)
DATA2VEC = dict(num_conv_pos_embeddings=3, conv_pos_kernel_size=5)

# The vocabulary of facebook/hubert-large-ls960-ft and its like
ENGLISH = ["<pad>", "<s>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"]

# name: class prefix, config of a small model, feature extractor normalises
FAMILIES = {
    "hubert-base": ("Hubert", {}, False),
    "hubert-large": ("Hubert", LARGE, True),
    "wav2vec2-base": ("Wav2Vec2", {}, True),
    "wav2vec2-large-ls960": ("Wav2Vec2", dict(num_hidden_layers=4), False),  # large, but base in kind
    "wav2vec2-lv60k": ("Wav2Vec2", dict(LARGE, conv_bias=True), True),
    "wavlm-base": ("WavLM", dict(num_buckets=32, max_bucket_distance=40), False),
    "wavlm-large": ("WavLM", dict(LARGE, num_buckets=32, max_bucket_distance=40), True),
    "data2vec-audio": ("Data2VecAudio", DATA2VEC, True),
    "data2vec-audio-even": ("Data2VecAudio", dict(DATA2VEC, conv_pos_kernel_size=6), True),
}


def make_peer(family, kind="Model", seed=0, **changes):
    """A model of transformers in eval mode; norms and biases are randomised too, or no mix-up of them would show."""
    prefix, config, _ = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{prefix}Config")(**{**SMALL, **config, **changes})
    model = getattr(transformers, f"{prefix}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def peer():
    """``peer("hubert-base", "ForCTC", vocab_size=32)``."""
    return make_peer


@pytest.fixture
def save_peer(tmp_path):
    """``save_peer(model, family, vocabulary)`` -> a folder as the hub has them."""

    def save(model, family, vocabulary=None, name="peer"):
        folder = tmp_path / name
        model.save_pretrained(folder)
        normalize = FAMILIES[family][2]
        transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
        if vocabulary:
            (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(vocabulary)}))
            transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def folder(save_peer):
    """A folder of HuBERT base, small."""
    return save_peer(make_peer("hubert-base"), "hubert-base")


@pytest.fixture
def audio():
    """Three utterances, ``[3, 12000]`` zero-padded, and their lengths."""
    torch.manual_seed(8)
    length = torch.tensor([12000, 6500, 700])
    return torch.randn(3, 12000) * (torch.arange(12000) < length[:, None]), length


@pytest.fixture
def difference(audio):
    """``difference(checkpoint, theirs)``: the largest over all hidden states and utterances.

    Ours is a padded batch, theirs are the utterances one by one; ``theirs`` is a base model of transformers.
    """

    def measure(checkpoint, theirs):
        ours = make_encoder(checkpoint)
        signal, length = audio
        worst = 0.0
        with torch.no_grad():
            states, frames = ours.hidden_states(signal[:, None], length)
            for row, (samples, count) in enumerate(zip(length, frames)):
                expected = theirs(signal[row : row + 1, :samples], output_hidden_states=True)
                assert expected.last_hidden_state.shape[1] == count
                assert len(states) == len(expected.hidden_states)
                # The last state of pre-LN is compared after the final norm, which their list may lack.
                for ours_BTD, theirs_1TD in zip(states, [*expected.hidden_states[:-1], expected.last_hidden_state]):
                    worst = max(worst, (ours_BTD[row, :count] - theirs_1TD[0]).abs().max().item())
        return worst

    return measure


def make_encoder(checkpoint):
    """Our encoder with the weights of a checkpoint."""
    from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder

    encoder = MSHuBERTEncoder(**checkpoint.encoder).eval()
    encoder.load_state_dict(checkpoint.weights)
    return encoder


def assert_same_weights(first, second):
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# --- fairseq's layout, spelled by hand: an independent check of our table --------------------------------------------

FAIRSEQ_SPELLING = (
    ("masked_spec_embed", "mask_emb"),
    ("feature_projection.projection", "post_extract_proj"),
    ("feature_projection.layer_norm", "layer_norm"),
    ("pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g"),
    ("pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v"),
    ("pos_conv_embed.conv.bias", "pos_conv.0.bias"),
    ("pos_conv_embed.layers.0.conv", "pos_conv.0.0"),
    ("pos_conv_embed.layers.1.conv", "pos_conv.1.0"),
    ("pos_conv_embed.layers.2.conv", "pos_conv.2.0"),
    (".attention.rel_attn_embed.", ".self_attn.relative_attention_bias."),
    (".attention.gru_rel_pos_linear.", ".self_attn.grep_linear."),
    (".attention.gru_rel_pos_const", ".self_attn.grep_a"),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
    (".conv.", ".0."),
)


def spell_as_fairseq(model):
    """State dict of a base model of transformers with fairseq's names."""
    group_norm = getattr(model.config, "feat_extract_norm", "layer") == "group"
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder.layers.") and ".layer_norm." in name and "final" not in name:
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        if name.startswith("feature_extractor"):
            name = name.replace(".layer_norm.", ".2." if group_norm else ".2.1.")
        for theirs, fairseqs in FAIRSEQ_SPELLING:
            if theirs in name:
                name = name.replace(theirs, fairseqs)
                if not theirs.startswith(".attention"):
                    break
        state[name] = tensor
    return state


def fairseq_options(model):
    """The part of fairseq's config that describes the model."""
    config = model.config
    stacked = config.model_type == "data2vec-audio"
    return {
        "_name": config.model_type,
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "layer_norm_first": getattr(config, "do_stable_layer_norm", False),
        "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] + [(16,2,2)]",
        "extractor_mode": "default" if getattr(config, "feat_extract_norm", "layer") == "group" else "layer_norm",
        "conv_bias": config.conv_bias,
        "conv_pos": config.conv_pos_kernel_size * 3 if stacked else config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "pos_conv_depth": 3 if stacked else 1,
        "relative_position_embedding": config.model_type == "wavlm",
        "num_buckets": getattr(config, "num_buckets", 320),
        "max_distance": getattr(config, "max_bucket_distance", 800),
    }
