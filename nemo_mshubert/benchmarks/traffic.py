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

"""What a pre-training step in bf16 moves through the memory of a GPU, counted without a GPU.

The step of `pretraining_step` runs on PyTorch's device "meta", where tensors have shapes and no numbers. Every kernel
that a GPU would be sent is counted with the bytes of the tensors that it reads and writes, once each, and with the
FLOPs of products. The kernels follow one another, so a step takes at least the sum over them of

    max(bytes / bandwidth, FLOPs / speed of products)

which is the bound of unfused kernels that reach both: what a change of the kernels can save shows before a GPU is at
hand. Caches, launches and communication are left out. The tensors that autograd keeps for the backward pass are
counted, too: with weights, gradients and moments they are what the step needs of a GPU's memory.

"meta" knows neither autocast, nor the fused dropout and attention of GPUs; `GpuKernels` puts them in their places.
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
# Kernels that take and give no memory of their own, and those with which only a counted gradient is stored.
NOT_COUNTED = ("empty", "empty_like", "new_empty", "new_empty_strided", "copy_", "detach", "_unsafe_view")
# As CUDA's autocast has it.
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
    """Rows of every size, batch and step: one of each kind of kernel, and their sum.

    Args:
        configs, sizes, batch_seconds, utterance_seconds: as in `pretraining_step.benchmark`.
        teraflops, terabytes: per second, of bf16 products and of memory.
        device: of this machine, which has no part in it.
    """
    for size in sizes:
        config = load_config(configs, size)
        found = variants(encoder_options(config), list(config.model.label_sets), on_gpu=False)
        for seconds in batch_seconds:
            torch.manual_seed(0)  # of the masks: the same count every time
            batch = Batch(seconds, utterance_seconds, config, META)
            for name in STEPS:
                traffic = traffic_of(lambda: found[name].build(config, batch))
                common = {"size": size, "batch_seconds": batch.seconds, "row": name}
                yield from ({**common, **row} for row in _rows(traffic, batch.seconds, teraflops, terabytes))


class Kernel(NamedTuple):
    """One kernel: its kind, what it reads and writes in bytes, and FLOPs, a multiply-add being two."""

    kind: str
    num_bytes: float
    flops: float

    def seconds(self, teraflops: float, terabytes: float) -> float:
        return max(self.num_bytes / terabytes, self.flops / teraflops) / 1e12


class Traffic(NamedTuple):
    """Kernels of a step, and bytes that autograd keeps between forward and backward pass, weights not counted."""

    kernels: List[Kernel]
    kept_bytes: int


def _rows(traffic: Traffic, audio_seconds: float, teraflops: float, terabytes: float) -> Iterator[Row]:
    """A row per kind, the largest bound first, and that of all."""
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
    """One step, with as many kernels as a GPU with fused AdamW has, of the `pretraining_step.Step` that ``build``
    makes."""
    step, counter = build(), KernelCounter()
    kept: Dict[int, int] = {}  # storages, which stay where they are until the backward pass, and their bytes
    weights = {_storage(parameter) for parameter in step.parameters}

    def note(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with _autocast_on_meta(), counter, GpuKernels(counter), saved_tensors_hooks(note, lambda tensor: tensor):
        step.backpropagate()
    num_weights = sum(parameter.numel() for parameter in step.parameters)
    # Gradients are read for their norm, then read and written; weights, gradients and two moments are read, and all
    # but the gradients written.
    counter.add("clipping", 4.0 * num_weights * (1 + 2))
    counter.add("adamw", 4.0 * num_weights * (4 + 3))
    return Traffic(counter.kernels, sum(kept.values()))


def _storage(tensor: Tensor) -> int:
    """Which memory it is in; on "meta" all have the address 0."""
    return tensor.untyped_storage()._cdata


class KernelCounter(TorchDispatchMode):
    """Notes every kernel below autograd, so those of the backward pass too."""

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
    """The tensors of nested lists; one that is read and written, as ``x`` of ``x.add_(y)``, is there twice."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


def _bytes_in_memory(tensor: Tensor) -> int:
    """Of a tensor that repeats itself, those that are there."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride else 1
    return count * tensor.element_size()


def _flops(function: Any, args: Sequence[Any], kwargs: Dict[str, Any], output: Any) -> float:
    if function is torch.ops.aten.convolution_backward.default:  # PyTorch's count forgets the groups
        grad, _, weight = args[:3]
        return 2.0 * grad.numel() * weight[0].numel() * sum(args[-1][:2])  # of input and weight, where wanted
    count = flop_registry.get(function.overloadpacket)
    return float(count(*args, **kwargs, out_val=output)) if count else 0.0


class GpuKernels(TorchFunctionMode):
    """Has the calls of autocast, dropout and attention end in the kernels that a GPU has for them."""

    def __init__(self, counter: KernelCounter):
        super().__init__()
        self.counter = counter
        self._converted: Dict[int, Tensor] = {}  # weights; autocast keeps them, too

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
    """Reads queries, keys and values, and writes as much as the queries; backward, these again, and three
    gradients."""

    @staticmethod
    def forward(ctx, q_BHTE, k_BHTE, v_BHTE, counter):
        y_BHTE = torch.empty_like(q_BHTE)
        ctx.save_for_backward(q_BHTE, k_BHTE, v_BHTE, y_BHTE)
        ctx.counter = counter
        ctx.flops = 2.0 * q_BHTE.numel() * k_BHTE.shape[2]  # of one product of all queries and keys
        counter.add("attention", 4.0 * _bytes_in_memory(q_BHTE), 2 * ctx.flops)
        return y_BHTE

    @staticmethod
    def backward(ctx, _):
        q_BHTE, k_BHTE, v_BHTE, _ = ctx.saved_tensors
        ctx.counter.add("attention", 8.0 * _bytes_in_memory(q_BHTE), 5 * ctx.flops)  # the scores once more
        return torch.empty_like(q_BHTE), torch.empty_like(k_BHTE), torch.empty_like(v_BHTE), None


@contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """`torch.autocast` and the questions about it, which PyTorch answers for real devices alone."""
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
