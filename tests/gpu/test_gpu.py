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

"""On a GPU everything comes out as on a CPU, in fp32 to rounding and in bf16 nearly. Skipped where there is no GPU."""

import json
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nemo_mshubert.clustering.features import HiddenFeatures
from nemo_mshubert.clustering.frame_sample import sample_corpus_frames
from nemo_mshubert.clustering.kmeans import fit_kmeans
from nemo_mshubert.clustering.label_maker import fit_label_maker
from nemo_mshubert.clustering.labelling import label_manifest
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import read_manifest
from nemo_mshubert.models import MSHuBERTModel
from nemo_mshubert.models.loading import load_encoder
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.modules.masking import span_mask
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.parallel.registration import ShardedAdamW

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPU = "cuda"
LENGTHS = {"dense": [40000, 40000, 40000], "padded": [40000, 17000, 400]}
BASE = dict(conv_norm="group_norm", conv_bias=False, pre_norm=False)
LARGE = dict(conv_norm="layer_norm", conv_bias=True, pre_norm=True)


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Without TF32, cuDNN's default, whose 10 bits would hide mistakes of the size of its own rounding."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def wide_encoder(**layout):
    """Two blocks of base's width: heads of 64 and a kernel of 128, for which GPUs have their fast paths."""
    torch.manual_seed(0)
    sizes = dict(num_layers=2, dropout=0.0, attention_dropout=0.0, dropout_input=0.0, layerdrop=0.0)
    return MSHuBERTEncoder(**{**layout, **sizes}).train()


def step_on(device, encoder, lengths, precision=None):
    """Taps of both views, and the gradients of a score of them, on the CPU."""
    torch.manual_seed(1)
    audio = torch.randn(len(lengths), 1, max(lengths))
    audio = (audio * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None, None])).to(device)
    mask_BT = span_mask([frame_count(length) for length in lengths], 0.65, 10, same_count=False).to(device)
    encoder = encoder.to(device)
    encoder.zero_grad()
    length = torch.tensor(lengths, device=device)
    with torch.autocast(torch.device(device).type, precision or torch.bfloat16, enabled=precision is not None):
        views = encoder.forward_views(audio, length, mask_BT, [1, 2], True)
    taps = [views.tapped[layer].float() for layer in (1, 2)]
    frames = [frame_count(length) for length in lengths]
    rows = [tap[:, row, :count] for tap in taps for row, count in enumerate(frames)]
    weights = torch.linspace(-1, 1, taps[0].shape[-1], device=device)
    (sum((row * weights).sum() for row in rows) + views.feature_penalty.float()).backward()
    gradients = {name: p.grad.cpu() for name, p in encoder.named_parameters() if p.grad is not None}
    return [row.detach().cpu() for row in rows], gradients


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("layout", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_encoder_and_gradients_in_fp32(layout, lengths):
    """Other kernels of convolution and attention than on a CPU, with and without padding."""
    expected, expected_gradients = step_on("cpu", wide_encoder(**layout), lengths)
    rows, gradients = step_on(GPU, wide_encoder(**layout), lengths)
    for row, reference in zip(rows, expected):
        torch.testing.assert_close(row, reference, atol=2e-4, rtol=1e-3)
    assert gradients.keys() == expected_gradients.keys()
    for name, reference in expected_gradients.items():
        if reference.norm() > 1e-3:
            assert cosine(gradients[name], reference) > 0.999, name
            assert gradients[name].norm() / reference.norm() == pytest.approx(1, abs=1e-2), name


@pytest.mark.parametrize("layout", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_encoder_in_bf16_is_near_fp32(layout, lengths):
    """What training runs in: flash attention where nothing is padded, statistics of norms in fp32."""
    expected, _ = step_on("cpu", wide_encoder(**layout), lengths)
    rows, gradients = step_on(GPU, wide_encoder(**layout), lengths, torch.bfloat16)
    for row, reference in zip(rows, expected):
        assert cosine(row, reference) > 0.995
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("layout", [BASE, LARGE], ids=["base", "large"])
def test_masked_frames_alone_are_those_of_all_frames(layout):
    """What most updates compute: the last block's products have other shapes then, which other kernels take."""
    encoder, found = wide_encoder(**layout).to(GPU), []
    audio, length = torch.randn(3, 1, 40000, device=GPU), torch.full((3,), 40000)
    mask_BT = span_mask([frame_count(40000)] * 3, 0.65, 10).to(GPU)
    masked = mask_BT.flatten().nonzero()[:, 0]
    for wanted_W in (None, masked):
        encoder.zero_grad()
        with torch.autocast(GPU, torch.bfloat16):
            views = encoder.forward_views(audio, length, mask_BT, [1, 2], wanted_W=wanted_W)
        taps = [views.at(layer, masked).float() for layer in (1, 2)]
        weights = torch.linspace(-1, 1, taps[0].shape[-1], device=GPU)
        sum((tap * weights).sum() for tap in taps).backward()
        found.append([*(tap.detach() for tap in taps), encoder.layers[0].attention.q_proj.weight.grad])
    for all_frames, masked_alone in zip(*found):
        assert cosine(masked_alone, all_frames) > 0.995


def test_traffic_is_counted_without_a_gpu_as_with_one():
    """`benchmark.py traffic` puts autocast, dropout and attention in the places that they have here."""
    from nemo_mshubert.benchmarks import traffic
    from nemo_mshubert.benchmarks.pretraining_step import Batch, encoder_options, load_config, variants

    config = load_config(Path(__file__).parents[2] / "conf" / "pretrain", "tiny")
    ours = variants(encoder_options(config), list(config.model.label_sets), on_gpu=False)["ours"]
    counter = traffic.KernelCounter()
    step = ours.build(config, Batch(32, 8.0, config, torch.device(GPU)))
    with counter:
        step.backpropagate()
    without = traffic.kernels_of(lambda: ours.build(config, Batch(32, 8.0, config, traffic.META)))
    for kind in ("products", "norms", "GELU", "dropout", "conversions between fp32 and bf16"):
        found, expected = (
            sum(kernel.num_bytes for kernel in kernels if kernel.kind == kind)
            for kernels in (without, counter.kernels)
        )
        assert found == pytest.approx(expected, rel=0.05), kind


def train(config, folder, **options):
    """Validation metrics after a short training."""
    trainer = pl.Trainer(
        default_root_dir=folder,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        **options,
    )
    model = MSHuBERTModel(config, trainer)
    trainer.fit(model)
    trainer.limit_val_batches = 1.0
    (metrics,) = trainer.validate(model, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_on_tarred_speech(tarred_overrides, tiny_config, tmp_path, precision):
    """Loader with pinned memory, masks, losses, optimizer, metrics: in fp32 as on the CPU, in bf16 nearly."""
    config = tiny_config(*tarred_overrides, "model.train_ds.num_workers=1")
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True)["model"])
    options = dict(max_steps=20, gradient_clip_val=10.0, limit_val_batches=0)
    expected = train(config, tmp_path, accelerator="cpu", precision="32-true", **options)
    found = train(config, tmp_path, accelerator="gpu", precision=precision, **options)
    tolerance = 0.01 if precision == "32-true" else 0.03
    assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=tolerance)
    untrained = train(config, tmp_path, accelerator="gpu", precision=precision, **{**options, "max_steps": 1})
    assert found["val_loss"] < untrained["val_loss"]


def test_labels_of_hidden_features(labelled, ssl_path, tmp_path):
    """Label makers fitted on one machine label on another: frames at a border between clusters alone may differ."""
    labels = {}
    for device in ("cpu", GPU):
        features = HiddenFeatures(load_encoder(str(ssl_path)), 2, device)
        if device == "cpu":
            frames = sample_corpus_frames([labelled.train], features, max_frames=5000, seed=0)
            maker = fit_label_maker(frames, [20, 10], features.description, backend="sklearn")
        label_manifest(labelled.dev, tmp_path / f"{device}.json", maker, features)
        entries = read_manifest(tmp_path / f"{device}.json")
        labels[device] = [FrameLabels.from_manifest(entry["labels"], "").sets[20] for entry in entries]
    same = [np.mean(a == b) for a, b in zip(labels["cpu"], labels[GPU])]
    assert np.mean(same) > 0.995


def test_texts_of_greedy_decoding(letters_path, labelled, tmp_path):
    """`evaluate.py --device cuda` writes what it writes on a CPU."""
    from nemo_mshubert.decoding.evaluation import evaluate_manifests, greedy_decoder, load_ctc_model

    texts = {}
    for device in ("cpu", GPU):
        model = load_ctc_model(str(letters_path), device)
        evaluate_manifests(model, "letters.nemo", [labelled.dev], tmp_path / device, {"greedy": greedy_decoder(model)})
        lines = (tmp_path / device / "dev.greedy.json").read_text(encoding="utf-8").splitlines()
        texts[device] = [json.loads(line)["pred_text"] for line in lines]
    letters = [(a, b) for one, other in zip(texts["cpu"], texts[GPU]) for a, b in zip(one, other)]
    assert sum(a == b for a, b in letters) > 0.98 * len(letters) > 0


def test_kmeans_of_cuml_is_as_good_as_that_of_scikit_learn():
    """Labels of a GPU and of a CPU must be of the same quality: inertia within 1 %."""
    pytest.importorskip("cuml", reason="needs cuML: pip install -e .[gpu]")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, 64))
    frames = (centres[rng.integers(200, size=30_000)] + 0.8 * rng.normal(size=(30_000, 64))).astype(np.float32)
    inertia = {}
    for backend in ("sklearn", "cuml"):
        found = torch.from_numpy(fit_kmeans(frames, 100, backend, seed=0))
        inertia[backend] = float((torch.cdist(torch.from_numpy(frames), found).min(dim=1).values ** 2).sum())
    assert inertia["cuml"] < 1.01 * inertia["sklearn"]
    assert math.isfinite(inertia["cuml"])


def test_sharded_moments_of_the_fused_kernel_are_loaded(tmp_path):
    """Their counts of updates are read on the CPU, where the kernel does not look for them."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        weights = [step_sharded(updates=4), step_sharded(updates=2, more=2)]
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(*weights)


def step_sharded(updates, more=0):
    """A weight after so many updates, and ``more`` with an optimizer that has loaded the state of the first."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 3, device=GPU))
    optimizer = ShardedAdamW([weight], lr=0.1, fused=True)
    for update in range(updates + more):
        if update == updates:
            optimizer.consolidate_state_dict()
            state = optimizer.state_dict()
            optimizer = ShardedAdamW([weight], lr=0.1, fused=True)
            optimizer.load_state_dict(state)
        weight.grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(update)).to(GPU)
        optimizer.step()
    return weight.detach()
