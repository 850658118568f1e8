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

"""Reads a checkpoint of any ecosystem and writes it for another."""

from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

from nemo.utils import logging
from torch import nn

from nemo_mshubert.convert.checkpoint import Checkpoint
from nemo_mshubert.convert.fairseq import from_fairseq, read_fairseq, write_fairseq
from nemo_mshubert.convert.huggingface import read_huggingface, refuse_weights_alone, write_huggingface
from nemo_mshubert.convert.multiresolution import from_multiresolution, is_multiresolution
from nemo_mshubert.convert.pickles import load_torch_file
from nemo_mshubert.convert.torchaudio import from_torchaudio, read_torchaudio
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.whole_files import PathLike

READERS: Dict[str, Callable[[PathLike], Checkpoint]] = {
    "huggingface": read_huggingface,
    "fairseq": read_fairseq,
    "torchaudio": read_torchaudio,
}
TARGETS = ("nemo", "huggingface", "fairseq")


def read_checkpoint(path: PathLike, source: str = "auto") -> Checkpoint:
    """Read a folder or file of ``source``, one of `READERS` or ``nemo``; ``auto`` detects the format.

    Raises:
        FileNotFoundError, ValueError: it does not exist, or is something else; names the file, the tensor, the remedy.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder. Correct the path.")
    if source == "nemo" or source == "auto" and path.suffix == ".nemo":
        from nemo_mshubert.convert.nemo import read_nemo  # it imports our models, and they import this

        return read_nemo(path)
    if source != "auto":
        if path.is_dir() and source != "huggingface":
            raise ValueError(f"{path}: a folder; name the file of {source} in it.")
        return READERS[source](path)
    if path.is_dir():
        return read_huggingface(path)
    refuse_weights_alone(path)
    return _from_content(load_torch_file(path), path)


def write_checkpoint(checkpoint: Checkpoint, path: PathLike, target: Optional[str] = None) -> str:
    """Write for ``target``, one of `TARGETS` (default: by the suffix). Returns a description of what was written."""
    target = target or {".nemo": "nemo", ".pt": "fairseq"}.get(Path(path).suffix, "huggingface")
    letters = checkpoint.ctc.letters() if checkpoint.ctc else None
    written = f"{target} encoder{f', CTC over {len(letters.labels)} letters' if letters else ''}"
    if checkpoint.ctc and not letters:
        written += f", its output layer over {checkpoint.ctc.other_tokens()} dropped"
    if target == "nemo":
        from nemo_mshubert.convert.nemo import write_nemo

        written = write_nemo(checkpoint, path)
    elif target == "fairseq":
        write_fairseq(checkpoint, path)
    elif target == "huggingface":
        write_huggingface(checkpoint, path)
    else:
        raise ValueError(f"target: expected one of {TARGETS}, found {target!r}.")
    if checkpoint.prediction_heads:
        kept = target == "fairseq" and not letters
        written += (
            f", {len(checkpoint.prediction_heads)} prediction heads{'' if kept else ' dropped: no place for them'}"
        )
    return written


def read_encoder(path: PathLike) -> nn.Module:
    """The encoder of a folder or file of another ecosystem, in evaluation mode; see `models.loading.load_encoder`.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`.
    """
    path = Path(path)
    content = None if path.is_dir() else load_torch_file(path)
    if is_multiresolution(content):
        encoder, notes = from_multiresolution(content, str(path))
    else:
        checkpoint = read_checkpoint(path) if content is None else _from_content(content, path)
        encoder, notes = MSHuBERTEncoder(**checkpoint.encoder), checkpoint.notes
        encoder.load_state_dict(checkpoint.weights)
        encoder.normalized_input, encoder.drawn_weights = checkpoint.normalize, tuple(checkpoint.drawn)
    log_notes(path, notes)
    return encoder.eval()


def log_notes(path: PathLike, notes: Sequence[str]) -> None:
    """Log what was assumed about a file or dropped from it."""
    for note in notes:
        logging.warning(f"{path}: {note}")


def _from_content(content: Any, path: Path) -> Checkpoint:
    """Convert the content of a file; its names show which layout it has."""
    if is_multiresolution(content):
        raise ValueError(
            f"{path}: an MR-HuBERT. It gives features (--encoder of fit_kmeans.py and label.py), but no other format "
            "and no CTC model has a place for its two rates."
        )
    names = content.get("state_dict", content) if isinstance(content, dict) else {}
    if any("encoder.transformer." in name for name in names):
        return from_torchaudio(content, str(path))
    if isinstance(content, dict) and "pytorch-lightning_version" in content:
        raise ValueError(
            f"{path}: a training's state, to resume from. Give the .nemo in its folder, which the training writes "
            "at its end; where there is none yet, run the same training command again: it goes on."
        )
    return from_fairseq(content, str(path))
