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

"""Models and encoders out of ``.nemo`` files, and into them."""

import os
from pathlib import Path
from typing import Union

from nemo.core.classes import ModelPT

from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder


def restore_model(path: Union[str, Path]) -> ModelPT:
    """Restore any NeMo model on the CPU; raises ``FileNotFoundError`` or ``ValueError`` with the remedy."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected a .nemo file, e.g. of scripts/pretrain.py.")
    try:
        return ModelPT.restore_from(str(path), map_location="cpu")
    except Exception as error:
        raise ValueError(f"{path}: cannot be restored as a NeMo model ({type(error).__name__}: {error}).") from error


def load_encoder(path: Union[str, Path]) -> MSHuBERTEncoder:
    """The encoder of a pre-trained or fine-tuned ``.nemo``, on the CPU, in evaluation mode.

    Its ``normalized_input`` tells whether the model's preprocessor scales each utterance to unit variance.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a NeMo model, or one with another encoder.
    """
    model = restore_model(path)
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, MSHuBERTEncoder):
        raise ValueError(f"{path}: its encoder is {type(encoder).__name__}, expected MSHuBERTEncoder.")
    encoder.normalized_input = getattr(model.preprocessor, "normalized", False)
    return encoder.eval()


def save_model(model: ModelPT, path: Union[str, Path]) -> None:
    """Write a ``.nemo``, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.nemo")
    try:
        model.save_to(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
