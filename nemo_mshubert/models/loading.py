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

"""Loads models and encoders by name, and saves models to ``.nemo`` files.

A name is a ``.nemo`` file, a folder with one, a checkpoint of another ecosystem (`convert`), or ``organisation/model``
of the Hugging Face hub. Every script accepts all of these in the same place.
"""

import re
import tempfile
from pathlib import Path
from typing import Any, Type

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from nemo.core.classes import ModelPT
from torch import nn

from nemo_mshubert.models.save_restore import WholeFile
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.whole_files import PathLike, naming

Name = PathLike  # of a model: a file, a folder, or its id on the Hugging Face hub

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FOREIGN_SUFFIXES = (".pt", ".pth", ".ckpt", ".th", ".bin")
TRANSFORMERS_FILES = ("*.json", "*.safetensors", "pytorch_model*.bin")


def restore_model(name: Name) -> ModelPT:
    """Restore a model on the CPU; a checkpoint of another ecosystem becomes the CTC model that `convert` makes of it.

    Args:
        name: see the head of this file.

    Raises:
        FileNotFoundError: no such file, folder or model of the hub.
        ValueError: it cannot be read, or is not a model; the message has the remedy.
    """
    path = local_path(name)
    if is_foreign(path):
        from nemo_mshubert.convert.nemo import read_as_model  # here, since it imports this module

        return read_as_model(path)
    try:
        return unpack(ModelPT, path)
    except Exception as error:
        raise not_restored(name, error) from error


def not_restored(name: Name, error: Exception) -> ValueError:
    """What to raise if NeMo cannot restore a file."""
    return ValueError(
        f"{name}: cannot be restored as a NeMo model ({type(error).__name__}: {error}). Give a .nemo; if it is one, "
        "see whether it was copied whole."
    )


def unpack(kind: Type[ModelPT], path: Path, **options: Any) -> Any:
    """``kind.restore_from`` on the CPU; an error about a full disk names the folder of temporary files, into which
    NeMo unpacks."""
    with naming(tempfile.gettempdir()):
        return kind.restore_from(str(path), map_location="cpu", **options)


def load_encoder(name: Name) -> nn.Module:
    """The encoder of the model that `restore_model` gives, on the CPU, in evaluation mode.

    It is an `MSHuBERTEncoder`, or for MR-HuBERT a `MultiresolutionEncoder`; both have ``extract_features``. Its
    ``normalized_input`` tells whether the model's preprocessor scales each utterance to unit variance. The
    ``drawn_weights`` of an `MSHuBERTEncoder` are the names of weights that the checkpoint lacks and that are random.

    Raises:
        FileNotFoundError, ValueError: as `restore_model`; also for a model with another encoder.
    """
    path = local_path(name)
    if is_foreign(path):
        from nemo_mshubert.convert.conversion import read_encoder

        return read_encoder(path)
    model = restore_mshubert(name)
    model.encoder.normalized_input = getattr(model.preprocessor, "normalized", False)
    return model.encoder.eval()


def restore_mshubert(name: Name) -> ModelPT:
    """`restore_model` for a model with an `MSHuBERTEncoder`.

    Raises:
        FileNotFoundError, ValueError: as `restore_model`; also for a model with another encoder.
    """
    model = restore_model(name)
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, MSHuBERTEncoder):
        raise ValueError(
            f"{name}: its encoder is {type(encoder).__name__}, expected MSHuBERTEncoder: a .nemo of "
            "scripts/pretrain.py, scripts/finetune_ctc.py or scripts/convert_checkpoint.py."
        )
    return model


def local_path(name: Name) -> Path:
    """The file or folder that a name stands for: a ``.nemo``, or one that `is_foreign`.

    A folder stands for the ``.nemo`` in it. ``organisation/model`` of the hub stands for its file ``model.nemo``, as
    in ``ASRModel.from_pretrained``, or if it has none for its weights for transformers. Both are downloaded into the
    hub's cache.

    Raises:
        FileNotFoundError: no such file, folder or model of the hub, or a folder with neither.
        ValueError: a folder with several ``.nemo`` files, or weights for transformers without their folder.
    """
    path = Path(name)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        from nemo_mshubert.convert.huggingface import refuse_weights_alone

        refuse_weights_alone(path)
        return path
    if HUB_ID.fullmatch(str(name)) and path.suffix not in (".nemo", *FOREIGN_SUFFIXES):
        return _from_hub(str(name))
    raise FileNotFoundError(
        f"{name}: no such file. Expected a .nemo, a Hugging Face folder, a .pt or an id of the hub."
    )


def is_foreign(path: Path) -> bool:
    """Whether `convert` reads ``path``: a folder for transformers, or a file of fairseq, torchaudio or s3prl."""
    return path.is_dir() or path.suffix in FOREIGN_SUFFIXES


def _in_folder(folder: Path) -> Path:
    files = sorted(path for path in folder.glob("*.nemo") if not path.name.startswith("."))  # hidden: half-written
    if len(files) > 1:
        raise ValueError(f"{folder}: several .nemo files ({', '.join(file.name for file in files)}). Name one.")
    if not files and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: neither a .nemo nor the config.json of a Hugging Face folder in it.")
    return files[0] if files else folder


def _from_hub(name: str) -> Path:
    try:
        try:
            return Path(hf_hub_download(name, f"{name.split('/')[1]}.nemo"))
        except EntryNotFoundError:
            return _in_folder(Path(snapshot_download(name, allow_patterns=TRANSFORMERS_FILES)))
    except Exception as error:  # from the hub, the network or the disk
        raise FileNotFoundError(
            f"{name}: no such file or folder, and not to be had from the hub ({type(error).__name__}: {error})."
        ) from error


def save_model(model: ModelPT, path: PathLike) -> None:
    """Write a ``.nemo``, whole or not at all."""
    model._save_restore_connector = WholeFile()
    model.save_to(str(path))
