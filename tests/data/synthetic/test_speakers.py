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

"""What becomes of speech in the recording."""

import errno
import io
import os
import signal

import numpy as np
import pytest

from nemo_mshubert import whole_files
from nemo_mshubert.data.synthetic import speakers
from nemo_mshubert.data.synthetic.espeak import Espeak
from nemo_mshubert.data.synthetic.speakers import _write_audio, record, synthesize_speaker
from nemo_mshubert.data.synthetic.voices import all_voices
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


def test_recording_keeps_time_and_level():
    """A click at a known sample is where the resampled recording says it is."""
    speech = np.zeros(22050, dtype=np.int16)
    speech[11025] = 20000  # 0.5 s
    samples, lead = record(speech, 22050, np.random.default_rng(0))
    assert abs(np.abs(samples).argmax() / 16000 - lead - 0.5) < 1e-3
    assert np.abs(samples).max() <= 0.951


def test_levels_of_recordings_are_those_of_speech():
    """The corpus is what the quickstart learns from: -30 to -22 dB, in rooms whose noise is 25 to 40 dB below."""
    speech = (20000 * np.sin(np.arange(11025) * 0.2)).astype(np.int16)  # 0.5 s
    levels, rooms = [], []
    for seed in range(200):
        samples, lead = record(speech, 22050, np.random.default_rng(seed))
        begin = round(lead * 16000)
        rms = [np.sqrt(np.mean(part**2)) for part in (samples[:begin], samples[begin : begin + 8000])]
        room, level = 20 * np.log10(rms)
        levels.append(level)
        rooms.append(level - room)
    assert -30.1 < min(levels) < -29.5 and -22.5 < max(levels) < -21.9
    assert 24 < min(rooms) < 26 and 39 < max(rooms) < 41


def test_a_disk_that_is_full_for_a_moment_is_told(tmp_path, monkeypatch):
    """soundfile drops the error: an AssertionError without a word followed or, at the end of the file, a finished
    speaker with a broken recording."""

    class FullOnce(io.FileIO):
        is_full = True

        def write(self, data):
            if self.is_full:
                self.is_full = False
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(whole_files, "open", lambda path, mode, encoding: FullOnce(path, "w"), raising=False)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 50_000).astype(np.float32)
    with pytest.raises(OSError, match="No space left on device: '.*a.flac'"):
        _write_audio(tmp_path / "a.flac", samples)
    assert not os.listdir(tmp_path)


def test_ctrl_c_waits_until_the_speaker_is_finished(tmp_path, monkeypatch):
    """In the middle of a sentence it was printed and dropped, with a piece of the speech or its times, and the speaker
    was finished with what was left."""
    pytest.importorskip("espeakng_loader", reason="synthetic speech needs espeakng-loader")

    class Interrupted(Espeak):
        def _receive(self, *arguments):
            os.kill(os.getpid(), signal.SIGINT)
            return super()._receive(*arguments)

    def rank(engine, folder):  # a process of its own: espeak's speech depends on what it said before
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
        monkeypatch.setattr(speakers, "Espeak", engine)
        try:
            synthesize_speaker(all_voices(0)[0], folder, 3, seed=0)
            was_interrupted = False
        except KeyboardInterrupt:
            was_interrupted = True
        return {path.name: path.read_bytes() for path in folder.rglob("*.*")}, was_interrupted

    ((whole, _),) = run_on_ranks(1, rank, Espeak, tmp_path / "whole")
    assert run_on_ranks(1, rank, Interrupted, tmp_path / "interrupted") == [(whole, True)]
    assert len(whole) == 3  # audio, transcript, record
