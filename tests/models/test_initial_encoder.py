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

"""``init_encoder=``: all tensors of the encoder are those of the checkpoint, or the run does not begin."""

import re
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_mshubert.data.pretraining_dataset import collate
from nemo_mshubert.models import MSHuBERTModel, initial_encoder
from nemo_mshubert.models.initial_encoder import init_encoder, maybe_init_encoder
from nemo_mshubert.models.loading import load_encoder, restore_model, save_model
from nemo_mshubert.models.training_setup import plan_updates
from nemo_mshubert.parallel.registration import register
from tests.convert.conftest import (  # save_peer: a fixture
    FAMILIES,
    assert_same_weights,
    fairseq_options,
    make_peer,
    save_peer,
    spell_as_fairseq,
)
from tests.convert.test_multiresolution import make as make_multiresolution
from tests.models.fixed_update import trainer_of, utterance
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit

# Sizes of the peers of tests/convert beside those of the tiny config, whose kind is that of HuBERT large
PEER_SIZES = {"num_layers": 3, "d_inner": 40}
BASE = {"conv_norm": "group_norm", "pre_norm": "false"}


def settings_of(**encoder):
    return [f"++model.encoder.{option}={value}" for option, value in encoder.items()]


@pytest.fixture
def other_model(make_model):
    """``other_model(...)``: a model of the tiny config with changes, from other random numbers than `ssl_path`."""
    return lambda *overrides: make_model("model.seed=3", *overrides)


@pytest.fixture
def log(monkeypatch):
    """Lines that were logged."""
    lines = []
    monkeypatch.setattr(initial_encoder, "logging", SimpleNamespace(info=lines.append))
    return lines


@pytest.fixture
def as_fairseq(tmp_path):
    """``as_fairseq(peer, family)``: a file of fairseq."""

    def save(theirs, family):
        options = {"model": fairseq_options(theirs), "task": {"normalize": FAMILIES[family][2]}}
        torch.save({"cfg": options, "model": spell_as_fairseq(theirs)}, tmp_path / "hubert.pt")
        return tmp_path / "hubert.pt"

    return save


# --- Weights arrive --------------------------------------------------------------------------------------------------


def test_from_a_nemo(other_model, ssl_path, letters_path, log, tmp_path):
    """Pre-trained or fine-tuned: the same encoder, and heads as they were. The model saves its own label maker."""
    expected = load_encoder(ssl_path).state_dict()
    for path in (ssl_path, letters_path):
        model = other_model()
        heads = {name: weight.clone() for name, weight in model.label_heads.state_dict().items()}
        assert not torch.equal(model.encoder.mask_embedding, expected["mask_embedding"])
        init_encoder(model, str(path))
        assert_same_weights(model.encoder.state_dict(), expected)
        assert_same_weights(model.label_heads.state_dict(), heads)
        all_of_them = f"{len(expected)} of the encoder's {len(expected)} tensors are from there"
        assert log[-1] == f"init_encoder={path}: {all_of_them}; label heads start at random."
    save_model(model, tmp_path / "begun.nemo")
    restored = restore_model(tmp_path / "begun.nemo")
    assert restored.label_maker.id == model.label_maker.id
    assert_same_weights(restored.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "family, layout, encoder",
    [
        ("hubert-base", "folder", BASE),
        ("hubert-base", "fairseq", BASE),
        ("hubert-large", "fairseq", {}),
        ("wavlm-large", "folder", {"position_buckets": 32, "position_max_distance": 40}),
        ("data2vec-audio", "folder", {"pos_conv_depth": 3, "pos_conv_kernel": 5, "pre_norm": "false"}),
    ],
)
def test_from_other_ecosystems(other_model, save_peer, as_fairseq, family, layout, encoder):
    """Hidden states are those of transformers, through the model's own preprocessor."""
    theirs = make_peer(family)
    path = save_peer(theirs, family) if layout == "folder" else as_fairseq(theirs, family)
    normalize = f"model.preprocessor.normalize={'per_feature' if FAMILIES[family][2] else 'null'}"
    model = other_model(*settings_of(**PEER_SIZES, **encoder), normalize)
    init_encoder(model, path)
    assert_same_weights(model.encoder.state_dict(), load_encoder(path).state_dict())
    signal, length = torch.randn(1, 6500), torch.tensor([6500])
    with torch.no_grad():
        states, _ = model.encoder.hidden_states(*model.preprocessor(input_signal=signal, length=length))
        if FAMILIES[family][2]:
            signal = torch.nn.functional.layer_norm(signal, signal.shape[1:])
        expected = theirs(signal).last_hidden_state
    torch.testing.assert_close(states[-1], expected, rtol=1e-4, atol=1e-4)


def test_a_mask_embedding_that_the_checkpoint_lacks(other_model, save_peer, log):
    """Models that were trained without masks have none: it stays the one that the seed of the run drew."""
    path = save_peer(make_peer("hubert-large", mask_time_prob=0.0), "hubert-large")
    model = other_model(*settings_of(**PEER_SIZES))
    drawn = model.encoder.mask_embedding.clone()
    init_encoder(model, path)
    expected = load_encoder(path).state_dict()
    count = len(expected)
    assert torch.equal(model.encoder.mask_embedding, drawn) and not torch.equal(drawn, expected["mask_embedding"])
    assert_same_weights(model.encoder.state_dict(), {**expected, "mask_embedding": drawn})
    assert (
        f"{count - 1} of the encoder's {count} tensors are from there, mask_embedding (which it lacks) keeps"
        in log[-1]
    )


# --- Or the run does not begin ---------------------------------------------------------------------------------------


def refusal(model, path):
    """The message, of a model that is left as it was."""
    before = {name: weight.clone() for name, weight in model.encoder.state_dict().items()}
    with pytest.raises(ValueError, match="init_encoder=") as error:
        init_encoder(model, path)
    assert_same_weights(model.encoder.state_dict(), before)
    return str(error.value)


def overrides_in(message):
    return re.search(r"Set (.*), or give", message).group(1).split()


@pytest.mark.parametrize("family", ["hubert-base", "wav2vec2-lv60k", "wavlm-base", "data2vec-audio-even"])
def test_the_settings_that_differ_are_named_and_are_enough(other_model, save_peer, family):
    """With what the message says on the command line, the next run begins."""
    path = save_peer(make_peer(family, num_attention_heads=3), family)
    message = refusal(other_model(), path)
    assert (
        "missing tensors " in message
        and "layers.0.feed_forward.intermediate_dense.weight is [40, 24], expected [48" in message
    )
    settings = overrides_in(message)
    assert {"model.encoder.num_layers=3", "model.encoder.d_inner=40", "model.encoder.num_heads=3"} <= set(settings)
    model = other_model(*settings)
    init_encoder(model, path)
    assert_same_weights(model.encoder.state_dict(), load_encoder(path).state_dict())


@pytest.mark.parametrize(
    "settings, change, message",
    [
        ({"num_heads": 3}, "model.encoder.num_heads=2", "all tensors fit, but would compute something else"),
        ({"pre_norm": "false"}, "model.encoder.pre_norm=true", "all tensors fit, but would compute something else"),
        (
            {"conv_bias": "true"},
            "model.encoder.conv_bias=false",
            "missing tensors feature_extractor.conv_layers.0.conv.bias, ",
        ),
        (
            {"conv_norm": "group_norm"},
            "model.encoder.conv_norm=layer_norm",
            "surplus tensors feature_extractor.conv_layers.1.",
        ),
        (
            {"pos_conv_kernel": 8},
            "model.encoder.pos_conv_kernel=16",
            "pos_conv_embed.conv.parametrizations.weight.orig",
        ),
        (
            {"position_buckets": 32},
            "model.encoder.position_buckets=0",
            "missing tensors position_bias.embedding.weight, ",
        ),
        ({"pos_conv_depth": 3}, "model.encoder.pos_conv_depth=1", "missing tensors pos_conv_embed."),
    ],
)
def test_one_setting_that_differs(other_model, ssl_path, settings, change, message):
    """strict=False left tensors random for the half of these, and none of them for the other half."""
    found = refusal(other_model(*settings_of(**settings)), ssl_path)
    assert overrides_in(found) == [change] and message in found


def test_distances_that_are_bucketed_otherwise(other_model, save_peer):
    """No tensor tells: attention would have looked up the biases of other distances."""
    path = save_peer(make_peer("wavlm-large"), "wavlm-large")
    message = refusal(other_model(*settings_of(**PEER_SIZES, position_buckets=32, position_max_distance=80)), path)
    assert overrides_in(message) == ["model.encoder.position_max_distance=40"]


def test_scaled_and_unscaled_audio(other_model, ssl_path, tiny_ctc, tmp_path):
    message = refusal(other_model("model.preprocessor.normalize=null"), ssl_path)
    assert overrides_in(message) == ["model.preprocessor.normalize=per_feature"]
    save_model(tiny_ctc(conv_norm="layer_norm", pre_norm=True), tmp_path / "unscaled.nemo")
    assert overrides_in(refusal(other_model(), tmp_path / "unscaled.nemo")) == ["model.preprocessor.normalize=null"]


def test_encoders_that_no_setting_makes(other_model, tiny_ctc, tmp_path):
    model = other_model()
    torch.save(make_multiresolution()[1], tmp_path / "mrhubert.pt")
    assert "mrhubert.pt: an encoder at several rates (MR-HuBERT)" in refusal(model, tmp_path / "mrhubert.pt")
    convs = [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 2, 2], [16, 2, 1]]
    save_model(tiny_ctc(conv_layers=convs), tmp_path / "fast.nemo")
    assert "fast.nemo: its convolutions (kernel, stride) are ((10, 5), " in refusal(model, tmp_path / "fast.nemo")
    adapted = tiny_ctc()
    adapter = {"_target_": "nemo.collections.common.parts.adapter_modules.LinearAdapter", "in_features": 24, "dim": 4}
    adapted.add_adapter("dialect", OmegaConf.create(adapter))
    save_model(adapted, tmp_path / "adapted.nemo")
    assert "adapted.nemo: has adapters (dialect)" in refusal(model, tmp_path / "adapted.nemo")
    with pytest.raises(FileNotFoundError, match="gone.nemo: no such file"):
        init_encoder(model, tmp_path / "gone.nemo")


@pytest.mark.parametrize(
    "options, message",
    [
        (["init_encoder=7"], "init_encoder=7: expected a file, a folder or an id"),
        (["init_encoder=[a.nemo]"], "init_encoder=.*: expected a file, a folder or an id"),
        (["init_encoder=''"], "init_encoder=: expected a file, a folder or an id"),
        (
            ["init_encoder=a.pt", "+init_from_nemo_model=b.nemo"],
            "init_encoder=a.pt with init_from_nemo_model=b.nemo: .* Give one of them",
        ),
        (["init_encoder=a.pt", "+init_from_ptl_ckpt=b.ckpt"], "with init_from_ptl_ckpt=b.ckpt: .* Give one of them"),
    ],
)
def test_options_are_checked_before_anything_is_built(tiny_config, options, message):
    with pytest.raises(ValueError, match=message):
        plan_updates(tiny_config(*options))


def test_options_that_are_taken(tiny_config):
    plan_updates(tiny_config("init_encoder=facebook/hubert-base-ls960", "+init_from_nemo_model=null"))
    plan_updates(tiny_config("+init_from_nemo_model=b.nemo"))


# --- At the start of a run only, on all ranks ------------------------------------------------------------------------


def test_a_resumed_run_does_not_read_it(other_model, log):
    """Its weights come from the checkpoint; the file may be gone by then."""
    model = other_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    maybe_init_encoder(model, None, None)
    assert not log
    maybe_init_encoder(model, "gone.nemo", "exp/last.ckpt")
    assert_same_weights(model.state_dict(), before)
    assert log == [
        "init_encoder=gone.nemo is for the start of a run and is not read: this one goes on from exp/last.ckpt."
    ]
    with pytest.raises(FileNotFoundError):
        maybe_init_encoder(model, "gone.nemo", None)


class Start(pl.Callback):
    """The whole weights when training starts."""

    def on_train_start(self, trainer, pl_module):
        self.weights = {
            name: weight.clone() for name, weight in trainer.strategy.lightning_module_state_dict().items()
        }


def weights_at_start(config, path, strategy):
    """What a rank begins with."""
    register()
    start = Start()
    trainer = trainer_of(devices=2, max_steps=1, strategy=strategy, callbacks=[start])
    model = MSHuBERTModel(config, trainer)
    maybe_init_encoder(model, str(path), trainer.ckpt_path)
    if trainer.global_rank > 0:  # whatever they hold, the weights of rank 0 count
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data.add_(1)
    model.train_dataloader = lambda: DataLoader([collate([utterance(0), utterance(1)])], batch_size=None)
    trainer.fit(model)
    return start.weights


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "megatron_tp2"])
def test_two_ranks_start_alike(model_config, ssl_path, strategy):
    """Also where each then holds a part of the weights."""
    overrides = ["model.seed=3"]
    if strategy == "megatron_tp2":
        pytest.importorskip("megatron.core", reason="megatron-core is not installed")
        overrides.append("++model.encoder.transformer_backend=megatron")
    first, second = run_on_ranks(2, weights_at_start, model_config(*overrides), ssl_path, strategy)
    encoder = {name.removeprefix("encoder."): first[name] for name in first if name.startswith("encoder.")}
    assert_same_weights(encoder, load_encoder(ssl_path).state_dict())
    if second:  # under fsdp2 rank 0 alone gathers them
        assert_same_weights(first, second)
