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

"""NeMo's adapters in the encoder: small trainable modules after every block, with the pre-trained weights frozen.

``model.add_adapter``, ``set_enabled_adapters``, ``unfreeze_enabled_adapters`` and the stock script
train_asr_adapter.py use these. Without adapters, the encoder's outputs and the entries of its state dict are
unchanged.
"""

from typing import List, Optional, Set

from nemo.collections.asr.parts.utils import adapter_utils
from nemo.core.classes.mixins.adapter_mixins import AdapterModuleMixin
from omegaconf import DictConfig
from torch import Tensor

from nemo_mshubert.modules.transformer import TransformerBlock


class AdaptableBlock(TransformerBlock, AdapterModuleMixin):
    """A block whose output goes through the enabled adapters, each with a residual of its own."""

    def forward(
        self,
        x_BTD: Tensor,
        key_mask_B11T: Optional[Tensor],
        position_bias_HTT: Optional[Tensor] = None,
        wanted_W: Optional[Tensor] = None,
    ) -> Tensor:
        x = super().forward(x_BTD, key_mask_B11T, position_bias_HTT, wanted_W)
        return self.forward_enabled_adapters(x) if self.is_adapter_available() else x


class EncoderAdapters(AdapterModuleMixin):
    """What NeMo asks of an encoder; every call goes to all ``layers`` of width ``d_model``."""

    def add_adapter(self, name: str, cfg: DictConfig) -> None:
        """One adapter per block; raises ``ValueError`` if it is no ``LinearAdapter`` or its name is already used."""
        cfg = adapter_utils.update_adapter_cfg_input_dim(self, cfg, module_dim=self.d_model)
        self.check_supported_adapter_type_(cfg, self.get_accepted_adapter_types())
        for layer in self.layers:
            layer.add_adapter(name, cfg)

    def is_adapter_available(self) -> bool:
        return any(layer.is_adapter_available() for layer in self.layers)

    def adapter_names(self) -> List[str]:
        return sorted({name for layer in self.layers for name in getattr(layer, "adapter_layer", ())})

    def set_enabled_adapters(self, name: Optional[str] = None, enabled: bool = True) -> None:
        for layer in self.layers:
            layer.set_enabled_adapters(name=name, enabled=enabled)

    def get_enabled_adapters(self) -> List[str]:
        return sorted({name for layer in self.layers for name in layer.get_enabled_adapters()})

    def get_accepted_adapter_types(self) -> Set[type]:
        if not super().get_accepted_adapter_types():
            self.set_accepted_adapter_types([adapter_utils.LINEAR_ADAPTER_CLASSPATH])
        return super().get_accepted_adapter_types()
