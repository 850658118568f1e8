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

"""Every experiment of conf/: it composes, builds its encoder, places its label sets, and holds the paper's numbers."""

import itertools

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.strategies import StrategyRegistry
from nemo.core.classes.common import Serialization
from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS
from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS
from omegaconf import OmegaConf, open_dict
from transformers import HubertConfig, HubertModel

from nemo_mshubert.models.training_setup import plan_updates
from nemo_mshubert.modules.label_heads import place_label_sets
from nemo_mshubert.parallel import registration
from tests.conftest import ASKED_FOR, CONF, load_config

pytestmark = pytest.mark.unit


def experiments(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


EXPERIMENTS = [(group, name) for group in ASKED_FOR for name in experiments(group)]


def missing_keys(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from missing_keys(value, f"{prefix}{key}.")
        elif value == "???":
            yield prefix + key


def build(config):
    """Its encoder, without memory for the weights."""
    with torch.device("meta"):
        return Serialization.from_config_dict(config.model.encoder)


# --- Every file ------------------------------------------------------------------------------------------------------


def test_all_experiments_are_found():
    """An experiment that was renamed is one that no command in the documentation finds."""
    ablation = {f"mshubert_{size}{swap}" for size in ("base", "tiny") for swap in ("", "_noswap")}
    hubert = {f"hubert_{iteration}_{size}" for iteration in ("iter1", "iter2") for size in ("base", "tiny")}
    assert ablation | hubert | {"mshubert_large", "mshubert_xlarge"} <= set(experiments("pretrain"))
    splits = {"10min", "1h", "10h", "100h", "960h", "tiny"}
    assert splits | {"search_1h", "search_10h"} <= set(experiments("finetune"))


@pytest.mark.parametrize("group, name", EXPERIMENTS)
def test_nothing_is_left_open_but_what_is_asked_for(group, name):
    """With the documented overrides every value is there: no interpolation fails after an hour of loading data."""
    config = load_config(group, name)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    with initialize_config_dir(str(CONF / group), version_base=None):
        bare = OmegaConf.to_container(compose(name))
    assert set(missing_keys(bare)) == set(ASKED_FOR[group])


@pytest.mark.parametrize("group, name", EXPERIMENTS)
def test_runs_of_two_experiments_do_not_share_a_folder(group, name):
    """A forgotten name would make one experiment resume from the checkpoint of another."""
    config = load_config(group, name)
    if name.startswith("search_"):  # each of its runs has a name of its own
        assert config.exp_manager.exp_dir == f"exp/{name}"
    else:
        assert config.name == (name if group == "pretrain" else f"finetune_{name}") == config.exp_manager.name
    assert config.trainer.max_steps == config.max_updates == config.model.optim.sched.max_steps
    assert config.model.optim.sched.name in AVAILABLE_SCHEDULERS


@pytest.mark.parametrize("name", experiments("pretrain"))
def test_encoder_is_built_and_label_sets_have_their_blocks(name):
    """More sets than blocks, or heads of another width than the encoder, would show only on the cluster."""
    config = load_config("pretrain", name)
    encoder = build(config)
    placed = place_label_sets(config.model.label_sets, config.model.encoder.num_layers, config.model.label_layers)
    assert sorted(placed.values()) == sorted(config.model.label_sets) and max(placed) == len(encoder.layers)
    assert 0 <= config.model.drop_label_sets < len(placed)
    with torch.device("meta"):
        heads = Serialization.from_config_dict(config.model.label_heads)
    widths = {parameter.shape[-1] for name, parameter in heads.named_parameters() if parameter.ndim == 2}
    assert encoder.d_model in widths
    assert encoder.subsampling_factor == 320
    assert encoder.mask_prob == encoder.mask_channel_prob == 0  # pre-training draws its masks itself


@pytest.mark.parametrize("name", experiments("finetune"))
def test_finetuning_options_are_those_of_the_encoder(name):
    """They are merged into the encoder's config: a misspelt one would end the run, a forgotten one change nothing."""
    options = load_config("finetune", name).model.encoder
    encoder = dict(load_config("pretrain", "mshubert_base").model.encoder)
    with torch.device("meta"):
        built = Serialization.from_config_dict(OmegaConf.create({**encoder, **options, "num_layers": 1}))
    for option, value in options.items():
        if hasattr(built, option):
            found = getattr(built, option)
            assert getattr(found, "p", found) == value  # of a Dropout
    assert not any(parameter.requires_grad for parameter in built.feature_extractor.parameters())


# --- The paper's and the ancestors' numbers --------------------------------------------------------------------------


def test_mshubert_base_is_the_papers():
    """400k updates of 32 x 87.5 s, lr 5e-4 after 32k updates of warm-up, six sets of which two are dropped, Swap."""
    config = load_config("pretrain", "mshubert_base")
    assert config.max_updates == 400_000 and config.seconds_per_update == 32 * 87.5
    assert config.model.train_ds.batch_duration == 87.5
    optim, sched = config.model.optim, config.model.optim.sched
    assert (optim.name, optim.lr, list(optim.betas)) == ("adamw", 5e-4, [0.9, 0.98])
    assert (optim.eps, optim.weight_decay) == (1e-6, 0.01)
    assert (sched.name, sched.power, sched.min_lr, sched.warmup_steps) == ("PolynomialDecayAnnealing", 1.0, 0.0, 32000)
    assert config.trainer.gradient_clip_val == 10.0 and config.trainer.precision == "bf16-mixed"
    model = config.model
    assert list(model.label_sets) == [1000, 500, 250, 125, 50, 25] and model.drop_label_sets == 2
    placed = place_label_sets(model.label_sets, model.encoder.num_layers, model.label_layers)
    assert placed == {12: 1000, 10: 500, 8: 250, 7: 125, 5: 50, 4: 25}
    assert model.swap is True and model.loss_views == "both"
    assert (model.masking.mask_prob, model.masking.mask_length) == (0.65, 10)  # "around 50 %" of the frames
    assert model.loss.penalty_weight == 10.0
    assert (model.label_heads.d_head, model.label_heads.temperature) == (256, 0.1)
    assert (model.train_ds.truncate_duration, model.train_ds.min_duration) == (15.625, 2.0)
    dropouts = (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "dropout_input",
        "layerdrop",
        "feature_grad_mult",
    )
    assert [model.encoder[name] for name in dropouts] == [0.1, 0.1, 0.0, 0.1, 0.05, 0.1]


@pytest.mark.parametrize("name", experiments("pretrain"))
def test_pretraining_is_on_cropped_batches_and_keeps_the_lowest_loss(name):
    """As fairseq's (pad_audio: false), at masked frames alone but for the tiny first iteration; with another metric or
    direction <name>.nemo, of which labels and fine-tunings come, is that of another update than the best."""
    config = load_config("pretrain", name)
    checkpoints, model = config.exp_manager.checkpoint_callback_params, config.model
    assert (checkpoints.monitor, checkpoints.mode, checkpoints.save_best_model) == ("val_loss", "min", True)
    assert (model.train_ds.crop, model.train_ds.shuffle) == ("shortest", True)
    assert model.validation_ds.crop == "pad" and not model.validation_ds.get("shuffle")
    assert model.unmasked_weight == (1.0 if name == "hubert_iter1_tiny" else 0.0)


def test_mshubert_base_has_the_papers_size():
    """94.37 M of HuBERT base; 96.05 M with the six heads (the paper: 96.01 M)."""
    config = load_config("pretrain", "mshubert_base")
    encoder = build(config)
    with torch.device("meta"):
        heads = Serialization.from_config_dict(config.model.label_heads)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (encoder, heads)]
    assert sizes[0] == 94_371_712 and sum(sizes) == 96_052_096


def test_noswap_differs_from_mshubert_in_swap_alone():
    """The paper's ablation: whatever else differed would be what the table measures."""
    for size in ("base", "tiny"):
        full = OmegaConf.to_container(load_config("pretrain", f"mshubert_{size}"))
        ablation = OmegaConf.to_container(load_config("pretrain", f"mshubert_{size}_noswap"))
        assert ablation["model"].pop("swap") is False and full["model"].pop("swap") is True
        assert ablation.pop("name") != full.pop("name")
        assert ablation == full


@pytest.mark.parametrize("name, clusters, updates", [("iter1", 100, 250_000), ("iter2", 500, 400_000)])
def test_hubert_is_one_set_on_the_last_block_without_swap(name, clusters, updates):
    """With HuBERT's own share of masked frames, 56.6 %."""
    config = load_config("pretrain", f"hubert_{name}_base")
    assert list(config.model.label_sets) == [clusters] and config.max_updates == updates
    assert place_label_sets(config.model.label_sets, config.model.encoder.num_layers) == {12: clusters}
    assert (config.model.swap, config.model.drop_label_sets, config.model.masking.mask_prob) == (False, 0, 0.8)
    base = load_config("pretrain", "mshubert_base")
    assert config.model.encoder == base.model.encoder and config.model.optim.lr == base.model.optim.lr
    assert config.seconds_per_update == base.seconds_per_update


# width, blocks, inner width, GPUs, seconds on each, lr, head width: fairseq's hubert_{large,xlarge}_librivox.yaml
LARGE = {
    "large": (1024, 24, 4096, 128, 56.25, 1.5e-3, 768),
    "xlarge": (1280, 48, 5120, 256, 22.5, 3e-3, 1024),
}


@pytest.mark.parametrize("size", LARGE)
def test_large_sizes_are_those_of_hubert(size):
    """Pre-LN, normalised audio, clipping at 1, nothing dropped: 128 GPUs hear enough speech to do without."""
    width, blocks, inner, gpus, seconds, lr, head = LARGE[size]
    config = load_config("pretrain", f"mshubert_{size}")
    encoder = build(config)
    sizes = dict(hidden_size=width, num_hidden_layers=blocks, num_attention_heads=16, intermediate_size=inner)
    layout = dict(feat_extract_norm="layer", conv_bias=False, do_stable_layer_norm=True)
    with torch.device("meta"):
        theirs = HubertModel(HubertConfig(**sizes, **layout))
    assert {name: p.shape for name, p in encoder.named_parameters() if "layers." in name} == {
        name.removeprefix("encoder."): p.shape for name, p in theirs.named_parameters() if "layers." in name
    }
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert encoder.pre_norm and config.model.encoder.conv_norm == "layer_norm"
    assert {block.attention.num_heads for block in encoder.layers} == {16}  # no shape tells
    dropped = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "layerdrop")
    assert [config.model.encoder[name] for name in dropped] == [0.0] * 5
    assert config.model.encoder.feature_grad_mult == 1.0 and config.model.optim.sched.warmup_steps == 32000
    assert config.model.preprocessor.normalize == "per_feature"
    assert (config.seconds_per_update, config.model.train_ds.batch_duration) == (gpus * seconds, seconds)
    assert (config.model.optim.lr, config.trainer.gradient_clip_val) == (lr, 1.0)
    assert config.model.label_heads.d_head == head


@pytest.mark.parametrize("path", sorted((CONF / "pretrain" / "parallel").glob("*.yaml")), ids=lambda path: path.stem)
def test_ways_of_sharing_a_model(path):
    """Each sets strategy, backend and optimizer together, and without the group a model is whole."""
    config = load_config("pretrain", "mshubert_large", f"parallel={path.stem}")
    plain = load_config("pretrain", "mshubert_large")
    assert plain.trainer.strategy == "auto" and plain.model.optim.name == "adamw"
    registration.register()
    size = registration.tensor_parallel_size(config.trainer.strategy)
    if registration.has_megatron() or size == 1:
        assert getattr(StrategyRegistry.get(config.trainer.strategy), "tensor_parallel_size", 1) == size
    assert (config.model.encoder.get("transformer_backend", "torch") == "megatron") == (size > 1)
    assert config.model.optim.name == ("sharded_adamw" if size > 1 else "adamw")
    assert config.model.optim.name in AVAILABLE_OPTIMIZERS
    config.trainer.devices, config.trainer.num_nodes = 8, 4
    plan_updates(config)
    assert config.trainer.accumulate_grad_batches * 32 / size * config.model.train_ds.batch_duration == 7200


# updates, lr, frozen updates, mask_prob, mask_channel_prob, layerdrop: fairseq's base_10m.yaml ... base_960h.yaml
WAV2VEC2 = {
    "10min": (13_000, 5e-5, 10_000, 0.65, 0.25, 0.1),
    "1h": (13_000, 5e-5, 10_000, 0.65, 0.25, 0.1),
    "10h": (20_000, 5e-5, 10_000, 0.65, 0.5, 0.05),
    "100h": (80_000, 3e-5, 0, 0.65, 0.5, 0.1),
    "960h": (320_000, 1e-4, 0, 0.5, 0.1, 0.1),
}


@pytest.mark.parametrize("name", WAV2VEC2)
def test_finetuning_is_that_of_wav2vec2(name):
    """The splits differ in length and strength of masks; all see 8 x 200 s per update with a tri-stage rate."""
    config = load_config("finetune", name)
    encoder, optim = config.model.encoder, config.model.optim
    found = (config.max_updates, optim.lr, config.freeze_encoder_updates)
    assert (*found, encoder.mask_prob, encoder.mask_channel_prob, encoder.layerdrop) == WAV2VEC2[name]
    assert (encoder.mask_length, encoder.mask_channel_length) == (10, 64)
    assert (encoder.activation_dropout, encoder.feature_grad_mult) == (0.1, 0.0)
    assert encoder.dropout == encoder.attention_dropout == encoder.dropout_input == 0.0
    assert (config.seconds_per_update, config.model.train_ds.batch_duration) == (1600, 200)
    assert (optim.name, list(optim.betas), optim.eps, optim.weight_decay) == ("adam", [0.9, 0.98], 1e-8, 0.0)
    sched = optim.sched
    assert (sched.name, sched.warmup_ratio, sched.hold_ratio) == ("TriStageAnnealing", 0.1, 0.4)
    assert (sched.init_lr_scale, sched.final_lr_scale) == (0.01, 0.05)
    checkpoints = config.exp_manager.checkpoint_callback_params
    assert (checkpoints.monitor, checkpoints.mode, checkpoints.save_best_model) == ("val_wer", "min", True)


@pytest.mark.parametrize("split", ["1h", "10h"])
def test_the_search_is_the_recipe_but_for_what_it_searches(split):
    """Four runs around the recipes of wav2vec 2.0 and HuBERT; two runs of one name would resume from each other."""
    recipe, search = load_config("finetune", split), load_config("finetune", f"search_{split}")
    with open_dict(recipe), open_dict(search):
        for config in (recipe, search):
            del config.name, config.exp_manager.exp_dir
    assert recipe == search
    with initialize_config_dir(str(CONF / "finetune"), version_base=None):
        hydra = compose(f"search_{split}", return_hydra_config=True).hydra
    params = {key: values.split(",") for key, values in hydra.sweeper.params.items()}
    assert params == {"model.optim.lr": ["2e-5", "5e-5"], "model.encoder.mask_prob": ["0.65", "0.75"]}
    assert hydra.mode.name == "MULTIRUN" and hydra.job.chdir is False
    names = {
        load_config("finetune", f"search_{split}", *(f"{key}={value}" for key, value in zip(params, values))).name
        for values in itertools.product(*params.values())
    }
    assert len(names) == 4


@pytest.mark.parametrize("group, name", EXPERIMENTS)
def test_the_first_update_of_a_resumed_run_may_be_validated(group, name):
    """NeMo's loop leaves out a validation there: of a run with one update to go, the last weights."""
    assert load_config(group, name).exp_manager.disable_validation_on_resume is False
