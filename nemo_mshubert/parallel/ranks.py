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

"""How ranks share the work: which of them share the data, and the norm of a gradient that lies on several of them."""

from typing import Any, Callable, Iterable, NamedTuple, Optional

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from nemo_mshubert.parallel.launched import LONGEST_WAIT


class DataRanks(NamedTuple):
    """This rank's part of the data, and the number of parts. Ranks that hold parts of one model see the same data."""

    rank: int
    count: int


def data_ranks(trainer: Optional[Trainer]) -> DataRanks:
    """This rank's part, by Lightning's own contract with samplers; one part without a trainer or with one process."""
    shares = getattr(trainer.strategy, "distributed_sampler_kwargs", None) if trainer else None
    return DataRanks(shares["rank"], shares["num_replicas"]) if shares else DataRanks(0, 1)


def on_one_rank_of_each_node(trainer: Trainer, check: Callable[..., None], *arguments: Any) -> None:
    """Before training, let the first rank of each node ``check`` what the ranks of the node will use. An error on one
    node is raised on all ranks.

    Ranks that torchrun or SLURM has started wait for the check, however long it takes. Ranks that Lightning starts do
    not run before the first one trains.
    """
    error = None
    if trainer.local_rank == 0:
        try:
            check(*arguments)
        except Exception as found:
            error = found
    if trainer.world_size > 1 and not isinstance(trainer.strategy.cluster_environment, LightningEnvironment):
        trainer.strategy.setup_environment()  # the process group, which Lightning finds there when training begins
        patient = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
        errors = [None] * trainer.world_size
        torch.distributed.all_gather_object(errors, error, group=patient)
        torch.distributed.destroy_process_group(patient)
        error = next(filter(None, errors), None)
    if error is not None:
        raise error


def sum_over_data_ranks(value: Tensor, ranks: DataRanks) -> None:
    """Add up ``value`` in place over the parts of the data; ranks with the same data must hold the same value."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value.div_(torch.distributed.get_world_size() / ranks.count)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients, the same on all ranks, also for parameters that are split over ranks.

    Parameters split by megatron-core carry its mark ``tensor_model_parallel``; those of FSDP are DTensors.
    """
    split, whole = [], []
    for parameter in parameters:
        if parameter.grad is not None:
            (split if getattr(parameter, "tensor_model_parallel", False) else whole).append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(whole)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    if not split:
        return norm
    from megatron.core import parallel_state  # there are such parameters only if it is installed

    squares = torch.nn.utils.get_total_norm(split).square()
    torch.distributed.all_reduce(squares, group=parallel_state.get_tensor_model_parallel_group())
    return (squares + norm.square()).sqrt()


def broadcast_weights(module: nn.Module, device: torch.device) -> None:
    """Give every rank the weights and buffers of rank 0, before they are split; NCCL sends tensors of ``device``
    only."""
    for tensor in [*module.parameters(), *module.buffers()]:
        sent = tensor.data.to(device)
        torch.distributed.broadcast(sent, src=0)
        tensor.data.copy_(sent)
