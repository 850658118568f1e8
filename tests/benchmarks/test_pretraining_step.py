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

"""The rows of the pre-training benchmark: peers do the same work as ours, and FLOPs are counted, not guessed."""

import os

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from nemo_mshubert.benchmarks import pretraining_step
from nemo_mshubert.benchmarks.flops import forward_flops, step_flops
from nemo_mshubert.benchmarks.measurement import CLEAR_REFS
from nemo_mshubert.benchmarks.peers import PEERS
from nemo_mshubert.benchmarks.pretraining_step import Batch, Step, batch_rows, variants
from nemo_mshubert.convert.tables import hugging_face_table, torchaudio_table
from nemo_mshubert.modules.conv_feature_extractor import HUBERT_CONV_LAYERS
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder, Views
from tests.conftest import TINY_CLUSTERS, TINY_ENCODER

pytestmark = pytest.mark.unit
BASE_OR_LARGE = [
    dict(conv_norm="group_norm", conv_bias=False, pre_norm=False),
    dict(conv_norm="layer_norm", conv_bias=True, pre_norm=True),
]
CPU = torch.device("cpu")


@pytest.fixture
def config():
    """What the benchmark reads of an experiment."""
    model = dict(
        encoder=dict(_target_="", **TINY_ENCODER, **BASE_OR_LARGE[0]),
        label_heads=dict(d_head=8),
        label_sets=TINY_CLUSTERS,
        loss=dict(penalty_weight=10.0),
        masking=dict(mask_prob=0.65, mask_length=10),
        optim=dict(fused=True),
    )
    return OmegaConf.create({"model": model})


@pytest.mark.parametrize("options", BASE_OR_LARGE, ids=["base", "large"])
@pytest.mark.parametrize("name", ["transformers", "torchaudio"])
def test_peer_with_our_weights_gives_our_views(tiny_encoder, config, name, options):
    """A peer that skipped the exchange, a norm or a view would look fast."""
    if name == "torchaudio":
        pytest.importorskip("torchaudio", reason="torchaudio is not installed")
    ours = tiny_encoder(**options).train()
    peer = PEERS[name]({**TINY_ENCODER, **options}).train()
    theirs = {key.removeprefix("hubert.").removeprefix("wav2vec2."): value for key, value in peer.state_dict().items()}
    mask_embedding = theirs.pop("mask_embedding", None)
    table = hugging_face_table() if name == "transformers" else torchaudio_table()
    weights, dropped = table.to_ours(theirs, "the peer")
    if mask_embedding is not None:
        weights["mask_embedding"] = mask_embedding
    assert not dropped
    ours.load_state_dict(weights)
    batch = Batch(2.0, 0.5, config, CPU)
    for use_swap in (True, False):
        for wanted_W in (None, batch.masked_M):
            arguments = (batch.audio, batch.length, batch.mask_BT, [1, 2, 4], use_swap)
            expected, found = (model.forward_views(*arguments, wanted_W=wanted_W) for model in (ours, peer))
            assert found.tapped.keys() == expected.tapped.keys()
            for layer, x in expected.tapped.items():
                torch.testing.assert_close(found.tapped[layer], x, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.feature_penalty, expected.feature_penalty, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.frames_B, expected.frames_B)
            assert found.wanted_W is wanted_W


@pytest.mark.parametrize("option", [None, "dropout", "attention_dropout", "activation_dropout", "dropout_input"])
@pytest.mark.parametrize("name", ["transformers", "torchaudio"])
def test_peers_have_every_dropout_of_ours(config, name, option):
    """One without would look fast, and keep less for the backward pass."""
    if name == "torchaudio":
        pytest.importorskip("torchaudio", reason="torchaudio is not installed")
    off = dict(dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, dropout_input=0.0)
    peer = PEERS[name]({**TINY_ENCODER, **BASE_OR_LARGE[0], **off, **({option: 0.5} if option else {})}).train()
    batch = Batch(1.0, 0.5, config, CPU)
    first, second = (peer.forward_views(batch.audio, batch.length, batch.mask_BT, [4]).tapped[4] for _ in range(2))
    assert torch.equal(first, second) is (option is None)


def test_flops_are_those_that_pytorch_counts(config):
    """The utilisation stands on them. PyTorch counts the products of a peer's forward pass, attention included."""
    batch = Batch(2.0, 0.5, config, CPU)
    step = Step(PEERS["transformers"]({**TINY_ENCODER, **BASE_OR_LARGE[0]}), config, batch, TINY_CLUSTERS, True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        views = step.encoder.forward_views(batch.audio, batch.length, batch.mask_BT, [1, 2, 4])
    with FlopCounterMode(display=False) as counter_of_heads:
        step.heads({k: views.at(layer, batch.masked_M).flatten(0, 1) for k, layer in step.layer_of_set.items()})
    sizes = TINY_ENCODER, batch.num_rows, batch.num_samples, 2, batch.num_masked
    of_encoder, of_all = (forward_flops(*sizes, sets, 8) for sets in ([], TINY_CLUSTERS))
    d_model, groups, kernel = (TINY_ENCODER[key] for key in ("d_model", "pos_conv_groups", "pos_conv_kernel"))
    frame_more = 2 * batch.num_rows * 2 * d_model * d_model / groups * kernel  # that an even kernel convolves
    assert of_encoder + frame_more == counter.get_total_flops()
    assert of_all - of_encoder == counter_of_heads.get_total_flops()


def test_base_model_costs_what_its_parts_add_up_to():
    """About 77 GFLOP per second of audio with Swap, 15.6 s utterances: the transformer's two views dominate."""
    base = dict(conv_layers=HUBERT_CONV_LAYERS, d_model=768, d_inner=3072, num_layers=12)
    base.update(pos_conv_groups=16, pos_conv_kernel=128)
    samples = 250_000
    flops = step_flops(base, 1, samples, 2, 390, [1000, 500, 250, 125, 50, 25], 256)
    assert flops / (samples / 16000) / 1e9 == pytest.approx(77, rel=0.05)


def test_rows_say_what_was_not_measured(config, monkeypatch):
    """A peer that is not installed, or does not fit, must not end a benchmark of hours, nor get a number."""

    def absent(options):
        raise ImportError

    def too_large(options):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(pretraining_step, "PEERS", {"absent": absent, "too large": too_large})
    rows = {row["row"]: row for row in batch_rows("tiny", config, Batch(1.0, 0.5, config, CPU), 1, 1e12)}
    peers = ["absent: not installed", "too large: out of memory"]
    assert list(rows) == ["ours", "ours, no Swap", "ours, one head", *peers]
    assert not any("seconds" in rows[peer] for peer in peers)
    assert rows["ours"]["time_over_ours"] == 1
    assert rows["ours"]["peak_gib"] > 0 if os.access(CLEAR_REFS, os.W_OK) else rows["ours"]["peak_gib"] is None
    speed, work = rows["ours"]["audio_seconds_per_second"], rows["ours"]["gflop_per_audio_second"]
    assert rows["ours"]["utilisation"] == pytest.approx(speed * work * 1e9 / 1e12)


def test_compiled_blocks_are_the_same_step(config):
    """The row of a GPU that weighs `torch.compile`; here its graphs run without being compiled further."""
    batch, outputs = Batch(1.0, 0.5, config, CPU), []
    names = variants({**TINY_ENCODER, **BASE_OR_LARGE[0]}, TINY_CLUSTERS, on_gpu=True)
    assert list(names)[3] == "ours, compiled" and "ours, compiled" not in variants({}, TINY_CLUSTERS, on_gpu=False)
    with torch.compiler.set_stance(force_backend="eager"):
        for name in ("ours", "ours, compiled"):
            torch.manual_seed(0)
            step = names[name].build(config, batch)
            outputs.append(step.encoder.forward_views(batch.audio, batch.length, batch.mask_BT, [4]).tapped[4])
            step()
    torch.testing.assert_close(*outputs)


def test_memory_that_ends_while_timing_costs_one_row(config, monkeypatch):
    """A step may fit once and not again; the others keep their numbers."""
    turns = iter([None, None, None, torch.cuda.OutOfMemoryError])  # two for the peak, a warm-up, the first that counts
    step = Step.__call__

    def call(self):
        if not self.use_swap and next(turns):
            raise torch.cuda.OutOfMemoryError
        step(self)

    monkeypatch.setattr(pretraining_step, "PEERS", {})
    monkeypatch.setattr(pretraining_step, "peak_gib", lambda build, device: [build()() for _ in range(2)] and 1.0)
    monkeypatch.setattr(Step, "__call__", call)
    rows = batch_rows("tiny", config, Batch(1.0, 0.5, config, CPU), 1, 1e12)
    assert [row["row"] for row in rows] == ["ours", "ours, no Swap: out of memory", "ours, one head"]
    assert ["seconds" in row for row in rows] == [True, False, True]


def test_no_model_waits_on_a_gpu():
    """It would take the memory of the one that runs; on a CPU all of them take turns."""
    assert pretraining_step._groups(["a", "b"], torch.device("cuda")) == [["a"], ["b"]]
    assert pretraining_step._groups(["a", "b"], CPU) == [["a", "b"]]


def test_masked_frames_are_those_of_the_mask(config):
    batch = Batch(2.0, 0.5, config, CPU)
    x_VBTD = torch.randn(2, *batch.mask_BT.shape, 3)
    assert torch.equal(Views({1: x_VBTD}, batch.length, 0).at(1, batch.masked_M), x_VBTD[:, batch.mask_BT])
    assert torch.equal(batch.masked_labels(5), (batch.labels_BT % 5)[batch.mask_BT])


@pytest.mark.parametrize("fused", [None, True])
def test_optimizer_is_fused_where_training_s_is(config, fused):
    """A benchmark with another optimizer would promise days that training does not keep."""
    config.model.optim = {"fused": fused}
    step = Step(MSHuBERTEncoder(**TINY_ENCODER), config, Batch(1.0, 0.5, config, CPU), TINY_CLUSTERS, True)
    assert step.optimizer.param_groups[0]["fused"] is fused
    step()


def test_rows_come_batch_by_batch(config, monkeypatch):
    """What is measured must be written before a larger batch can end the run."""
    batches = []

    def rows(size, config, batch, repeats, reachable):
        batches.append(batch.seconds)
        return [{"row": "ours"}]

    monkeypatch.setattr(pretraining_step, "load_config", lambda configs, size: config)
    monkeypatch.setattr(pretraining_step, "matmul_flops", lambda device, dtype: 1.0)
    monkeypatch.setattr(pretraining_step, "batch_rows", rows)
    found = pretraining_step.benchmark(None, ["tiny"], [1.0, 2.0], 0.5, 1, CPU)
    assert next(found) == {"row": "ours"} and len(batches) == 1
    assert len(list(found)) == 1 and len(batches) == 2


def test_step_trains_encoder_and_heads(config):
    """A step that left something out would look fast."""
    batch = Batch(1.0, 0.5, config, CPU)
    step = Step(MSHuBERTEncoder(**TINY_ENCODER), config, batch, TINY_CLUSTERS, True)
    parameters = dict([*step.encoder.named_parameters(), *step.heads.named_parameters()])
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    step()
    step()
    # The softmax does not see a bias of the keys. Without a gradient AdamW's decay moves weights by 1e-7 of their
    # value.
    moved = {name: (new - before[name]).abs().max() for name, new in parameters.items() if "k_proj.bias" not in name}
    assert len(moved) == len(step.parameters) - 4 and min(moved.values()) > 1e-6
