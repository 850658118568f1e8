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

"""Tensor parallelism as a Lightning strategy: DDP over groups of ranks that hold parts of one model.

Ranks ``p i ... p i + p - 1`` form tensor-parallel group i and see the same data; ranks with the same part of the model
form one DDP group. Checkpoints are plain, as without this strategy: they resume with any number of ranks.
"""

from typing import Any, Dict, List, Mapping, Optional

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from nemo_mshubert.modules.transformer_megatron import (
    gather_state_dict,
    gather_tensor,
    split_blocks,
    split_dimension,
    split_state_dict,
    split_tensor,
)
from nemo_mshubert.parallel.ranks import broadcast_weights


class TensorParallelStrategy(DDPStrategy):
    """DDP, gloo on CPUs and NCCL on GPUs, with transformer blocks split by megatron-core.

    Args:
        tensor_parallel_size: ranks that share a model; they should be GPUs of one node.
        sequence_parallel: they also share the frames between the matrix products, which saves activation memory.
    """

    def __init__(self, tensor_parallel_size: int, sequence_parallel: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.tensor_parallel_size = tensor_parallel_size
        self.sequence_parallel = sequence_parallel

    # --- Ranks ---------------------------------------------------------------------------------------------------

    def setup_distributed(self) -> None:
        super().setup_distributed()
        if self.world_size % self.tensor_parallel_size:
            raise ValueError(
                f"{self.world_size} ranks are no multiple of tensor_parallel_size {self.tensor_parallel_size}: change "
                "trainer.devices or trainer.num_nodes."
            )
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel(tensor_model_parallel_size=self.tensor_parallel_size)
        self._ddp_kwargs["process_group"] = parallel_state.get_data_parallel_group()
        self._host_group, _ = torch.distributed.new_subgroups(
            self.tensor_parallel_size, backend="gloo", timeout=self._timeout
        )

    @property
    def distributed_sampler_kwargs(self) -> Dict[str, Any]:
        """Parts of the data: one per tensor-parallel group."""
        ranks = self.num_nodes * self.num_processes
        return {
            "num_replicas": max(ranks // self.tensor_parallel_size, 1),
            "rank": self.global_rank // self.tensor_parallel_size,
        }

    def teardown(self) -> None:
        super().teardown()
        parallel_state.destroy_model_parallel()

    # --- Model ---------------------------------------------------------------------------------------------------

    def split_model(self, model) -> None:
        """Called from `MSHuBERTModel.configure_model`: split the weights of rank 0 over the ranks of each group.

        Raises:
            ValueError: the encoder does not ask for megatron, or cannot be split over so many ranks.
        """
        encoder = model.encoder
        if encoder.transformer_backend != "megatron":
            raise ValueError(
                "tensor parallelism needs model.encoder.transformer_backend=megatron (the config group parallel sets "
                "it)."
            )
        broadcast_weights(model, self.root_device)
        split_blocks(encoder.layers, self.sequence_parallel)

    # --- Data ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._check_batch(batch)
        return super().training_step(batch, *args, **kwargs)

    def validation_step(self, batch: Dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._check_batch(batch)
        return super().validation_step(batch, *args, **kwargs)

    def _check_batch(self, batch: Dict[str, Any]) -> None:
        """Each rank of a group reads the batch itself. If a file system failed on one of them, tensors of different
        sizes would meet in a collective, and GPUs would wait there forever."""
        read = [None] * self.tensor_parallel_size
        torch.distributed.all_gather_object(read, batch["utterances"], group=self._host_group)
        failed = sorted(set().union(*read).difference(set(read[0]).intersection(*read)))
        if failed:
            raise RuntimeError(
                f"Ranks {self.global_rank // self.tensor_parallel_size * self.tensor_parallel_size} and the "
                f"{self.tensor_parallel_size - 1} after it share a model, but not all of them could read {failed}. "
                "Look into the file system; the same command goes on from the last checkpoint."
            )

    # --- Gradients -----------------------------------------------------------------------------------------------

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        if not self.lightning_module.trainer.fit_loop._should_accumulate():
            self._average_gradients_of_whole_weights()

    def _average_gradients_of_whole_weights(self) -> None:
        """Every rank of a group has computed these gradients itself. GPU kernels whose sums have no fixed order would
        let the weights of the ranks drift apart, since nothing else ever brings them together."""
        parameters = self.lightning_module.parameters()
        whole = [p.grad for p in parameters if p.grad is not None and not getattr(p, "tensor_model_parallel", False)]
        mean = torch.cat([gradient.flatten() for gradient in whole]) / self.tensor_parallel_size
        torch.distributed.all_reduce(mean, group=parallel_state.get_tensor_model_parallel_group())
        for gradient, part in zip(whole, mean.split([gradient.numel() for gradient in whole])):
            gradient.copy_(part.view_as(gradient))

    # --- Checkpoints: plain on disk, split in memory ---------------------------------------------------------------

    def lightning_module_state_dict(self) -> Dict[str, Tensor]:
        return gather_state_dict(super().lightning_module_state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        split = {**checkpoint, "state_dict": split_state_dict(checkpoint["state_dict"])}
        super().load_model_state_dict(split, strict)

    def optimizer_state(self, optimizer: Optimizer) -> Dict[str, Any]:
        """The plain state on the ranks that hold data part 0 (rank 0 writes it), nothing elsewhere."""
        optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer.consolidate_state_dict(to=0)
        if parallel_state.get_data_parallel_rank() != 0:
            return {}
        return self._map_moments(optimizer.state_dict(), optimizer, self._gather_moment)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = [
            self._map_moments(state, optimizer, split_tensor)
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"])
        ]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    def _gather_moment(self, moment: Tensor, dimension: Optional[int]) -> Tensor:
        return gather_tensor(moment.to(self.root_device), dimension).to(moment.device)

    def _map_moments(self, state: Dict[str, Any], optimizer: Optimizer, function) -> Dict[str, Any]:
        """``state`` with ``function(moment, split dimension)`` for every tensor that is shaped like its parameter."""
        dimensions = self._split_dimensions(optimizer)
        moments = {
            index: {
                key: function(value, dimensions[index]) if isinstance(value, Tensor) and value.dim() > 0 else value
                for key, value in values.items()
            }
            for index, values in state["state"].items()
        }
        return {**state, "state": moments}

    def _split_dimensions(self, optimizer: Optimizer) -> List[Optional[int]]:
        """Split dimension of every parameter in the order in which the optimizer numbers them."""
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        return [split_dimension(names[id(parameter)]) for parameter in parameters]
