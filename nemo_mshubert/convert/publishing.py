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

"""Makes a folder to publish: the ``.nemo``, the same weights for transformers, and the model card, which is also put
into the ``.nemo``.

Uploaded unchanged (``hf upload ORGANISATION/NAME FOLDER``), the folder works with ``ASRModel.from_pretrained`` and
``AutoModel.from_pretrained``. Before the upload, every script that takes a ``.nemo`` also takes the folder.
"""

import io
import tarfile
from pathlib import Path
from typing import List

from nemo_mshubert.convert.huggingface import hugging_face_family, write_huggingface
from nemo_mshubert.convert.model_card import Facts, model_card, require_results_of
from nemo_mshubert.convert.nemo import checkpoint_of
from nemo_mshubert.models.loading import restore_mshubert, save_model
from nemo_mshubert.whole_files import PathLike, atomic_folder

CARD = "README.md"


def publish(model_name: PathLike, folder: PathLike, facts: Facts) -> List[str]:
    """Write the folder, completely or not at all. Its name becomes the model's name. Returns the names of its files.

    Args:
        model_name: a name of `models.loading.restore_model`.
        folder: must not exist, or must be empty.
        facts: for the card.

    Raises:
        FileExistsError: the folder is not empty.
        FileNotFoundError, ValueError: as `restore_model`; an encoder from another ecosystem without an output layer
            over letters; results of another model.
    """
    folder = Path(folder).absolute()
    with atomic_folder(folder) as temporary:
        model = restore_mshubert(model_name)
        if getattr(model, "output_layer_is_random", False):
            raise ValueError(
                f"{model_name}: has no output layer over letters, and the .nemo of a recogniser with a random one is "
                "nothing to publish. Fine-tune it (scripts/ssl_to_ctc.py, scripts/finetune_ctc.py) and publish the "
                "result."
            )
        require_results_of(model, facts, model_name)
        # transformers has no place for adapters
        checkpoint = None if model.encoder.adapter_names() else checkpoint_of(model, model_name)
        fits_transformers = checkpoint is not None and _has_class(checkpoint.encoder)
        if fits_transformers:
            write_huggingface(checkpoint, temporary)
        card = model_card(model, folder.name, facts, fits_transformers)
        save_model(model, temporary / f"{folder.name}.nemo")
        add_card(temporary / f"{folder.name}.nemo", card)
        (temporary / CARD).write_text(card, encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


def add_card(nemo_path: Path, card: str) -> None:
    """Put the card into a ``.nemo``, a plain tar. NeMo ignores it, and leaves it out when it saves a new file."""
    content = card.encode("utf-8")
    member = tarfile.TarInfo(f"./{CARD}")
    member.size = len(content)
    member.mode = 0o644
    with tarfile.open(nemo_path, "a:") as archive:
        archive.addfile(member, io.BytesIO(content))


def _has_class(encoder) -> bool:
    """Whether transformers has a class for the encoder."""
    try:
        hugging_face_family(encoder)
    except ValueError:
        return False
    return True
