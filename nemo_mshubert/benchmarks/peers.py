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

"""`MSHuBERTEncoder.forward_views` built from the modules of other libraries, so that these can be trained with the
same Swap, heads, loss and masks.
"""

from typing import Any, Callable, Collection, Dict, Mapping, Optional

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from nemo_mshubert.modules.mshubert_encoder import Views
from nemo_mshubert.modules.swap import swap, swap_source


class PeerViews(nn.Module):
    """Runs both views through a peer's blocks. A subclass provides the parts below; batches have no padding."""

    pre_norm: bool  # is there a LayerNorm after the last block?

    def features(self, audio_BS: Tensor) -> Tensor:
        """Output of the convolutional front end ``[B, T, C]``."""
        raise NotImplementedError

    def parts(self) -> Dict[str, Any]:
        """``projection``, ``mask_embedding``, ``before_blocks`` (``[N, T, D] -> [N, T, D]``), ``blocks``,
        ``last_norm``."""
        raise NotImplementedError

    def forward_views(
        self,
        audio_signal: Tensor,
        length: Tensor,
        mask_BT: Tensor,
        tapped_layers: Collection[int],
        use_swap: bool = True,
        wanted_W: Optional[Tensor] = None,
    ) -> Views:
        """As `MSHuBERTEncoder.forward_views`; blocks of other libraries always compute all frames."""
        features_BTC = self.features(audio_signal[:, 0])
        parts = self.parts()
        x_BTD = parts["projection"](features_BTC)
        masked_BTD = torch.where(mask_BT[..., None], parts["mask_embedding"].to(x_BTD.dtype), x_BTD)
        views = torch.cat([masked_BTD, x_BTD]) if use_swap else masked_BTD
        num_views = len(views) // len(x_BTD)
        x_NTD = parts["before_blocks"](views)
        source_R = swap_source(mask_BT)
        tapped = {}
        for number, block in enumerate(parts["blocks"], start=1):
            x_NTD = first_output(block(x_NTD))
            if use_swap:
                x_NTD = swap(x_NTD.unflatten(0, (2, -1)), source_R).flatten(0, 1)
            if number == len(parts["blocks"]) and self.pre_norm:
                x_NTD = parts["last_norm"](x_NTD)
            if number in tapped_layers:
                x_VBTD = x_NTD.unflatten(0, (num_views, -1))
                tapped[number] = x_VBTD if wanted_W is None else x_VBTD.flatten(1, 2).index_select(1, wanted_W)
        frames_B = length.new_full((len(length),), features_BTC.shape[1])
        return Views(tapped, frames_B, features_BTC.float().square().mean(), wanted_W)


def first_output(output: Any) -> Tensor:
    """Some versions of the libraries return a tuple from a block, whose first element is the tensor."""
    return output[0] if isinstance(output, tuple) else output


class TransformersViews(PeerViews):
    """Views of ``transformers.HubertModel``; ``options`` are the arguments of `MSHuBERTEncoder`."""

    def __init__(self, options: Mapping[str, Any]):
        super().__init__()
        config = HubertConfig(
            hidden_size=options["d_model"],
            num_hidden_layers=options["num_layers"],
            num_attention_heads=options["num_heads"],
            intermediate_size=options["d_inner"],
            conv_dim=[layer[0] for layer in options["conv_layers"]],
            conv_kernel=[layer[1] for layer in options["conv_layers"]],
            conv_stride=[layer[2] for layer in options["conv_layers"]],
            conv_bias=options["conv_bias"],
            feat_extract_norm="layer" if options["conv_norm"] == "layer_norm" else "group",
            do_stable_layer_norm=options["pre_norm"],
            num_conv_pos_embeddings=options["pos_conv_kernel"],
            num_conv_pos_embedding_groups=options["pos_conv_groups"],
            hidden_dropout=options["dropout"],
            attention_dropout=options["attention_dropout"],
            activation_dropout=options["activation_dropout"],
            feat_proj_dropout=options["dropout_input"],
            layerdrop=0.0,
        )
        self.hubert = HubertModel(config)
        self.pre_norm = options["pre_norm"]

    def features(self, audio_BS: Tensor) -> Tensor:
        return self.hubert.feature_extractor(audio_BS).transpose(1, 2)

    def parts(self) -> Dict[str, Any]:
        encoder = self.hubert.encoder
        return {
            "projection": self.hubert.feature_projection,
            "mask_embedding": self.hubert.masked_spec_embed,
            "before_blocks": self._before_blocks,
            "blocks": encoder.layers,
            "last_norm": encoder.layer_norm,
        }

    def _before_blocks(self, x_NTD: Tensor) -> Tensor:
        encoder = self.hubert.encoder
        x_NTD = x_NTD + encoder.pos_conv_embed(x_NTD)
        return encoder.dropout(x_NTD if self.pre_norm else encoder.layer_norm(x_NTD))


class TorchaudioViews(PeerViews):
    """Views of ``torchaudio.models.hubert_pretrain_model``; at base size, this is ``hubert_pretrain_base``.

    Raises:
        ImportError: torchaudio is not installed.
    """

    def __init__(self, options: Mapping[str, Any]):
        super().__init__()
        from torchaudio.models import hubert_pretrain_model  # NeMo and this package do not depend on it

        model = hubert_pretrain_model(
            extractor_mode=options["conv_norm"],
            extractor_conv_layer_config=[tuple(layer) for layer in options["conv_layers"]],
            extractor_conv_bias=options["conv_bias"],
            encoder_embed_dim=options["d_model"],
            encoder_projection_dropout=options["dropout_input"],
            encoder_pos_conv_kernel=options["pos_conv_kernel"],
            encoder_pos_conv_groups=options["pos_conv_groups"],
            encoder_num_layers=options["num_layers"],
            encoder_num_heads=options["num_heads"],
            encoder_attention_dropout=options["attention_dropout"],
            encoder_ff_interm_features=options["d_inner"],
            encoder_ff_interm_dropout=options["activation_dropout"],
            encoder_dropout=options["dropout"],
            encoder_layer_norm_first=options["pre_norm"],
            encoder_layer_drop=0.0,
            **UNUSED_MASKING,
            num_classes=2,  # for a head that is not used, either
            final_dim=2,
            feature_grad_mult=None,
        )
        self.wav2vec2 = model.wav2vec2
        self.mask_embedding = model.mask_generator.mask_embedding
        self.pre_norm = options["pre_norm"]

    def features(self, audio_BS: Tensor) -> Tensor:
        return self.wav2vec2.feature_extractor(audio_BS, None)[0]

    def parts(self) -> Dict[str, Any]:
        transformer = self.wav2vec2.encoder.transformer
        return {
            "projection": self.wav2vec2.encoder.feature_projection,
            "mask_embedding": self.mask_embedding,
            "before_blocks": transformer._preprocess,
            "blocks": transformer.layers,
            "last_norm": transformer.layer_norm,
        }


# Options of torchaudio's own masks. They are not used: `forward_views` gets its masks as an argument.
UNUSED_MASKING = dict(
    mask_prob=0.65,
    mask_selection="static",
    mask_other=0.0,
    mask_length=10,
    no_mask_overlap=False,
    mask_min_space=1,
    mask_channel_prob=0.0,
    mask_channel_selection="static",
    mask_channel_other=0.0,
    mask_channel_length=10,
    no_mask_channel_overlap=False,
    mask_channel_min_space=1,
    skip_masked=False,
    skip_nomask=True,
)

PEERS: Dict[str, Callable[[Mapping[str, Any]], PeerViews]] = {
    "transformers": TransformersViews,
    "torchaudio": TorchaudioViews,
}
