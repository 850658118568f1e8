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

"""Folders in LibriSpeech's layout for tests."""

from pathlib import Path

import numpy as np
import soundfile


def add_chapter(subset: Path, speaker: str, chapter: str, texts, seconds=0.5) -> Path:
    """A chapter whose utterance n lasts ``seconds`` + n / 10, of noise: silent FLAC would have no bytes to cut off."""
    folder = subset / speaker / chapter
    folder.mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts):
        utt_id = f"{speaker}-{chapter}-{number:04d}"
        samples = np.random.default_rng(number).uniform(-0.1, 0.1, int(16000 * seconds) + 1600 * number)
        soundfile.write(folder / f"{utt_id}.flac", samples, 16000)
        lines.append(f"{utt_id} {text}\n")
    (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return folder
