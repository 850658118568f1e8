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

"""Which part of the data a rank has, and what one rank of each node checks for the others."""

import os
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from nemo_mshubert.parallel.launched import LONGEST_WAIT
from nemo_mshubert.parallel.ranks import data_ranks, on_one_rank_of_each_node
from nemo_mshubert.parallel.sharded import ShardedStrategy
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


def parts(kind, **sharing):
    """The part of each rank of two nodes with four GPUs each."""

    def part(rank):
        strategy = SimpleNamespace(num_nodes=2, num_processes=4, global_rank=rank, local_rank=rank % 4, **sharing)
        strategy.distributed_sampler_kwargs = kind.distributed_sampler_kwargs.fget(strategy)
        return data_ranks(SimpleNamespace(strategy=strategy, world_size=8, global_rank=rank))

    return [part(rank) for rank in range(8)]


def test_parts_of_the_data():
    """A part that no rank has would never be heard, and one that two ranks have, twice."""
    assert data_ranks(None) == data_ranks(SimpleNamespace(strategy=None)) == (0, 1)
    assert parts(ShardedStrategy) == [(rank, 8) for rank in range(8)]


def test_ranks_that_share_a_model_have_one_part():
    """Neighbours, which are GPUs of one node. With a part each, they would compute parts of different batches."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from nemo_mshubert.parallel.tensor_parallel import TensorParallelStrategy

    found = parts(TensorParallelStrategy, tensor_parallel_size=2)
    assert found == [(0, 4), (0, 4), (1, 4), (1, 4), (2, 4), (2, 4), (3, 4), (3, 4)]


def test_ranks_that_make_no_groups_are_told_what_to_change(monkeypatch):
    """The libraries' own errors name none of the options."""
    monkeypatch.setattr(ShardedStrategy, "world_size", 4)
    with pytest.raises(ValueError, match="^4 ranks are no multiple of shard_size 3: change it, trainer.devices or"):
        ShardedStrategy(shard_size=3).split_model(None)
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from nemo_mshubert.parallel.tensor_parallel import TensorParallelStrategy

    monkeypatch.setattr(DDPStrategy, "setup_distributed", lambda self: None)
    monkeypatch.setattr(TensorParallelStrategy, "world_size", 3)
    with pytest.raises(ValueError, match="^3 ranks are no multiple of tensor_parallel_size 2: change trainer.devices"):
        TensorParallelStrategy(tensor_parallel_size=2).setup_distributed()


def test_what_one_node_cannot_read_ends_all(monkeypatch):
    """Two nodes with a rank each: the second lacks a file that the first has. It may take longer to find out than a
    collective waits."""
    waits, new_group = [], torch.distributed.new_group
    monkeypatch.setattr(
        torch.distributed, "new_group", lambda **options: waits.append(options["timeout"]) or new_group(**options)
    )

    def check(rank, name):
        if rank == 1:
            raise ValueError(f"{name}: no such file on node 1")

    def node():
        strategy = SimpleNamespace(
            cluster_environment=None, setup_environment=lambda: torch.distributed.init_process_group("gloo")
        )
        rank = int(os.environ["RANK"])
        trainer = SimpleNamespace(local_rank=0, global_rank=rank, world_size=2, strategy=strategy)
        with pytest.raises(ValueError, match="train.json: no such file on node 1"):
            on_one_rank_of_each_node(trainer, check, rank, "train.json")
        return waits

    assert run_on_ranks(2, node) == [[LONGEST_WAIT]] * 2


def test_ranks_that_lightning_starts_are_not_waited_for():
    """They do not run yet: the first one would wait for them before it starts them."""
    checked = []
    strategy = SimpleNamespace(cluster_environment=LightningEnvironment())
    trainer = SimpleNamespace(local_rank=0, global_rank=0, world_size=2, strategy=strategy)
    on_one_rank_of_each_node(trainer, checked.append, "train.json")
    assert checked == ["train.json"]
