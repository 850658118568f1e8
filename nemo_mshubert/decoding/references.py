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

"""Read and check manifests with reference transcripts, so that problems are found before anything is decoded."""

from typing import Collection, List, Optional, Sequence

from nemo_mshubert.data.audio import require_audio_file
from nemo_mshubert.data.manifest import Line, iter_manifest, not_empty
from nemo_mshubert.data.transcripts import check_transcript, in_form, other_form
from nemo_mshubert.decoding.lexicon import fold_case
from nemo_mshubert.whole_files import PathLike


def read_references(manifest: PathLike, letters: Optional[Sequence[str]] = None) -> List[Line]:
    """The lines of `iter_manifest`. Audio files must exist, but are not read. ``letters`` as in `check_transcripts`.

    Raises:
        FileNotFoundError: no such manifest or audio file.
        ValueError: there are no lines, a line has no ``text`` or ``duration``, or all lines together have no words;
            names file, line and remedy.
    """
    lines = []
    for where, entry in not_empty(iter_manifest(manifest), manifest):
        check_transcript(entry, where, letters)
        if entry.get("duration") is None:
            raise ValueError(f'{where}: no "duration", by which batches are made. Add it or remove the line.')
        require_audio_file(entry, f"{where}: {entry['audio_filepath']}")
        lines.append((where, entry))
    if not any(entry["text"].split() for _, entry in lines):
        raise ValueError(
            f'{manifest}: the "text" of all lines is empty, so there is no WER. Add the transcripts, or leave out '
            "this manifest."
        )
    return lines


def require_writing(reference: str, letters: Collection[str], where: str) -> None:
    """Raise ``ValueError`` if ``reference`` is in another case or Unicode form than the model's letters: every word
    would be an error."""
    if reference != fold_case(reference, letters):
        raise ValueError(
            f"{where}: the reference {reference[:40]!r} is not in the case of the model's letters. Write the "
            "manifest's texts as the model does."
        )
    if form := other_form(reference, letters):
        raise ValueError(f"{where}: {in_form(form, reference)}")
