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

"""One update: whatever it is split over, it is the same; and a bad one is skipped, counted and explained."""

import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nemo_mshubert.callbacks import step_guard
from nemo_mshubert.callbacks.step_guard import NonFiniteTrainingError, StepGuard
from nemo_mshubert.models import MSHuBERTModel, mshubert_model
from nemo_mshubert.models.prediction_metrics import (
    training_metrics,
    validation_means,
    validation_sums,
    view_cosines,
)
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.modules.transformer import FeedForward
from nemo_mshubert.parallel.ranks import DataRanks
from tests.conftest import needs_meta_weight_norm
from tests.models import fixed_update
from tests.models.fixed_update import collate, every_second_frame, train, train_split, utterance
from tests.parallel.ranks_of_a_test import run_on_ranks

CLIP = 0.5  # below the norms that occur: clipping must come after the normalisation
NO_CLIP = 1e3  # above them: the size of an update must be right, too, not its direction alone


def difference(one, other):
    """Largest difference of two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture
def config(model_config):
    return model_config("model.drop_label_sets=1")


@pytest.fixture(params=[CLIP, NO_CLIP], ids=["clipped", "unclipped"])
def clip(request):
    return request.param


@pytest.fixture
def one_batch(config, clip):
    """Weights after two updates on the four utterances as one batch."""
    after = train_split(config, [[[0, 1, 2, 3]]], gradient_clip_val=clip).state_dict()
    before = train_split(config, [[[0, 1, 2, 3]]], updates=0).state_dict()
    assert difference(before, after) > 1e-2
    return after


@pytest.mark.unit
@pytest.mark.parametrize("micro_batches", [[[0], [1], [2], [3]], [[3, 0], [2, 1]], [[0, 1, 2], [3]]])
def test_accumulated_micro_batches_are_one_batch(config, clip, one_batch, micro_batches):
    """A machine with less memory must train the same model, also with unequal micro-batches."""
    weights = train_split(config, [micro_batches], gradient_clip_val=clip).state_dict()
    assert difference(weights, one_batch) < 1e-5


@pytest.mark.unit
@needs_meta_weight_norm
@pytest.mark.parametrize("frames", [[24, 24], [24, 20]], ids=["dense", "padded"])
def test_the_host_queues_a_step_without_waiting_for_the_gpu(config, frames, monkeypatch):
    """Numbers read from the GPU, as lengths for the masks were, leave it idle until the host has queued more work.

    A device of PyTorch that has shapes but no numbers takes the place of the GPU: to read one is an error.
    """
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # that device has none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    trainer = fixed_update.trainer_of(max_steps=1, log_every_n_steps=50)
    model = MSHuBERTModel(config, trainer).to("meta").train()
    logged = {}
    monkeypatch.setattr(model, "log", lambda name, value: logged.update({name: value}))
    batch = collate([utterance(number, count) for number, count in enumerate(frames)])
    batch = model.transfer_batch_to_device(batch, torch.device("meta"), 0)
    loss = model.training_step(batch, 0)["loss"]
    loss.backward()
    assert logged["train_loss"].is_meta and all(p.grad.is_meta for p in model.parameters() if p.requires_grad)
    with pytest.raises((RuntimeError, NotImplementedError)):
        loss.item()  # the test can fail


@pytest.mark.unit
def test_fused_adamw_is_adamw(model_config, monkeypatch):
    """The default, in one pass, trains the model that PyTorch's plain loop trains; where it cannot, it says so."""
    adamw = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}
    fused, plain = (model_config(optim={**adamw, "fused": fused}) for fused in (True, False))
    weights, expected = (train_split(config, [[[0, 1, 2, 3]]]).state_dict() for config in (fused, plain))
    assert 0 < difference(weights, expected) < 1e-5
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")  # Lightning has it on GPUs alone
    with pytest.raises(ValueError, match="model.optim.fused=false"):
        train_split(fused, [[[0, 1, 2, 3]]])


@pytest.mark.unit
def test_fp16_of_split_models_is_refused(model_config, monkeypatch):
    """Each rank would skip the updates in which its own part overflowed: the parts drift apart, without a word."""
    monkeypatch.setattr(pl.Trainer, "precision", "16-mixed")
    monkeypatch.setattr(MSHuBERTModel, "configure_model", lambda model: setattr(model, "is_split", True))
    with pytest.raises(ValueError, match="split over ranks.*bf16-mixed"):
        train_split(model_config(optim={"name": "sgd", "lr": 0.1}), [[[0]]])


class ByPyTorch(pl.Callback):
    """Weights after a step of SGD with the mean gradient, clipped by PyTorch."""

    def __init__(self, clip):
        self.clip = clip

    def on_before_optimizer_step(self, trainer, model, optimizer):
        parameters = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
        for copy, parameter in zip(parameters, model.parameters()):
            copy.grad = parameter.grad / model.masked_rows
        if self.clip:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        torch.optim.SGD(parameters, lr=0.5).step()
        self.weights = {name: p.detach() for (name, _), p in zip(model.named_parameters(), parameters)}


@pytest.mark.unit
@pytest.mark.parametrize("clip", [CLIP, NO_CLIP, None], ids=["below the norm", "above it", "none"], indirect=True)
def test_mean_and_clipping_are_pytorchs(config, clip):
    """They take one pass over the gradients together; a wrong factor would be another learning rate."""
    reference = ByPyTorch(clip)
    options = dict(updates=1, gradient_clip_val=clip, callbacks=[reference])
    trained = train_split(config, [[[0, 1, 2, 3]]], **options)
    assert difference(dict(trained.named_parameters()), reference.weights) < 1e-6
    with pytest.raises(ValueError, match="gradient_clip_algorithm: expected norm"):
        train_split(config, [[[0, 1, 2, 3]]], gradient_clip_val=1.0, gradient_clip_algorithm="value")


@pytest.mark.unit
def test_an_utterance_less_is_another_update(config, clip, one_batch):
    """The tests of equality can fail."""
    assert difference(train_split(config, [[[0, 1, 2]]], gradient_clip_val=clip).state_dict(), one_batch) > 1e-3


@pytest.mark.integration
@pytest.mark.parametrize("clip", [NO_CLIP], indirect=True)
def test_two_ranks_are_one_batch(config, clip, one_batch, tmp_path):
    """Two ranks, two micro-batches each, with unequal numbers of masked frames: DDP's mean must not show."""
    OmegaConf.save({"model": config, "clip": clip}, tmp_path / "config.yaml")
    command = [sys.executable, fixed_update.__file__, str(tmp_path / "config.yaml"), str(tmp_path / "weights.pt")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    assert difference(torch.load(tmp_path / "weights.pt"), one_batch) < 1e-5


# --- Steps that are not finite ---------------------------------------------------------------------------------------


def batch(*numbers, spoiled=False):
    """A batch of the utterances, with a NaN in the first one where ``spoiled``."""
    examples = collate([utterance(number) for number in numbers])
    if spoiled:
        examples["audio"][0, 1000] = float("nan")
        examples["utterances"][0] += "-spoiled"
    return examples


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(step_guard.logging, "warning", messages.append)
    return messages


@pytest.mark.unit
def test_nonfinite_update_is_skipped_counted_and_named(model_config, warnings):
    """One overflow or one broken file must neither end the run nor reach weights, moments or later updates."""
    config = model_config(optim={"name": "adamw", "lr": 1e-3})
    clean = train(config, [[batch(0), batch(1), batch(2)]], updates=3, log_every_n_steps=1)
    assert not warnings
    batches = [batch(0), batch(3, 2, spoiled=True), batch(1), batch(2)]
    spoiled = train(config, [batches], updates=4, log_every_n_steps=1)
    assert difference(spoiled.state_dict(), clean.state_dict()) == 0
    assert spoiled.step_guard.num_skipped == 1
    assert float(spoiled.trainer.callback_metrics["nonfinite_steps"]) == 1
    (message,) = [message for message in warnings if "skipped" in message]
    assert "Update 1 skipped (1 so far)" in message and "u3-spoiled, u2." in message and "u1" not in message
    assert "the loss is not finite" in message


@pytest.mark.unit
def test_nonfinite_micro_batch_spoils_its_update_only(model_config, warnings):
    """With accumulation, the count of masked rows must start anew after a skipped update."""
    config = model_config()
    options = dict(accumulate_grad_batches=2, log_every_n_steps=1)
    clean = train(config, [[batch(1), batch(2)]], updates=1, **options)
    micro_batches = [batch(0), batch(3, spoiled=True), batch(1), batch(2)]
    spoiled = train(config, [micro_batches], updates=2, **options)
    assert difference(spoiled.state_dict(), clean.state_dict()) == 0
    assert "utterances: u3-spoiled." in warnings[0]  # u0 was in a micro-batch that is fine


@pytest.mark.unit
def test_skipped_updates_are_counted_over_all_jobs_of_a_run(model_config, tmp_path):
    """The report shows the last count: of a run of many jobs, it said that only those of the last job were
    skipped."""
    bad, good = batch(3, spoiled=True), batch(0)
    train(model_config(), [[bad, good]], updates=2).trainer.save_checkpoint(tmp_path / "two.ckpt")
    batches = [[good, bad, good, good]]  # two are left, and the loader of this test begins with the first ones
    resumed = train(model_config(), batches, updates=4, resume=tmp_path / "two.ckpt", log_every_n_steps=1)
    assert float(resumed.trainer.callback_metrics["nonfinite_steps"]) == 2


@pytest.mark.unit
def test_many_nonfinite_updates_in_a_row_end_the_run(model_config, warnings):
    """A diverged run must not burn a week; one bad update now and then must not end it."""
    config = model_config("model.max_nonfinite_steps=2")
    bad, good = batch(3, spoiled=True), batch(0)
    train(config, [[bad, good, bad, good, bad]], updates=5)
    with pytest.raises(NonFiniteTrainingError, match="2 updates in a row were not finite.*u3-spoiled.*learning rate"):
        train(config, [[good, bad, bad, good]], updates=4)


@pytest.mark.unit
def test_cause_is_told_apart(warnings):
    """An overflow of the gradient calls for another remedy than broken data."""
    guard = StepGuard(max_consecutive=3)
    guard.note(["a"], torch.tensor(1.0))
    assert not guard.accept(torch.tensor(float("inf")), 7)
    guard.note(["b"], torch.tensor(float("inf")))
    assert not guard.accept(torch.tensor(float("nan")), 8)
    guard.note(["c"], torch.tensor(1.0))
    assert guard.accept(torch.tensor(1.0), 9)
    guard.note(["d"], torch.tensor(1.0))
    assert not guard.accept(torch.tensor(float("inf")), 10)
    assert "Update 7" in warnings[0] and "the gradient overflowed" in warnings[0] and "utterances: a." in warnings[0]
    assert "Update 8" in warnings[1] and "the loss is not finite" in warnings[1] and "utterances: b." in warnings[1]
    assert "Update 10" in warnings[2] and "utterances: d." in warnings[2]  # those of the updates before are innocent


def guard_with_one_bad_rank(losses):
    torch.distributed.init_process_group("gloo")
    messages = []
    step_guard.logging.warning = messages.append  # in a process of its own
    rank = torch.distributed.get_rank()
    guard = StepGuard(max_consecutive=3)
    guard.note([f"a{rank}", f"b{rank}"], torch.tensor(1.0))
    guard.note([f"c{rank}"], torch.tensor(losses[rank]))
    guard.accept(torch.tensor(float("nan")), 7)
    return messages[0]


@pytest.mark.unit
def test_the_rank_with_the_bad_utterances_is_named_on_all():
    """NeMo shows the log of rank 0 alone, whose own utterances may be innocent."""
    bad = run_on_ranks(2, guard_with_one_bad_rank, [1.0, float("nan")])
    assert all("the loss is not finite; its utterances: rank 1: c1." in message for message in bad)
    overflown = run_on_ranks(2, guard_with_one_bad_rank, [1.0, 1.0])
    assert all(
        "overflowed" in message and "rank 0: a0, b0, c0; rank 1: a1, b1, c1." in message for message in overflown
    )


# --- Dropped label sets ----------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_sets_are_dropped_alike_everywhere_and_as_often_as_said(make_model):
    """Two of six per update: the same on all ranks, micro-batches and after a resume; each a third of the time."""
    model, other = make_model("model.drop_label_sets=1"), make_model("model.drop_label_sets=1")
    draws = [tuple(model._kept_sets(update)) for update in range(3000)]
    torch.manual_seed(123)
    assert draws[1000:] == [tuple(other._kept_sets(update)) for update in range(1000, 3000)]
    assert all(len(kept) == 2 for kept in draws)
    for kept, count in Counter(draws).items():
        assert list(kept) == sorted(kept, reverse=True)
        assert count == pytest.approx(1000, rel=0.12)
    for clusters in (40, 20, 10):
        assert sum(clusters in kept for kept in draws) == pytest.approx(2000, rel=0.06)
    reseeded = make_model("model.drop_label_sets=1", "model.seed=7")
    assert draws[:50] != [tuple(reseeded._kept_sets(update)) for update in range(50)]


def norm_of_gradients(module):
    """None where one is missing."""
    gradients = [parameter.grad for parameter in module.parameters()]
    missing = any(gradient is None for gradient in gradients)
    return None if missing else sum(gradient.abs().sum().item() for gradient in gradients)


class Gradients(pl.Callback):
    """For each update: norms of the gradients of the heads by set, and of the blocks by number."""

    def __init__(self):
        self.heads, self.blocks = [], []

    def on_before_optimizer_step(self, trainer, model, optimizer):
        heads, blocks = model.label_heads.heads.items(), enumerate(model.encoder.layers, start=1)
        self.heads.append({int(name): norm_of_gradients(head) for name, head in heads})
        self.blocks.append({number: norm_of_gradients(block) for number, block in blocks})


@pytest.mark.unit
def test_what_dropped_sets_leave_idle_has_zero_gradients(config):
    """Not missing ones, which DDP would wait for; and all micro-batches of an update drop the same set.

    A dropped set idles its head, and, where it is the highest, the blocks above the next one.
    """
    probe = Gradients()
    model = train_split(config, [[[0], [1], [2]]], updates=6, callbacks=[probe])
    tops = set()
    for update, (heads, blocks) in enumerate(zip(probe.heads, probe.blocks)):
        kept = model._kept_sets(update)
        for clusters, norm in heads.items():
            assert norm is not None and (norm > 0) == (clusters in kept), (update, clusters)
        top = max(model.layer_of_set[clusters] for clusters in kept)
        for number, norm in blocks.items():
            assert norm is not None and (norm > 0) == (number <= top), (update, number)
        tops.add(top)
    assert len(tops) > 1


class MissingGradients(pl.Callback):
    """Per update: kept sets, and names of the parameters without a gradient."""

    def __init__(self):
        self.updates = []

    def on_before_optimizer_step(self, trainer, model, optimizer):
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        self.updates.append((model._kept_sets(trainer.global_step), missing))


@pytest.mark.unit
@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_parameter_has_a_gradient_in_every_update(model_config, pre_norm):
    """Without the finest set no loss looks at the last block: DDP would stop the run at the next update."""
    probe = MissingGradients()
    config = model_config(
        "model.drop_label_sets=2", f"++model.encoder.pre_norm={pre_norm}", "model.encoder.layerdrop=0.5"
    )
    train_split(config, [[[0, 1]]], updates=8, callbacks=[probe])
    assert any(40 not in kept for kept, _ in probe.updates)
    assert [missing for _, missing in probe.updates] == [[]] * 8


# --- Visible frames --------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_visible_frames_enter_the_loss_as_weighted(make_model):
    """`unmasked_weight` is HuBERT's loss at visible frames, counted over visible rows only."""
    model = make_model("model.swap=false", "model.unmasked_weight=0.5")
    batch = collate([utterance(number) for number in range(2)])
    masks = every_second_frame(batch["length"], batch["audio"].shape[1])
    views = model(batch["audio"], batch["length"], masks.mask_BT)
    visible_sum, count = model._unmasked_loss(views, batch["labels"], [40, 20, 10], masks)
    expected, rows = 0.0, 0
    for clusters in (40, 20, 10):
        labels_BT = model._labels_of_set(batch["labels"], clusters)
        head, x_VBTD = model.label_heads.heads[str(clusters)], views.tapped[model.layer_of_set[clusters]]
        for utt, frame in (~masks.mask_BT & (labels_BT != -100)).nonzero().tolist():
            log_probs = head(x_VBTD[0, utt, frame]).log_softmax(-1)
            expected -= log_probs[labels_BT[utt, frame]].item()
            rows += 1
    assert count == rows // 3
    assert visible_sum.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.01])
def test_the_feature_penalty_is_that_of_all_frames_in_the_loss(model_config, unmasked_weight):
    """fairseq multiplies it by their number before it divides by it; else a loss at visible frames would halve it."""
    settings = ["model.swap=false", f"model.unmasked_weight={unmasked_weight}", "model.loss.penalty_weight=1e6"]
    trained = train_split(model_config(*settings), [[[0, 1]]], updates=1, log_every_n_steps=1)
    logged = trained.trainer.callback_metrics
    assert float(logged["train_loss"]) == pytest.approx(1e6 * float(logged["feature_penalty"]), rel=1e-3)


@pytest.mark.unit
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.5])
@pytest.mark.parametrize("logged", [False, True])
def test_an_update_is_the_gradient_of_the_loss_written_out(model_config, unmasked_weight, swap, logged):
    """Of masked frames, of visible ones as weighted, and of the penalty: a part of the loss may be in its value and
    train nothing. Where it is logged, the last block computes visible frames, too."""
    rate = 0.25
    settings = [
        f"model.unmasked_weight={unmasked_weight}",
        "model.loss.penalty_weight=3",
        f"model.swap={swap}".lower(),
    ]
    config = model_config(*settings, optim={"name": "sgd", "lr": rate})
    batch = collate([utterance(number, frames=20) for number in range(2)])  # of one length: no padding

    torch.manual_seed(0)
    model = MSHuBERTModel(config).train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    features = []
    model.encoder.feature_extractor.register_forward_hook(lambda *call: features.append(call[2][0]))
    masks = every_second_frame(batch["length"], batch["audio"].shape[1])
    views = model(batch["audio"], batch["length"], masks.mask_BT)
    total, rows = 0.0, 0
    for shown, weight in ((masks.mask_BT, 1.0), (~masks.mask_BT, unmasked_weight)):
        if weight == 0:
            continue
        for clusters, layer in model.layer_of_set.items():
            labels_BT = model._labels_of_set(batch["labels"], clusters)
            for x_BTD in views.tapped[layer]:
                logits = model.label_heads.heads[str(clusters)](x_BTD[shown])
                total = total + weight * torch.nn.functional.cross_entropy(logits, labels_BT[shown], reduction="sum")
        rows += int(shown.sum()) * len(views.tapped[layer])
    total = total / rows + 3 * features[0].float().square().mean()
    expected = dict(zip(before, torch.autograd.grad(total, list(model.parameters()), allow_unused=True)))

    trained = train(config, [[batch]], updates=1, log_every_n_steps=1 if logged else 2)
    for name, weight in trained.named_parameters():
        step = (before[name] - weight.detach()) / rate
        gradient = torch.zeros_like(step) if expected[name] is None else expected[name]
        # the rounding of weights, in steps
        torch.testing.assert_close(step, gradient, rtol=1e-3, atol=2e-6 / rate + 1e-4 * gradient.abs().max().item())


@pytest.mark.unit
def test_visible_frames_are_computed_where_something_looks_at_them(model_config, monkeypatch):
    """Half of the last block for nothing in every update, or accuracies at frames that do not exist."""
    rows, original = [], FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: rows.append(x.shape[:-1].numel()) or original(self, x))
    same = batch(0, 1)
    masked = int(every_second_frame(same["length"], same["audio"].shape[1]).mask_BT.sum())
    frames = 2 * 2 * frame_count(same["audio"].shape[1])  # views, utterances
    for weight, expected in ((0.0, [2 * masked, frames, 2 * masked]), (0.5, [frames] * 3)):
        rows.clear()
        config = model_config(f"model.unmasked_weight={weight}", "model.encoder.layerdrop=0")
        train(config, [[same] * 3], updates=3)
        assert rows[3::4] == expected  # of the last of four blocks, and both views


# --- What is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_every_micro_batch_draws_anew_and_by_the_seed(model_config, monkeypatch):
    """Masks, dropout and layerdrop that repeat themselves, or that ranks share, would be a smaller task; those
    of another seed, another run. A block is skipped by all ranks or none: one would wait for the other's shards."""
    draws = {"masks": [], "dropout": [], "layerdrop": []}

    def masks(length, num_samples, generator):
        draws["masks"].append(generator.initial_seed())
        draws["dropout"].append(torch.initial_seed())
        return every_second_frame(length, num_samples)

    def forward_views(self, signal, length, mask_BT, layers, use_swap, generator, wanted_W):
        draws["layerdrop"].append(generator.initial_seed())
        return original(self, signal, length, mask_BT, layers, use_swap, generator, wanted_W)

    original = MSHuBERTEncoder.forward_views
    monkeypatch.setattr(MSHuBERTEncoder, "forward_views", forward_views)
    monkeypatch.setattr(fixed_update, "every_second_frame", masks)
    for seed, rank in ((1, 0), (2, 0), (1, 1)):
        monkeypatch.setattr(MSHuBERTModel, "data_ranks", DataRanks(rank, 2))
        micro_batches = [collate([utterance(number)]) for number in (0, 1)] * 2
        train(model_config(f"model.seed={seed}"), [micro_batches] * 2, updates=2, accumulate_grad_batches=2)
    for name, seeds in draws.items():
        assert len(seeds[:8]) == len(set(seeds[:8])) == 8, name
        assert len(set(seeds)) == (8 if name == "layerdrop" else 12), name
        assert name != "layerdrop" or seeds[8:] == seeds[:4]  # of seed 1


@pytest.mark.unit
def test_the_weight_of_visible_frames_is_the_one_asked_for(model_config):
    """The loss is linear in it."""
    losses = []
    for weight in (0.25, 0.5, 0.75):
        config = model_config("model.swap=false", f"model.unmasked_weight={weight}")
        losses.append(float(train_split(config, [[[0, 1]]], updates=1).trainer.callback_metrics["train_loss"]))
    first, second = losses[1] - losses[0], losses[2] - losses[1]
    assert first == pytest.approx(second, rel=1e-3) and first > 0.1


@pytest.mark.unit
def test_frames_without_a_label_are_not_counted(model_config):
    """A batch of unreadable files has none: its silence must not make the update smaller."""
    config = model_config("model.loss.penalty_weight=0")
    expected = train(config, [[collate([utterance(1)])]], updates=1)
    name, samples, labels = utterance(2, frames=20)
    unlabelled = name, samples, {clusters: np.full_like(row, -100) for clusters, row in labels.items()}
    found = train(config, [[collate([utterance(1), unlabelled])]], updates=1)
    assert difference(found.state_dict(), expected.state_dict()) < 1e-5


@pytest.mark.unit
def test_training_metrics_by_hand():
    """What is watched for weeks: of masked frames, of visible ones, per labelled frame."""
    logits = {3: torch.eye(3)[[0, 1, 2, 0]]}
    labels = [torch.tensor([0, 1, 0, -100])]  # two of three right
    shown = {3: torch.eye(3)[[0, 1, 1, 1, 1, 1]]}, [torch.tensor([0, 0, 0, 0, 0, -100])]  # one of five
    metrics = training_metrics((logits, labels), shown, [torch.tensor(6.0)])
    assert metrics["train_3/masked_accuracy"] == pytest.approx(2 / 3)
    assert metrics["train_3/unmasked_accuracy"] == pytest.approx(1 / 5)
    assert metrics["train_3/loss"] == pytest.approx(2.0)
    assert float(metrics["train_3/label_entropy_bits"]) == pytest.approx(0.9183, abs=1e-4)  # of shares 2/3 and 1/3
    sums = validation_sums((logits, labels), shown, [torch.tensor(6.0)], torch.tensor(3))
    means = validation_means({name: value.double() for name, value in sums.items()}, [3])
    assert means["val_loss"] == pytest.approx(2.0)
    for name in ("masked_accuracy", "unmasked_accuracy", "label_entropy_bits"):
        assert float(means[f"val_3/{name}"]) == pytest.approx(float(metrics[f"train_3/{name}"]))


@pytest.mark.unit
def test_a_batch_without_labels_leaves_no_gap_in_the_curves():
    """Of unreadable files alone, all of whose frames may be masked: NaN, as of a run that has diverged."""
    nothing = {3: torch.eye(3)[:0]}, [torch.zeros(0, dtype=torch.long)]
    unlabelled = {3: torch.eye(3)}, [torch.full((3,), -100)]
    metrics = training_metrics(unlabelled, nothing, [torch.tensor(0.0)])
    sums = validation_sums(unlabelled, nothing, [torch.tensor(0.0)], torch.tensor(0))
    assert not any(metrics.values()) and float(validation_means(sums, [3])["val_loss"]) == 0


@pytest.mark.unit
def test_without_swap_there_are_no_views_to_compare():
    """Validations of HuBERT would end in a TypeError."""
    views = SimpleNamespace(tapped={4: torch.ones(1, 2, 3, 8)})
    assert view_cosines(views, torch.tensor([0, 4]), torch.tensor([1])) == {"masked_frames": 2, "unmasked_frames": 1}


@pytest.mark.unit
def test_each_kept_label_set_has_its_curves(config, monkeypatch):
    """In TensorBoard, by which a run of weeks is judged; a set that an update leaves out has no point there."""
    shown = []  # labels of the visible frames
    monkeypatch.setattr(
        mshubert_model, "training_metrics", lambda *given: shown.append(given[1][1][0]) or training_metrics(*given)
    )
    model = train_split(config, [[[0, 1]]], updates=2)  # of which the second is logged
    curves = ("loss", "masked_accuracy", "unmasked_accuracy", "label_entropy_bits")
    expected = {f"train_{clusters}/{curve}" for clusters in model._kept_sets(1) for curve in curves}
    logged = set(model.trainer.logged_metrics)
    assert len(expected) == 8 and {name for name in logged if name.startswith("train_") and "/" in name} == expected
    assert {"train_loss", "learning_rate", "feature_penalty", "grad_norm", "nonfinite_steps"} <= logged
    assert float(model.trainer.logged_metrics["learning_rate"]) == 0.5
    same = batch(0, 1)
    labels_BT = model._labels_of_set(same["labels"], model._kept_sets(1)[0])
    visible_U = every_second_frame(same["length"], same["audio"].shape[1]).visible_U
    assert shown[-1].equal(labels_BT.flatten()[visible_U].repeat(2))  # both views
