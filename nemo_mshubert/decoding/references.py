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

"""Manifests that errors can be counted on; what is wrong with one is found before any is decoded."""

from pathlib import Path
from typing import Optional, Sequence

from nemo_mshubert.data.audio import no_audio_file
from nemo_mshubert.data.manifest import PathLike, iter_manifest
from nemo_mshubert.data.transcripts import check_transcripts
from nemo_mshubert.decoding.log_probs import require_case


def check_manifest(manifest: PathLike, letters: Optional[Sequence[str]] = None) -> None:
    """Read all of a manifest; the audio is looked for, not read. ``letters`` as in `check_transcripts`.

    Raises:
        FileNotFoundError: no such manifest or audio file.
        ValueError: no lines, a line without ``text`` or ``duration``, or no words in any; names file, line and remedy.
    """
    check_transcripts(manifest, letters)
    has_words = False
    for where, entry in iter_manifest(manifest):
        if entry.get("duration") is None:
            raise ValueError(f'{where}: no "duration", by which batches are made. Add it or remove the line.')
        if not Path(entry["audio_filepath"]).is_file():
            raise FileNotFoundError(f"{where}: {entry['audio_filepath']}: {no_audio_file(entry)}")
        has_words = has_words or bool(entry["text"].split())
    if not has_words:
        raise ValueError(
            f'{manifest}: the "text" of all lines is empty, so there is no WER. Add the transcripts, or leave out '
            "this manifest."
        )


def check_case(manifest: PathLike, letters: Sequence[str]) -> None:
    """Raise ``ValueError`` with file and line where a text is in another case than the model's ``letters``."""
    for where, entry in iter_manifest(manifest):
        require_case(entry["text"], letters, where)
