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

"""Write the features of a manifest to NumPy files, one for each utterance, for other programs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict

import numpy as np
from tqdm import tqdm

from nemo_mshubert.clustering.audio_windows import audio_windows, window_features
from nemo_mshubert.clustering.features import FeatureMaker
from nemo_mshubert.data.audio import MAX_DURATION_ERROR
from nemo_mshubert.data.manifest import distinct_utterances, iter_manifest, utterance_id
from nemo_mshubert.modules.frames import FRAME_RATE
from nemo_mshubert.whole_files import PathLike, atomic_write, claim_json

DESCRIPTION = "features.json"


def write_features(manifest: PathLike, folder: PathLike, features: FeatureMaker) -> int:
    """Write ``<folder>/<utterance id>.npy``, float32 ``[T, D]``, frame t at ``0.02 t`` s, and their description to
    ``features.json``. Existing files are kept, so an interrupted call can be continued.

    Returns:
        the number of files written.

    Raises:
        FileNotFoundError, ValueError: an utterance occurs twice, or its id cannot be a file name; audio is missing or
            unusable (the first such line is named); the folder holds other features, or features of other audio with
            the same id, for example of a recording that was cut into other segments.
    """
    folder = Path(folder)
    lines = list(distinct_utterances(iter_manifest(manifest)))
    paths = [_path(entry, folder, where) for where, entry in lines]
    _describe(folder, features)
    missing = []
    for (where, entry), path in zip(lines, paths):
        if path.is_file():
            _check_length(path, entry, where)
        else:
            missing.append((where, entry))
    there = len(lines) - len(missing)
    with tqdm(total=len(lines), initial=there, desc="features", unit=" utterances", disable=None) as progress:
        for window in audio_windows(missing):
            for utterance, rows in zip(window, window_features(window, features)):
                with atomic_write(_path(utterance.entry, folder, utterance.where), "wb") as stream:
                    np.save(stream, rows.float().cpu().numpy())
            progress.update(len(window))
    return len(missing)


def _path(entry: Dict[str, Any], folder: Path, where: str) -> Path:
    """A file below the folder; an id with parts, such as ``speaker/session``, gives subfolders."""
    utt_id = utterance_id(entry)
    if set(utt_id.split("/")) & {"", ".", ".."}:  # "/a", "a//b" and the like
        raise ValueError(f'{where}: the id {utt_id!r} is no name of a file below {folder}. Change its "utt_id".')
    return folder / f"{utt_id}.npy"


def _check_length(path: Path, entry: Dict[str, Any], where: str) -> None:
    seconds, frames = entry.get("duration"), len(np.load(path, mmap_mode="r"))
    if seconds is not None and abs(seconds - frames / FRAME_RATE) > MAX_DURATION_ERROR:
        raise ValueError(
            f"{path}: has {frames} frames of other audio than {where}, of {seconds:g} s. Give another --output, or "
            "remove the file."
        )


def _describe(folder: Path, features: FeatureMaker) -> None:
    path, description = folder / DESCRIPTION, asdict(features.description)
    names = {file.name for file in folder.glob("[!.]*")}  # not the hidden file that a killed call leaves
    if names and DESCRIPTION not in names:
        raise ValueError(f"{folder}: holds something else. Give another --output.")
    found = claim_json(path, description)
    if found != description:
        raise ValueError(f"{path}: of other features ({found}). Give another --output, or remove the folder.")
