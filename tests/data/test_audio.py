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

"""Audio that is not what its line says is named, with what to do, before it can end a run in the middle."""


import numpy as np
import pytest
import soundfile

from nemo_mshubert.data.audio import iter_with_audio, load_audio, load_audio_and_rate

pytestmark = pytest.mark.unit
GOOD = {"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}


def test_missing_audio_is_named_with_its_line(write, tmp_path):
    """Paths are of the manifest's folder, as for NeMo; what lies behind an address is not asked for."""
    (tmp_path / "a.wav").touch()
    address = {**GOOD, "audio_filepath": "s3://bucket/b.wav"}
    list(iter_with_audio(write(GOOD, {**GOOD, "audio_filepath": str(tmp_path / "a.wav")}, address)))
    path = write(GOOD, address, {**GOOD, "audio_filepath": "c.wav"})
    with pytest.raises(FileNotFoundError, match=f"{path}:3: c.wav: no such audio file. Correct the manifest"):
        list(iter_with_audio(path))


@pytest.mark.parametrize("segment", [{"offset": 1.5}, {"offset": 0.6, "duration": 0.8}])
def test_a_segment_that_is_not_in_its_file_is_named(write, tmp_path, segment):
    """NeMo's loader passes over the line: the WER of a validation is that of another set."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    list(iter_with_audio(write({**GOOD, "offset": 0.4, "duration": 0.6})))
    path = write(GOOD, {**GOOD, **segment})
    with pytest.raises(ValueError, match=f"{path}:2: a.wav: .*the line"):
        list(iter_with_audio(path))


def test_an_offset_behind_the_end_is_named(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    for offset in (1, 7.5):
        with pytest.raises(
            ValueError, match=f"train.json:3: {path}: the offset of {offset} s is not within the 1.0 s"
        ):
            load_audio({"audio_filepath": str(path), "offset": offset, "duration": 1.0}, "train.json:3")
    assert len(load_audio({"audio_filepath": str(path), "offset": 0.75, "duration": 0.125})) == 2000


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_rate_is_that_of_the_file(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(rate), rate)
    samples, found = load_audio_and_rate({"audio_filepath": str(tmp_path / "a.wav")})
    assert (len(samples), found) == (16000, rate)


def test_audio_of_another_length_than_its_line_says_is_named(tmp_path):
    """A WAV cut short, or replaced by a longer one: labels and transcript would be of other audio."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(32000), 16000)
    entry = {"audio_filepath": str(path)}
    for duration in (1.6, 2.4):
        with pytest.raises(ValueError, match=f"train.json:3: {path}: 2 s of audio, the manifest says {duration}"):
            load_audio({**entry, "duration": duration}, "train.json:3")
    for duration in (1.75, 2, 2.25):  # what decoders of MP3 add or take is none of these
        assert len(load_audio({**entry, "duration": duration})) == 32000
    for offset in (0, 0.5):  # of a longer file, which is right, also of its first segment
        assert len(load_audio({**entry, "offset": offset, "duration": 1})) == 16000


def test_audio_that_breaks_off_is_named(tmp_path):
    """A FLAC has its full length in its header, so that decoding alone can tell."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 32000), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"(?s)train.json:3: {path}: decoding failed .*Replace the file or remove"):
        load_audio({"audio_filepath": str(path), "duration": 2.0}, "train.json:3")
