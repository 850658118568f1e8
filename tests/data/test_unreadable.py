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

"""Audio of NeMo's datasets: what cannot be read is left out, named and counted, and the rest is as it was."""

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording

from nemo_mshubert.data import unreadable
from nemo_mshubert.data.unreadable import CountedAudio, UnreadableAudioError, UnreadableCount

pytestmark = pytest.mark.unit


@pytest.fixture
def cuts(tmp_path):
    """Of mono, stereo and NaN, by name: u0, u1 and u2, of 0.5, 0.25 and 0.125 s."""
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4000)).astype(np.float32)
    waves = [np.full(8000, 0.25, np.float32), np.stack([left, right], axis=1), np.full(2000, np.nan, np.float32)]
    for number, wave in enumerate(waves):
        soundfile.write(tmp_path / f"u{number}.wav", wave, 16000, subtype="FLOAT")
    return [Recording.from_file(tmp_path / f"u{number}.wav").to_cut() for number in range(3)], (left + right) / 2


def test_audio_lengths_and_cuts_belong_together(cuts, monkeypatch):
    """A transcript beside the audio of another utterance teaches nothing; nor does half of a conversation."""
    warnings = []
    monkeypatch.setattr(unreadable.logging, "warning", warnings.append)
    (mono, stereo, broken), mixed = cuts
    load = CountedAudio(limit=1)
    audio, lengths, read = load(CutSet.from_cuts([stereo, broken, mono]))
    assert [cut.id for cut in read] == [stereo.id, mono.id] and lengths.tolist() == [4000, 8000]
    np.testing.assert_allclose(audio[0, :4000], mixed, atol=1e-6)
    assert not audio[0, 4000:].any() and torch.equal(audio[1], torch.full((8000,), 0.25))
    assert len(warnings) == 1 and broken.id in warnings[0] and "NaN" in warnings[0]
    load(CutSet.from_cuts([broken, mono]))  # once more, in the next epoch
    with pytest.raises(UnreadableAudioError, match="2 utterances could not be used, the last one another.*raise"):
        load(CutSet.from_cuts([broken.with_id("another"), mono]))


def test_a_batch_without_readable_audio_has_the_one_before(cuts):
    """A broken file that is a batch of its own must not end a run, nor leave one rank without a batch."""
    (mono, stereo, broken), mixed = cuts
    load = CountedAudio(limit=1)
    load(CutSet.from_cuts([mono, stereo]))
    for _ in range(2):
        audio, lengths, read = load(CutSet.from_cuts([broken]))
        assert [cut.id for cut in read] == [stereo.id] and lengths.tolist() == [4000]
        np.testing.assert_allclose(audio, mixed[None], atol=1e-6)
        load.unreadable.note_readable()
    with pytest.raises(UnreadableAudioError, match="2 utterances could not be used, the last one another"):
        load(CutSet.from_cuts([broken.with_id("another")]))


def test_a_first_batch_without_readable_audio_is_an_error(cuts):
    """Even where some may be skipped: it has no shape."""
    (_, _, broken), _ = cuts
    match = f"No utterance of the first batch could be read.*: {broken.id}. Repair"
    with pytest.raises(UnreadableAudioError, match=match):
        CountedAudio(limit=10)(CutSet.from_cuts([broken]))


def test_what_other_ranks_skip_is_seen(capsys, monkeypatch):
    """NeMo's logger is silent on them: of eight ranks, seven left out utterances that nobody heard of."""
    monkeypatch.setenv("RANK", "5")
    UnreadableCount(limit=3).add("u7", "NaN or infinite samples")
    assert "Skipped utterance u7 (1 so far in this process): NaN or infinite samples" in capsys.readouterr().err
