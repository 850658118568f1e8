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

"""Reads MR-HuBERT in fairseq's layout into a `MultiresolutionEncoder`, for features only; it cannot be written."""

import re
from typing import Any, Dict, List, Mapping, Tuple

from torch import Tensor

from nemo_mshubert.convert.architecture import Finder, check_weights, published_heads
from nemo_mshubert.convert.fairseq import declared_architecture, sections
from nemo_mshubert.convert.tables import fairseq_table
from nemo_mshubert.modules.multiresolution import MultiresolutionEncoder
from nemo_mshubert.modules.state_dicts import listed

_WRAPPERS = re.compile(r"^(?:w2v_encoder\.)?(?:w2v_model\.)?")
_STACK = re.compile(r"(encoders\.\d+|middle_encoder|decoders\.\d+)\.(.*)")
_RESAMPLER = re.compile(r"(down|up)sample_modules\.(\d+)\.(down|up)sample_conv\.(0|2)\.(weight|bias)")
_PRETRAINING = re.compile(r"(final_projs?|label_embs_concat|mask_emb|target_glus?)\b.*|proj\..*")
DEFAULT_RATES = [1, 2]  # 50 Hz and 25 Hz
OUR_NAME = "our {}".format  # in messages, where it is not the name in the file


def is_multiresolution(content: Any) -> bool:
    """Whether the content of a loaded file is an MR-HuBERT."""
    return isinstance(content, dict) and any("middle_encoder." in str(name) for name in sections(content)[2])


def from_multiresolution(content: Mapping[str, Any], where: str) -> Tuple[MultiresolutionEncoder, List[str]]:
    """The encoder of a fairseq or s3prl file, in evaluation mode, and notes on what was assumed or dropped.

    Raises:
        ValueError: a missing, surplus, misshapen or non-finite tensor, by name; a config of another model.
    """
    options, task, tensors = sections(content)
    declared = declared_architecture(options, where)
    rates, notes = _rates(options)
    ours, dropped = _our_names(tensors, len(rates), where)
    if dropped:
        notes.append(f"dropped {listed(dropped)}: not for feature extraction")
    arguments = _architecture(ours, declared, rates, where)
    if "num_heads" not in declared:
        notes.append(f"assumed {arguments['num_heads']} attention heads")
    encoder = MultiresolutionEncoder(**arguments)
    check_weights(ours, encoder.state_dict(), OUR_NAME, where)
    encoder.load_state_dict(ours)
    encoder.normalized_input = bool(task.get("normalize", arguments["conv_norm"] == "layer_norm"))
    return encoder.eval(), notes


def _rates(options: Mapping[str, Any]) -> Tuple[List[Tuple[int, int]], List[str]]:
    """Pairs (up, down) of fairseq's ``label_rate_ratios``, a list up, down, up, down, ..., and notes."""
    numbers = options.get("label_rate_ratios")
    notes = []
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        numbers = DEFAULT_RATES
        notes.append("assumed two resolutions, 50 Hz and 25 Hz")
    return list(zip(numbers[::2], numbers[1::2])), notes


def _our_names(tensors: Mapping[str, Tensor], levels: int, where: str) -> Tuple[Dict[str, Tensor], List[str]]:
    """Tensors under the names of `MultiresolutionEncoder`, and names of tensors that have no place there."""
    table = fairseq_table()
    mapped: Dict[str, Tensor] = {}
    dropped, front = [], {}
    for name, tensor in tensors.items():
        bare = _WRAPPERS.sub("", name)
        stack, resampler = _STACK.fullmatch(bare), _RESAMPLER.fullmatch(bare)
        if stack:
            (inner,) = table.to_ours({f"encoder.{stack[2]}": tensor}, where)[0]
            ours = f"stacks.{_stack_number(stack[1], levels)}.{inner}"
        elif resampler:
            way, level, conv, part, leaf = resampler.groups()
            number = int(level) if way == "down" else 2 * levels - 1 - int(level)
            ours = f"resamplers.{number}.{conv}sample.{'conv' if part == '0' else 'norm'}.{leaf}"
        elif _PRETRAINING.fullmatch(bare):
            dropped.append(name)
            continue
        else:
            front[bare] = tensor
            continue
        if ours in mapped:
            raise ValueError(f"{where}: surplus tensor {name}: more stacks than its config has rates.")
        mapped[ours] = tensor
    front_end, others = table.to_ours(front, where)
    return {**mapped, **front_end}, dropped + others


def _stack_number(name: str, levels: int) -> int:
    kind, _, number = name.partition(".")
    return {"encoders": 0, "middle_encoder": levels, "decoders": levels + 1}[kind] + int(number or 0)


def _architecture(
    ours: Mapping[str, Tensor], declared: Mapping[str, Any], rates: List[Tuple[int, int]], where: str
) -> Dict[str, Any]:
    """Arguments of `MultiresolutionEncoder`, inferred from the tensors as far as possible."""
    finder = Finder(ours, OUR_NAME, where)
    sizes = finder.sizes("stacks.0.")
    del sizes["num_layers"]  # it is of the first stack; "depths" has all stacks
    return {
        **sizes,
        "depths": [finder.count(rf"stacks\.{index}\.layers\.(\d+)\.") for index in range(2 * len(rates) + 1)],
        "rates": rates,
        "conv_layers": finder.conv_layers(declared.get("conv_layers")),
        "num_heads": declared.get("num_heads") or published_heads(sizes["d_model"]),
        "pre_norm": declared.get("pre_norm", sizes["conv_norm"] == "layer_norm"),
        "resampling_kernel": finder.shape("resamplers.0.downsample.conv.weight", 3)[2],
        "plain_resampling": not finder.has("resamplers.0.upsample.conv.weight"),
    }
