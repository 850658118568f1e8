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

"""Names of our strategies and of the sharded optimizer, for ``trainer.strategy`` and ``model.optim.name``."""

import importlib.util
import re
from datetime import timedelta
from typing import Any, Dict, Mapping, Optional, Tuple

import torch
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from nemo.core.config.optimizers import AdamWParams
from nemo.core.optim.optimizers import AVAILABLE_OPTIMIZERS, register_optimizer
from torch.distributed.optim import ZeroRedundancyOptimizer

TENSOR_PARALLEL_SIZES = (2, 4, 8)
TIMEOUT = timedelta(minutes=30)  # of a collective: a rank that hangs ends the run, see callbacks.rank_watch


class ShardedAdamW(ZeroRedundancyOptimizer):
    """AdamW whose moments are divided among the ranks that train the same weights (ZeRO, stage 1)."""

    def __init__(self, params, **options):
        super().__init__(params, torch.optim.AdamW, process_group=_ranks_of_the_same_weights(), **options)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.state.clear()  # no update uses its own state, a second copy of the moments
        for group in self.optim.param_groups:
            for parameter in group["params"] if group["fused"] or group["capturable"] else ():
                if parameter in self.optim.state:  # loaded to the CPU, where GPU kernels do not look for it
                    count = self.optim.state[parameter]["step"]
                    self.optim.state[parameter]["step"] = count.to(parameter.device)


def has_megatron() -> bool:
    """Whether megatron-core is installed; other packages, too, have a part of the namespace ``megatron``."""
    return bool(importlib.util.find_spec("megatron") and importlib.util.find_spec("megatron.core"))


def tensor_parallel_size(strategy: Any) -> int:
    """Number of ranks that share a model under a value of ``trainer.strategy``: a name or, for Hydra, a mapping with
    ``_target_``; 1 for strategies that are not ours."""
    if isinstance(strategy, Mapping):
        is_ours = strategy.get("_target_", "").endswith(".TensorParallelStrategy")
        return strategy["tensor_parallel_size"] if is_ours else 1
    match = re.fullmatch(r"megatron_tp(\d+)(_sp)?", str(strategy))
    return int(match.group(1)) if match else 1


def check_strategy(strategy: Any) -> None:
    """Raise ``ValueError``, with the remedy, for a strategy under which a run would go wrong."""
    name = strategy.get("_target_", "") if isinstance(strategy, Mapping) else str(strategy)
    if re.match(r"fsdp(?!2)|deepspeed", name) or re.search(r"\.(FSDP|DeepSpeed|ModelParallel)Strategy$", name):
        raise ValueError(
            f"trainer.strategy={strategy}: ranks hold parts of the weights here, so that neither the norm of the "
            "gradients nor the .nemo would be that of the model. Pre-training shares large models by parallel=fsdp2."
        )
    if re.match("megatron_tp", name) and name not in strategies():
        raise ValueError(
            f"trainer.strategy={strategy}: needs megatron-core (pip install 'nemo_mshubert[megatron]'), and "
            f"{', '.join(map(str, TENSOR_PARALLEL_SIZES))} as the number of ranks that share a model."
        )


def strategies() -> Dict[str, Tuple[type, Dict[str, Any]]]:
    """Our strategies: ``{name: (class, arguments)}``."""
    from nemo_mshubert.parallel.sharded import ShardedStrategy

    found = {"fsdp2": (ShardedStrategy, {})}
    if has_megatron():
        from nemo_mshubert.parallel.tensor_parallel import TensorParallelStrategy

        for size in TENSOR_PARALLEL_SIZES:
            for suffix, sequence_parallel in (("", False), ("_sp", True)):
                options = {"tensor_parallel_size": size, "sequence_parallel": sequence_parallel}
                found[f"megatron_tp{size}{suffix}"] = (TensorParallelStrategy, options)
    return found


def own_strategy(strategy: Any) -> Optional[Strategy]:
    """The strategy of a mapping whose ``_target_`` is one of ours (NeMo takes it for unsafe); else None."""
    if isinstance(strategy, Mapping):
        options = dict(strategy)
        target = options.pop("_target_", None)
        for kind, _ in strategies().values():
            if target == f"{kind.__module__}.{kind.__qualname__}":
                return kind(**{"timeout": TIMEOUT, **options})
    return None


def _ranks_of_the_same_weights():
    """The data-parallel group under tensor parallelism, else all ranks."""
    if has_megatron():
        from megatron.core import parallel_state

        if parallel_state.model_parallel_is_initialized():
            return parallel_state.get_data_parallel_group()
    return torch.distributed.group.WORLD


def register() -> None:
    """Register our names; calling this again is no error.

    ``trainer.strategy``: ``fsdp2`` and, where megatron-core is installed, ``megatron_tp2``, ``megatron_tp2_sp`` (with
    sequence parallelism), and so on. ``model.optim.name``: ``sharded_adamw``.
    """
    for name, (strategy, options) in strategies().items():
        StrategyRegistry.register(name, strategy, override=True, timeout=TIMEOUT, **options)
    if "sharded_adamw" not in AVAILABLE_OPTIMIZERS:
        register_optimizer("sharded_adamw", ShardedAdamW, AdamWParams())
