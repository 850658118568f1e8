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

"""Training split over ranks, by tensor parallelism or in shards, is the training of one process."""

import os
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch._inductor.config
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from nemo_mshubert.data.pretraining_dataset import collate
from nemo_mshubert.models.loading import restore_model
from nemo_mshubert.parallel.registration import register, strategies
from nemo_mshubert.parallel.sharded import ShardedStrategy
from tests.conftest import compose_tiny, model_section, needs_compiler
from tests.models import fixed_update
from tests.models.fixed_update import train, utterance
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit
UPDATES = 20
CLIP = 2.0  # below most norms
HALVES = [[[0], [1]], [[2], [3]]]  # data parts, micro-batches, utterances: two of each
WHOLE = [[[0, 1], [2, 3]]]
QUARTERS = [[[0]], [[1]], [[2]], [[3]]]
# A large eps: Adam makes steps of full size of a gradient that is nothing but rounding, such as that of the bias of
# keys.
ADAM = {"lr": 3e-3, "betas": [0.9, 0.98], "eps": 1e-3, "weight_decay": 0.01}


class Saver(pl.Callback):
    """Writes a checkpoint at ``updates`` and one at the end, and a ``.nemo`` at the end."""

    def __init__(self, folder, updates):
        self.folder, self.updates = folder, updates

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.updates and not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.folder / "half.ckpt")

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / "end.ckpt")
        kept = pl_module.cfg, pl_module._save_restore_connector
        pl_module.save_to(str(self.folder / "end.nemo"))
        assert (pl_module.cfg, pl_module._save_restore_connector) == kept  # else the whole weights stay in memory


def train_in(folder, config, parts, devices=1, updates=UPDATES, **options):
    """Updates on the utterances of ``parts``; leaves half.ckpt, end.ckpt and end.nemo in the folder."""
    register()
    folder.mkdir(parents=True, exist_ok=True)
    batches = [[collate([utterance(n) for n in micro]) for micro in part] * updates for part in parts]
    trained = train(
        config,
        batches,
        updates,
        devices,
        accumulate_grad_batches=len(parts[0]),
        gradient_clip_val=CLIP,
        callbacks=[Saver(folder, updates // 2)],
        **options,
    )
    return float(trained.trainer.callback_metrics["train_loss"]), float(trained.trainer.callback_metrics["grad_norm"])


def difference(one, other):
    """Largest difference of two state dicts, in units of the largest weight of each tensor."""
    assert one.keys() == other.keys()
    return max(
        ((one[name] - other[name]).abs().max() / (other[name].abs().max() + 1e-3)).item()
        for name in one
        if one[name].is_floating_point()
    )


def checkpoint(folder, name="end.ckpt"):
    return torch.load(folder / name, map_location="cpu", weights_only=False)


def assert_same_training(folder, expected, tolerance=2e-4):
    """Weights, moments and step of the checkpoints at the end; tolerance: what rounding becomes in 20 updates."""
    ours, theirs = checkpoint(folder), checkpoint(expected)
    assert ours["global_step"] == theirs["global_step"] == UPDATES
    assert difference(ours["state_dict"], theirs["state_dict"]) < tolerance
    (ours,), (theirs,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, moments in theirs["state"].items():
        for key in ("exp_avg", "exp_avg_sq"):
            scale = moments[key].abs().max() + 1e-6
            assert ((ours["state"][index][key] - moments[key]).abs().max() / scale).item() < 100 * tolerance, (
                index,
                key,
            )


@pytest.fixture(scope="module")
def config(labelled):
    """Swap, layerdrop, a dropped label set."""
    config = compose_tiny(labelled, "model.drop_label_sets=1", "model.encoder.layerdrop=0.3")
    config.model.optim = {"name": "adamw", **ADAM}
    return model_section(config)


@pytest.fixture(scope="module")
def one_process(config, tmp_path_factory):
    """Folder of the training without any split, and its last loss and gradient norm."""
    folder = tmp_path_factory.mktemp("one")
    return folder, train_in(folder, config, WHOLE)


@pytest.fixture(scope="module")
def ddp(config, tmp_path_factory):
    """Folder of the training of two ranks under plain DDP, and the last loss and gradient norm of the first."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, run_on_ranks(2, lambda: train_in(folder, config, HALVES, 2, strategy="ddp"))[0]


@pytest.fixture
def megatron(config):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    config = config.copy()
    config.encoder.transformer_backend = "megatron"
    return config


# --- Tensor parallelism ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(config, tmp_path_factory):
    """Folder of the training with tensor parallelism over two ranks, and what each of them returned."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    split, folder = config.copy(), tmp_path_factory.mktemp("two")
    split.encoder.transformer_backend = "megatron"
    return folder, run_on_ranks(2, lambda: train_in(folder, split, WHOLE, 2, strategy="megatron_tp2"))


def test_tensor_parallel_training_is_that_of_one_process(one_process, two_ranks):
    """After 20 updates with Swap, layerdrop, dropped sets, accumulation and clipping: the checkpoint is plain, and
    equal."""
    (expected, metrics), (folder, (first, second)) = one_process, two_ranks
    assert_same_training(folder, expected)
    assert first == pytest.approx(second, rel=1e-6) and first == pytest.approx(metrics, rel=1e-3)


def test_an_utterance_less_is_another_training(one_process, config, tmp_path):
    """The comparison can fail."""
    less = [[[0, 1], [2]]]
    train_in(tmp_path / "other", config, less)
    assert difference(checkpoint(tmp_path / "other")["state_dict"], checkpoint(one_process[0])["state_dict"]) > 1e-2


def test_ranks_of_one_model_draw_alike(config, megatron, tmp_path, monkeypatch):
    """Parts of one model with other masks or dropout would be parts of different ones; other data draws its own."""
    drawn, masks = [], fixed_update.every_second_frame

    def note(length, num_samples, generator):
        drawn.append((torch.initial_seed(), generator.initial_seed()))  # of dropout, of masks
        return masks(length, num_samples, generator)

    def seeds(config, parts, strategy):
        train_in(tmp_path / strategy, config, parts, 2, updates=2, strategy=strategy)
        return drawn

    monkeypatch.setattr(fixed_update, "every_second_frame", note)
    one, other = run_on_ranks(2, seeds, megatron, WHOLE, "megatron_tp2")
    assert one == other and len(set(one)) == len(one) == 4
    one, other = run_on_ranks(2, seeds, config, HALVES, "ddp")
    assert not {draw for pair in one for draw in pair} & {draw for pair in other for draw in pair}


def test_nemo_file_of_split_model_is_plain(two_ranks):
    """It restores where there is no megatron-core: whole weights, the torch backend."""
    model = restore_model(two_ranks[0] / "end.nemo")
    assert model.cfg.encoder.transformer_backend == "torch"
    assert difference(model.state_dict(), checkpoint(two_ranks[0])["state_dict"]) == 0


def test_split_training_resumes_whole_and_whole_training_split(
    one_process, two_ranks, config, megatron, tmp_path, monkeypatch
):
    """From a checkpoint at half of the updates: the number of ranks of a long run may change."""
    expected, _ = one_process
    train_in(tmp_path / "whole", config, WHOLE, resume=two_ranks[0] / "half.ckpt")
    assert_same_training(tmp_path / "whole", expected)
    half = expected / "half.ckpt"
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")  # which megatron-core asks for
    strategy = "megatron_tp2_sp"
    run_on_ranks(2, lambda: train_in(tmp_path / "split", megatron, WHOLE, 2, strategy=strategy, resume=half))
    assert_same_training(tmp_path / "split", expected)


def test_blocks_share_their_frames_where_that_is_asked_for(monkeypatch):
    """The training is the same without, but needs the memory that it was to save."""
    module = pytest.importorskip("nemo_mshubert.parallel.tensor_parallel", reason="megatron-core is not installed")
    asked = []
    monkeypatch.setattr(module, "split_blocks", lambda layers, sequence_parallel: asked.append(sequence_parallel))
    monkeypatch.setattr(module, "broadcast_weights", lambda model, device: None)
    monkeypatch.setattr(module.TensorParallelStrategy, "root_device", torch.device("cpu"))
    model = SimpleNamespace(encoder=SimpleNamespace(transformer_backend="megatron", layers=[]))
    for kind, options in (strategies()["megatron_tp2"], strategies()["megatron_tp2_sp"]):
        kind(**options).split_model(model)
    assert asked == [False, True]


def test_data_parallel_over_the_other_ranks(ddp, megatron, tmp_path):
    """Four ranks are two halves of the data, each over a split model; the optimizer's moments lie on all of them."""
    megatron.optim.name = "sharded_adamw"
    run_on_ranks(4, lambda: train_in(tmp_path / "whole", megatron, HALVES, 4, strategy="megatron_tp2"))
    assert_same_training(tmp_path / "whole", ddp[0])

    def resume():
        train_in(tmp_path / "half", megatron, HALVES, 4, strategy="megatron_tp2", resume=ddp[0] / "half.ckpt")

    run_on_ranks(4, resume)
    assert_same_training(tmp_path / "half", ddp[0])


@pytest.mark.parametrize("failing", ["0", "1"])
def test_a_batch_that_one_rank_read_otherwise_ends_the_run(megatron, tmp_path, failing):
    """A file system that fails one of two ranks of a model: NCCL would wait for the sizes of the other forever."""

    def rank():
        parts = [[[0, 1], [3]]] if os.environ["RANK"] == failing else [[[0, 1], [2, 3]]]
        with pytest.raises(RuntimeError, match="^Ranks 0 and the 1 after it .* could read \\['u2'\\]"):
            train_in(tmp_path, megatron, parts, 2, updates=1, strategy="megatron_tp2")

    run_on_ranks(2, rank)


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_every_batch_is_compared_among_the_ranks_of_a_model(monkeypatch, step):
    """Of a validation, too, whose files may be on another disk."""
    module = pytest.importorskip("nemo_mshubert.parallel.tensor_parallel", reason="megatron-core is not installed")
    strategy, done = module.TensorParallelStrategy(tensor_parallel_size=2), []
    monkeypatch.setattr(module.DDPStrategy, step, lambda self, batch, number: done.append(f"{batch} {number}"))
    monkeypatch.setattr(strategy, "_check_batch", lambda batch: done.append(f"{batch} is compared"))
    getattr(strategy, step)("batch", 7)
    assert done == ["batch is compared", "batch 7"]


class Rounding(pl.Callback):
    """Gradients of the front end of rank 1 are a little larger, as by kernels that sum in no fixed order."""

    def on_fit_start(self, trainer, pl_module):
        for parameter in pl_module.encoder.feature_extractor.parameters():
            parameter.register_hook(lambda gradient: gradient * (1 + 1e-3 * trainer.global_rank))


def test_ranks_of_one_model_do_not_drift_apart(megatron):
    """After 400,000 updates they would be parts of different models."""

    def rank():
        batches = [[collate([utterance(n)]) for n in (0, 1, 2, 3)]]
        options = dict(accumulate_grad_batches=2, strategy="megatron_tp2", callbacks=[Rounding()])
        register()
        return dict(train(megatron, batches, 2, 2, **options).encoder.feature_extractor.state_dict())

    one, other = run_on_ranks(2, rank)
    assert one and all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_backend_and_strategy_go_together(config, tmp_path):
    """One without the other would train something else than asked for."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    with pytest.raises(AssertionError, match="transformer_backend=megatron"):
        run_on_ranks(2, lambda: train_in(tmp_path, config, WHOLE, 2, strategy="megatron_tp2"))
    with pytest.raises(ValueError, match="trainer.strategy=megatron_tp2"):
        split = config.copy()
        split.encoder.transformer_backend = "megatron"
        train_in(tmp_path, split, WHOLE)
    split.compile = True
    with pytest.raises(AssertionError, match="model.compile=true is for the blocks of"):
        run_on_ranks(2, lambda: train_in(tmp_path, split, WHOLE, 2, strategy="megatron_tp2"))


@needs_compiler
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_compiled_blocks_on_two_ranks(ddp, config, tmp_path, strategy):
    """``model.compile=true``: a graph that misses DDP's or FSDP2's hooks would train every rank on its own."""
    compiled = config.copy()
    compiled.compile = True

    def rank():
        torch._inductor.config.compile_threads = 1  # a fork has not the processes with which the test's own compiles
        train_in(tmp_path, compiled, HALVES, 2, strategy=strategy)
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    assert min(run_on_ranks(2, rank)) > 0
    assert_same_training(tmp_path, ddp[0])


# --- Shards ----------------------------------------------------------------------------------------------------------


class Layout(pl.Callback):
    """What each rank holds of the weights, at the start of training."""

    def on_train_start(self, trainer, pl_module):
        blocks = [*pl_module.encoder.layers, *pl_module.label_heads.heads.values()]
        self.units = [isinstance(block, FSDPModule) for block in blocks]
        split = [weight for weight in pl_module.parameters() if isinstance(weight, DTensor)]
        self.is_split = [isinstance(weight, DTensor) for block in blocks for weight in block.parameters()]
        self.meshes = {weight.device_mesh.shape for weight in split}
        self.share = sum(weight.to_local().numel() for weight in split) / sum(weight.numel() for weight in split)


@pytest.mark.parametrize("shard_size, mesh", [(4, (1, 4)), (2, (2, 2)), (1, (4, 1))])
def test_every_rank_holds_its_share(config, shard_size, mesh):
    """Training that is right but not split needs the memory that the user does not have."""

    def rank():
        layout = Layout()
        strategy = ShardedStrategy(shard_size=shard_size)
        batches = [[collate([utterance(n)])] for n in range(4)]
        train(config, batches, 1, 4, strategy=strategy, callbacks=[layout])
        return layout.units, layout.is_split, layout.meshes, layout.share

    for units, is_split, meshes, share in run_on_ranks(4, rank):
        assert all(units) and all(is_split) and meshes == {mesh}
        assert share == pytest.approx(1 / shard_size, abs=0.05)


def test_sharded_training_is_that_of_ddp(ddp, config, tmp_path):
    """FSDP2 over two ranks is DDP: weights, moments, clipping by the norm of all shards, zero gradients of what is
    skipped."""
    metrics = run_on_ranks(2, lambda: train_in(tmp_path, config, HALVES, 2, strategy="fsdp2"))
    assert_same_training(tmp_path, ddp[0])
    assert metrics[0][1] == pytest.approx(ddp[1][1], rel=1e-3)
    model = restore_model(tmp_path / "end.nemo")
    assert difference(model.state_dict(), checkpoint(tmp_path)["state_dict"]) == 0


def test_sets_that_are_dropped_behind_a_validation_are_those_of_ddp(ddp, config, tmp_path):
    """A validation runs all heads. Those dropped in the next update would miss it: their moments would go another way,
    and without any, as behind a sanity check, the best checkpoint could not be loaded at the end of a run."""
    validation = dict(limit_val_batches=1, num_sanity_val_steps=1, val_check_interval=2)
    run_on_ranks(2, lambda: train_in(tmp_path, config, HALVES, 2, strategy="fsdp2", **validation))
    assert_same_training(tmp_path, ddp[0])


def test_copies_of_shards_are_one_model(config, tmp_path):
    """Two copies in two shards each, as of two nodes with two GPUs (HSDP): gradients are summed over shards and
    copies."""
    for name, strategy in (("ddp", "ddp"), ("copies", ShardedStrategy(shard_size=2))):
        run_on_ranks(4, lambda: train_in(tmp_path / name, config, QUARTERS, 4, strategy=strategy))
    assert_same_training(tmp_path / "copies", tmp_path / "ddp")


@pytest.mark.parametrize("layerdrop, micro_batches", [(0.0, 4), (0.3, 6)])
def test_copies_are_summed_once_in_an_update(config, monkeypatch, layerdrop, micro_batches):
    """Four updates of two epochs with three micro-batches, so that every second one is of the odd one alone. A sum in
    each micro-batch makes nodes wait for their network; one that is missed makes the copies different models."""
    config = config.copy()
    config.encoder.layerdrop, config.drop_label_sets = layerdrop, 0
    options = dict(accumulate_grad_batches=2, gradient_clip_val=CLIP)
    whole = [collate([utterance((first + rank) % 4) for rank in range(4)]) for first in range(3)]
    expected = train(config, [whole], 4, **options).state_dict()
    sums, all_reduce = [], torch.distributed.all_reduce

    def noted(tensor, *args, group=None, **kwargs):
        sums.append(group is not None and group.size() == 2)  # not those over all ranks
        return all_reduce(tensor, *args, group=group, **kwargs)

    def rank():
        monkeypatch.setattr(torch.distributed, "all_reduce", noted)
        parts = [[collate([utterance((first + rank) % 4)]) for first in range(3)] for rank in range(4)]
        model = train(config, parts, 4, 4, strategy=ShardedStrategy(shard_size=2), **options)
        weights = model.trainer.strategy.lightning_module_state_dict()
        return weights, sum(sums)

    results = run_on_ranks(4, rank)
    assert difference(results[0][0], expected) < 1e-5
    units = len(config.label_sets) + config.encoder.num_layers + 1  # heads, blocks, and what is around these
    assert all(count <= micro_batches * units for _, count in results)  # none of a block that is skipped
    assert layerdrop > 0 or results[0][1] == micro_batches * units


def test_sharded_training_resumes(ddp, config, tmp_path):
    """From a checkpoint of DDP."""
    half = ddp[0] / "half.ckpt"
    run_on_ranks(2, lambda: train_in(tmp_path, config, HALVES, 2, strategy="fsdp2", resume=half))
    assert_same_training(tmp_path, ddp[0])
