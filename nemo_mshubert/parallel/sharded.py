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

"""FSDP2 as a Lightning strategy: weights, gradients and moments in shards, for models that do not fit one GPU.

The shards are spread over the GPUs of a node, and nodes hold copies (HSDP), so that weights are gathered within a
node. Checkpoints are single files, as with DDP: they resume with any number of ranks.
"""

from typing import Any, Dict, Optional

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from nemo_mshubert.parallel.ranks import broadcast_weights


class ShardedStrategy(ModelParallelStrategy):
    """Every transformer block and label head is gathered for its own forward and backward pass.

    Args:
        shard_size: ranks that share one copy of the weights; None: the ranks of a node.
    """

    def __init__(self, shard_size: Optional[int] = None, **kwargs: Any):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)
        self.shard_size = shard_size

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def distributed_sampler_kwargs(self) -> Dict[str, Any]:
        """Every rank has its own part of the data."""
        return {"num_replicas": self.num_nodes * self.num_processes, "rank": self.global_rank}

    def split_model(self, model) -> None:
        """Called from `MSHuBERTModel.configure_model`: split the weights of rank 0 into shards.

        Raises:
            ValueError: the ranks are no multiple of ``shard_size``.
        """
        shard_size = self.shard_size or self.num_processes
        if self.world_size % shard_size:
            raise ValueError(
                f"{self.world_size} ranks are no multiple of shard_size {shard_size}: change it, trainer.devices or "
                "trainer.num_nodes."
            )
        broadcast_weights(model, self.root_device)
        mesh = init_device_mesh(
            self.root_device.type, (self.world_size // shard_size, shard_size), mesh_dim_names=("copies", "shards")
        )
        for layer in model.encoder.layers:
            fully_shard(layer, mesh=mesh)
        for head in model.label_heads.heads.values():
            # As parts of nothing, they would stay gathered behind a validation, and `zero_touch` miss their shards.
            fully_shard(head, mesh=mesh, reshard_after_forward=True)
        fully_shard(model.encoder, mesh=mesh)
        register_fsdp_forward_method(model.encoder, "forward_views")

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Sum gradients over the shards of a copy in every micro-batch, but over the copies, between nodes, only in
        the last one of an update. With layerdrop, sum over the copies every time: otherwise the sums of a block that
        the last micro-batch skips would stay within a copy."""
        model = self.lightning_module
        over_copies = model.encoder.layerdrop > 0 or not model.trainer.fit_loop._should_accumulate()
        for part in [model.encoder, *model.label_heads.heads.values()]:
            part.set_requires_all_reduce(over_copies)
        return super().training_step(*args, **kwargs)
