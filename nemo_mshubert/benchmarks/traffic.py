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

"""Memory traffic of a pre-training step in bf16 on a GPU, counted without a GPU.

The step of `pretraining_step` runs on PyTorch's "meta" device, where tensors have shapes but no values. Every kernel
that would be sent to a GPU is counted, with the bytes of the tensors that it reads and writes (once each) and with the
FLOPs of matrix products. Kernels run one after another, so a step takes at least the sum over all kernels of

    max(bytes / bandwidth, FLOPs / speed of products)

This is the bound for unfused kernels that reach both speeds. It shows what a change of the kernels can save before a
GPU is available. Caches, launches and communication are left out. The tensors that autograd keeps for the backward
pass are also counted: together with weights, gradients and moments, they are the GPU memory that the step needs.

"meta" has neither autocast nor the fused dropout and attention of GPUs; `GpuKernels` provides them.
"""

from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nemo_mshubert.benchmarks.measurement import Column, Row
from nemo_mshubert.benchmarks.pretraining_step import STEPS, Batch, encoder_options, load_config, variants

META = torch.device("meta")
COLUMNS = [
    Column("size", "size"),
    Column("batch_seconds", "batch, s", ".1f"),
    Column("row", "step"),
    Column("kind", "kernels of"),
    Column("kernels", "kernels", "d"),
    Column("gigabytes", "GB", ".2f"),
    Column("teraflop", "TFLOP", ".2f"),
    Column("milliseconds", "bound, ms", ".2f"),
]
KINDS = {
    "products": ("mm", "addmm", "bmm", "convolution", "convolution_backward"),
    "attention": ("attention",),
    "norms": ("native_layer_norm", "native_layer_norm_backward", "native_group_norm", "native_group_norm_backward"),
    "GELU": ("gelu", "gelu_backward"),
    "conversions between fp32 and bf16": ("_to_copy",),
    "dropout": ("native_dropout", "native_dropout_backward"),
    "Fourier transforms": ("_fft_r2c", "_fft_c2r", "_fft_c2c"),
    "Swap, masks and masked rows": ("index_select", "index_add", "index_copy_", "where", "flip"),
    "clipping and AdamW": ("clipping", "adamw"),
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
REST = "residuals, biases, the rest"
# Operators that move no memory of their own, or that only store a gradient that was already counted.
NOT_COUNTED = ("empty", "empty_like", "new_empty", "new_empty_strided", "copy_", "detach", "_unsafe_view")
# As in CUDA's autocast.
TO_BF16 = (F.linear, F.conv1d, F.conv2d, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__)
TO_FP32 = (F.layer_norm, F.group_norm, F.cross_entropy)


def benchmark(
    configs: Path,
    sizes: Sequence[str],
    batch_seconds: Sequence[float],
    utterance_seconds: float,
    teraflops: float,
    terabytes: float,
    device: torch.device,
) -> Iterator[Row]:
    """Rows of every size, batch and step: one per kind of kernel, and their sum.

    Args:
        configs, sizes, batch_seconds, utterance_seconds: as in `pretraining_step.benchmark`.
        teraflops, terabytes: speed of bf16 products and bandwidth of the memory, per second.
        device: not used.
    """
    for size in sizes:
        config = load_config(configs, size)
        found = variants(encoder_options(config), list(config.model.label_sets), on_gpu=False)
        for seconds in batch_seconds:
            torch.manual_seed(0)  # for the masks, so that counts are the same every time
            batch = Batch(seconds, utterance_seconds, config, META)
            for name in STEPS:
                traffic = traffic_of(lambda: found[name].build(config, batch))
                common = {"size": size, "batch_seconds": batch.seconds, "row": name}
                yield from ({**common, **row} for row in _rows(traffic, batch.seconds, teraflops, terabytes))


class Kernel(NamedTuple):
    """One kernel: its kind, the bytes that it reads and writes, and its FLOPs (a multiply-add is two)."""

    kind: str
    num_bytes: float
    flops: float

    def seconds(self, teraflops: float, terabytes: float) -> float:
        return max(self.num_bytes / terabytes, self.flops / teraflops) / 1e12


class Traffic(NamedTuple):
    """Kernels of a step, and the bytes that autograd keeps between forward and backward pass, without weights."""

    kernels: List[Kernel]
    kept_bytes: int


def _rows(traffic: Traffic, audio_seconds: float, teraflops: float, terabytes: float) -> Iterator[Row]:
    """A row per kind, the largest bound first, then a row for all."""
    of_kind = defaultdict(list)
    for kernel in traffic.kernels:
        of_kind[kernel.kind].append(kernel)
    rows = [_row(kind, group, teraflops, terabytes) for kind, group in of_kind.items()]
    yield from sorted(rows, key=lambda row: -row["milliseconds"])
    total = _row("", traffic.kernels, teraflops, terabytes)
    speed, kept = audio_seconds / total["milliseconds"] * 1e3, traffic.kept_bytes / 1e9
    summary = f"**all**, at most {speed:.0f} audio-s/s; kept for the backward pass: {kept:.2f} GB"
    yield {**total, "kind": summary, "audio_seconds_per_second": speed, "kept_gigabytes": kept}


def _row(kind: str, kernels: List[Kernel], teraflops: float, terabytes: float) -> Row:
    return {
        "kind": kind,
        "kernels": len(kernels),
        "gigabytes": sum(kernel.num_bytes for kernel in kernels) / 1e9,
        "teraflop": sum(kernel.flops for kernel in kernels) / 1e12,
        "milliseconds": sum(kernel.seconds(teraflops, terabytes) for kernel in kernels) * 1e3,
    }


def traffic_of(build: Callable[[], Any]) -> Traffic:
    """The traffic of one step of the `pretraining_step.Step` that ``build`` makes, with as many kernels as on a GPU
    with fused AdamW."""
    step, counter = build(), KernelCounter()
    kept: Dict[int, int] = {}  # storage, which does not move until the backward pass -> its bytes
    weights = {_storage(parameter) for parameter in step.parameters}

    def note(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with _autocast_on_meta(), counter, GpuKernels(counter), saved_tensors_hooks(note, lambda tensor: tensor):
        step.backpropagate()
    num_weights = sum(parameter.numel() for parameter in step.parameters)
    # Clipping reads gradients for their norm, then reads and writes them. AdamW reads weights, gradients and two
    # moments, and writes all of them except the gradients.
    counter.add("clipping", 4.0 * num_weights * (1 + 2))
    counter.add("adamw", 4.0 * num_weights * (4 + 3))
    return Traffic(counter.kernels, sum(kept.values()))


def _storage(tensor: Tensor) -> int:
    """Identifies the memory of a tensor; its address does not, since on "meta" all addresses are 0."""
    return tensor.untyped_storage()._cdata


class KernelCounter(TorchDispatchMode):
    """Records every kernel. It works below autograd, so kernels of the backward pass are included."""

    def __init__(self):
        super().__init__()
        self.kernels: List[Kernel] = []

    def add(self, name: str, num_bytes: float, flops: float = 0.0) -> None:
        self.kernels.append(Kernel(KIND_OF.get(name, REST), num_bytes, flops))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if not function.is_view and name not in NOT_COUNTED:
            tensors = _tensors([*args, *kwargs.values(), output])
            self.add(name, sum(map(_bytes_in_memory, tensors)), _flops(function, args, kwargs, output))
        return output


def _tensors(values: Any) -> List[Tensor]:
    """The tensors in nested lists. A tensor that is both read and written, as ``x`` in ``x.add_(y)``, occurs twice."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


def _bytes_in_memory(tensor: Tensor) -> int:
    """Bytes that a tensor takes in memory; repeats of an expanded tensor take none."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride else 1
    return count * tensor.element_size()


def _flops(function: Any, args: Sequence[Any], kwargs: Dict[str, Any], output: Any) -> float:
    if function is torch.ops.aten.convolution_backward.default:  # PyTorch's count ignores the groups
        grad, _, weight = args[:3]
        return 2.0 * grad.numel() * weight[0].numel() * sum(args[-1][:2])  # for input and weight, if requested
    count = flop_registry.get(function.overloadpacket)
    return float(count(*args, **kwargs, out_val=output)) if count else 0.0


class GpuKernels(TorchFunctionMode):
    """Replaces autocast, dropout and attention by the kernels that a GPU uses for them."""

    def __init__(self, counter: KernelCounter):
        super().__init__()
        self.counter = counter
        self._converted: Dict[int, Tensor] = {}  # weights, which autocast also converts only once

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.dropout:
            is_idle = not kwargs["training"] or kwargs["p"] == 0
            return args[0] if is_idle else torch.native_dropout(args[0], kwargs["p"], True)[0]
        if function is F.scaled_dot_product_attention:
            return _FlashAttention.apply(*map(self._to_bf16, args[:3]), self.counter)
        if torch.is_autocast_enabled(META.type) and function in TO_BF16:
            args, kwargs = [*map(self._to_bf16, args)], {key: self._to_bf16(value) for key, value in kwargs.items()}
        elif torch.is_autocast_enabled(META.type) and function in TO_FP32:
            args = [x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x for x in args]
        return function(*args, **kwargs)

    def _to_bf16(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(torch.bfloat16)
        if id(x) not in self._converted:
            self._converted[id(x)] = x.to(torch.bfloat16)
        return self._converted[id(x)]


class _FlashAttention(torch.autograd.Function):
    """Forward: reads queries, keys and values, and writes an output of the queries' size. Backward: reads these four
    and the output's gradient, and writes three gradients."""

    @staticmethod
    def forward(ctx, q_BHTE, k_BHTE, v_BHTE, counter):
        y_BHTE = torch.empty_like(q_BHTE)
        ctx.save_for_backward(q_BHTE, k_BHTE, v_BHTE, y_BHTE)
        ctx.counter = counter
        ctx.flops = 2.0 * q_BHTE.numel() * k_BHTE.shape[2]  # FLOPs of one product of all queries and keys
        counter.add("attention", 4.0 * _bytes_in_memory(q_BHTE), 2 * ctx.flops)
        return y_BHTE

    @staticmethod
    def backward(ctx, _):
        q_BHTE, k_BHTE, v_BHTE, _ = ctx.saved_tensors
        ctx.counter.add("attention", 8.0 * _bytes_in_memory(q_BHTE), 5 * ctx.flops)  # the scores are computed again
        return torch.empty_like(q_BHTE), torch.empty_like(k_BHTE), torch.empty_like(v_BHTE), None


@contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """Replace `torch.autocast` and the queries of its state, which PyTorch supports only for real devices."""
    states = [False]

    @contextmanager
    def autocast(device_type: str, dtype: Any = None, enabled: bool = True) -> Iterator[None]:
        states.append(enabled)
        yield
        states.pop()

    with (
        mock.patch.object(torch, "autocast", autocast),
        mock.patch.object(torch, "is_autocast_enabled", lambda _: states[-1]),
        mock.patch.object(torch, "get_autocast_dtype", lambda _: torch.bfloat16),
    ):
        yield
