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

"""Crops and labels: what the model hears is what the labels say, frame by frame."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
from omegaconf import OmegaConf

from nemo_mshubert.data import unreadable
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.data.pretraining_dataset import PretrainingDataset, collate
from nemo_mshubert.data.unreadable import UnreadableAudioError
from nemo_mshubert.modules.frames import frame_count
from tests.conftest import counting_audio

pytestmark = pytest.mark.unit
MAKER = "maker-one"


def read_cuts(manifest, **options):
    """All cuts of a manifest through NeMo's own reader, whole, in order."""
    config = {
        "manifest_filepath": str(manifest),
        "sample_rate": 16000,
        "batch_size": 100,
        "shuffle": False,
        "force_finite": True,
        "shard_seed": 0,
        "truncate_offset_type": "start",
        **options,
    }

    class Cuts(torch.utils.data.Dataset):
        def __getitem__(self, cuts):
            return cuts

    loader = get_lhotse_dataloader_from_config(OmegaConf.create(config), 0, 1, Cuts())
    return CutSet.from_cuts(cut for cuts in loader for cut in cuts)


def first_hop(wave) -> int:
    """Where a crop of counting audio begins, in hops."""
    return round(float(wave[0]) * 32768)


def check_row(batch, row, clusters=50):
    """A row of a batch of the counting corpus: samples and labels begin at one frame and run alike; returns it."""
    length = int(batch["length"][row])
    samples = (batch["audio"][row] * 32768).round().long()
    frames = frame_count(length)
    start = int(samples[0])
    utterance = int(re.fullmatch(r".*u(\d+)(\.wav)?", batch["utterances"][row])[1])
    assert torch.equal(samples[:length], start + torch.arange(length) // 320)  # begins on the grid, nothing is missing
    assert not samples[length:].any()
    labels = batch["labels"][clusters][row]
    assert torch.equal(labels[:frames], (7 * utterance + start + torch.arange(frames)) % clusters)
    assert (labels[frames:] == -100).all()
    return start, frames


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(unreadable.logging, "warning", messages.append)
    return messages


def test_batches_are_cropped_to_the_shortest_on_the_frame_grid(counting_corpus):
    """A label one frame off teaches the wrong class at every frame, silently."""
    cuts = read_cuts(counting_corpus([16000, 8000, 20001, 12345], sets=(50, 10)))
    dataset = PretrainingDataset(MAKER, [50, 10], crop="shortest", seed=3)
    starts = set()
    for number in range(300):
        batch = dataset[number, cuts]
        assert batch["length"].tolist() == [frame_count(8000) * 320 + 80] * 4
        for row in range(4):
            start, frames = check_row(batch, row)
            assert frames == frame_count(8000)
            check_row(batch, row, clusters=10)
            starts.add((row, start))
    longest_start = frame_count(20001) - frame_count(8000)
    assert max(start for row, start in starts if row == 2) == longest_start  # the last frame can be reached
    assert min(start for row, start in starts if row == 2) == 0
    assert len(starts) > 20


def test_padded_batches_keep_every_frame(counting_corpus):
    """Validation sees whole utterances; padding carries no label."""
    lengths = [16000, 8000, 400, 719]
    cuts = read_cuts(counting_corpus(lengths))
    batch = PretrainingDataset(MAKER, [50], crop="pad")[0, cuts]
    assert [check_row(batch, row) for row in range(4)] == [(0, frame_count(length)) for length in lengths]
    assert batch["labels"][50].shape == (4, frame_count(16000))
    assert batch["labels"][50].dtype == torch.int64 and batch["audio"].dtype == torch.float32


def test_truncated_cuts_are_taken_from_anywhere(counting_corpus):
    """``truncate_duration`` says how much to take; taking the beginning only would waste the rest of long utterances.

    Lhotse gives a truncated cut a random id: the utterance must keep its name, or a warning about it names nothing.
    """
    cuts = read_cuts(counting_corpus([48000] * 3), truncate_duration=1.0)
    assert {cut.num_samples for cut in cuts} == {16000}
    dataset = PretrainingDataset(MAKER, [50], crop="pad")
    rows = [check_row(dataset[number, cuts], row) for number in range(20) for row in range(3)]
    assert {frames for _, frames in rows} == {frame_count(16000)}
    assert max(start for start, _ in rows) > 80 and min(start for start, _ in rows) < 20


def test_crops_are_a_function_of_seed_and_batch_number(counting_corpus):
    """A resumed run repeats them; another seed, another batch number or rank does not."""
    cuts = read_cuts(counting_corpus([16000, 8000]))

    def start(seed, number):
        return first_hop(PretrainingDataset(MAKER, [50], seed=seed)[number, cuts]["audio"][0])

    assert start(1, 5) == start(1, 5)
    first, second = ([start(seed, number) for number in range(12)] for seed in (1, 2))
    assert len(set(first)) > 3 and first != second


@pytest.mark.parametrize("offset, hop", [(0.5, 25), (2.0, 100)])  # in the middle and at the end of three seconds
def test_segments_of_a_file_keep_their_labels(counting_corpus, offset, hop):
    """A manifest with offsets: labels are of the segment, samples must be too."""
    path = counting_corpus([48000, 8000])
    entries = read_manifest(path)
    entry = entries[0]
    # Frame t of the segment is hop ``hop + t`` of the file: give it the labels check_row expects there.
    segment = {**entry, "offset": offset, "duration": 1.0}
    frames = frame_count(16000)
    stream = ((hop + np.arange(frames)) % 50).astype(np.uint16)
    segment["labels"] = FrameLabels(MAKER, 16000, {50: stream}, offset=offset).to_manifest()
    write_manifest(path, [segment, entries[1]])
    dataset = PretrainingDataset(MAKER, [50], crop="shortest")
    cuts = read_cuts(path)
    starts = {check_row(dataset[number, cuts], 0)[0] for number in range(300)}
    assert min(starts) == hop and max(starts) == hop + frames - frame_count(8000)
    assert check_row(PretrainingDataset(MAKER, [50], crop="pad")[0, cuts], 0) == (hop, frames)


def test_a_recording_may_hold_the_labelled_segment_alone(counting_corpus):
    """Labelled as part of a long file, then packed by a tool that cuts and leaves the labels as they are."""
    path = counting_corpus([16000])
    (entry,) = read_manifest(path)
    entry["labels"]["offset"] = 0.5
    write_manifest(path, [entry])
    dataset = PretrainingDataset(MAKER, [50], crop="pad")
    assert check_row(dataset[0, read_cuts(path)], 0) == (0, frame_count(16000))
    assert dataset.unreadable.count == 0


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_sample_rates_are_resampled_to_the_frames_of_their_labels(tmp_path, rate):
    """8 kHz and 44.1 kHz corpora: the crop is of the resampled audio, at the place its labels are of."""
    seconds, path = 2.0, tmp_path / "u0.wav"
    pitch = np.linspace(50, 800, int(rate * seconds))  # each place has its own
    tone = np.sin(2 * np.pi * pitch.cumsum() / rate)
    soundfile.write(path, 0.5 * tone, rate)
    whole = load_audio({"audio_filepath": str(path)})
    frames = frame_count(len(whole))
    labels = FrameLabels(MAKER, len(whole), {200: np.arange(frames).astype(np.uint16)})
    entry = {"audio_filepath": str(path), "duration": seconds, "text": "", "labels": labels.to_manifest()}
    write_manifest(tmp_path / "train.json", [entry])
    cuts = read_cuts(tmp_path / "train.json", truncate_duration=0.5)
    dataset = PretrainingDataset(MAKER, [200])
    for number in range(5):
        batch = dataset[number, cuts]
        start = int(batch["labels"][200][0, 0])
        expected = torch.from_numpy(whole[start * 320 :][: batch["audio"].shape[1]])
        # The resampler sees no neighbours at the edges of a crop.
        error = (batch["audio"][0] - expected)[200:-200].abs().max()
        assert error < 0.02
        assert (batch["audio"][0, 320:] - expected[:-320])[200:-200].abs().max() > 0.2  # a frame off would show


# --- Bad input -------------------------------------------------------------------------------------------------------


def damage(path, kind):
    """Turn an audio file into one of a kind nobody can train on, of the same length where that is possible."""
    samples, _ = soundfile.read(path)
    if kind in ("nan", "inf"):
        samples[len(samples) // 2 :] = float(kind)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    elif kind == "truncated":  # FLAC has a header with the full length; a WAV in half is one of another length
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, len(samples)), 16000, format="FLAC")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "missing":
        path.unlink()
    elif kind == "garbage":
        path.write_bytes(b"not audio" * 100)


@pytest.fixture
def cuts_with_missing(counting_corpus, tmp_path):
    """``cuts_with_missing(4, 3)``: cuts of four utterances, three of whose files are gone since their headers were
    read."""

    def make(total, missing):
        cuts = CutSet.from_cuts(list(read_cuts(counting_corpus([8000] * total))))
        for number in range(missing):
            damage(tmp_path / "audio" / f"u{number}.wav", "missing")
        return cuts

    return make


@pytest.mark.parametrize("kind", ["nan", "inf", "truncated", "missing", "garbage"])
def test_unreadable_audio_is_skipped_named_and_counted(counting_corpus, tmp_path, warnings, kind):
    """One broken file in a million must not end a run of weeks, nor pass unseen."""
    cuts = read_cuts(counting_corpus([8000, 8000, 8000]))  # headers are read now, the file breaks later
    cuts = CutSet.from_cuts(list(cuts))
    damage(tmp_path / "audio" / "u1.wav", kind)
    dataset = PretrainingDataset(MAKER, [50], crop="pad")
    batch = dataset[0, cuts]
    assert len(batch["utterances"]) == 2 and "u1" not in "".join(batch["utterances"])
    assert [check_row(batch, row)[1] for row in (0, 1)] == [24, 24]
    assert dataset.unreadable.count == 1
    assert len(warnings) == 1 and "u1" in warnings[0] and "1 so far" in warnings[0]


def test_too_many_unreadable_files_end_the_run(cuts_with_missing, warnings):
    """A disk that is gone must not be trained around."""
    cuts = cuts_with_missing(4, 3)
    with pytest.raises(UnreadableAudioError, match="(?s)3 utterances could not be used.*u2.*max_unreadable"):
        PretrainingDataset(MAKER, [50], max_unreadable=2)[0, cuts]
    assert len(PretrainingDataset(MAKER, [50], max_unreadable=3)[0, cuts]["utterances"]) == 1


def test_a_broken_file_counts_once(cuts_with_missing, warnings):
    """The loader is endless: after a hundred epochs one broken file in a million ended the run of weeks."""
    cuts = cuts_with_missing(3, 2)
    dataset = PretrainingDataset(MAKER, [50], max_unreadable=2)
    for _ in range(5):
        assert len(dataset[0, cuts]["utterances"]) == 1
    assert dataset.unreadable.count == len(warnings) == 10


def test_a_small_corpus_that_is_gone_ends_the_run(cuts_with_missing, warnings):
    """It has fewer files than may be broken: training would go on without audio to its last update."""
    cuts = cuts_with_missing(2, 2)
    dataset = PretrainingDataset(MAKER, [50], max_unreadable=5)
    for _ in range(2):
        dataset[0, cuts]
    with pytest.raises(UnreadableAudioError, match="6 readings in a row failed, of 2 utterances, the last one u1"):
        dataset[0, cuts]


def test_a_batch_of_unreadable_files_weighs_nothing(counting_corpus, tmp_path, warnings):
    """The count of batches, by which a run resumes, must not depend on what could be read."""
    cuts = CutSet.from_cuts(list(read_cuts(counting_corpus([8000]))))
    damage(tmp_path / "audio" / "u0.wav", "missing")
    batch = PretrainingDataset(MAKER, [50])[0, cuts]
    assert batch["utterances"] == ["silence"]
    assert (batch["labels"][50] == -100).all() and not batch["audio"].any()
    assert batch["labels"][50].shape == (1, frame_count(int(batch["length"][0])))


def test_stereo_is_refused_with_a_remedy(tmp_path, counting_corpus, warnings):
    """Two speakers in two channels: which one the labels are of, nobody knows."""
    path = counting_corpus([8000, 8000])
    samples, _ = soundfile.read(tmp_path / "audio" / "u0.wav")
    soundfile.write(tmp_path / "audio" / "u0.wav", np.stack([samples, samples], axis=1), 16000)
    batch = PretrainingDataset(MAKER, [50])[0, read_cuts(path)]
    assert len(batch["utterances"]) == 1
    assert "2 channels, expected 1" in warnings[0] and "u0" in warnings[0]


@pytest.mark.parametrize(
    "labels, message",
    [
        (None, 'utterance .*u1.*: no "labels" object.*label.py'),
        ({"maker": "another"}, "u1.*labels of label maker another, expected maker-one"),
        ({"num_samples": 9000}, 'u1.*"num_frames" is 24, but 9000 samples have 27'),
        ({"num_samples": 16000, "num_frames": 49, "sets": {"50": "AAA="}}, "u1.*1 labels of set 50 for 49 frames"),
        ({"frame_rate": 100}, "u1.*labels at 100 Hz, expected 50 Hz"),
        ({"sets": {"10": None}}, "u1"),
    ],
)
def test_wrong_labels_are_an_error_that_names_the_utterance(counting_corpus, labels, message):
    """Never a warning: training on labels of another k-means or another file looks like training."""
    path = counting_corpus([8000, 8000])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if labels is None:
        del lines[1]["labels"]
    else:
        lines[1]["labels"].update(labels)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cuts = read_cuts(path)
    with pytest.raises(ValueError, match=message):
        PretrainingDataset(MAKER, [50])[0, cuts]


def test_missing_set_is_an_error(counting_corpus):
    """A model of "nearest" labels with a manifest of "nested" ones."""
    with pytest.raises(ValueError, match=r"label sets \[10\] are missing, found \[50\]"):
        PretrainingDataset(MAKER, [50, 10])[0, read_cuts(counting_corpus([8000]))]


def with_other_audio(path, samples):
    """The manifest of one utterance, whose audio is not that which was labelled."""
    entry = json.loads(path.read_text())
    soundfile.write(path.parent / entry["audio_filepath"], samples, 16000, subtype="PCM_16")
    path.write_text(json.dumps({**entry, "duration": len(samples) / 16000}) + "\n")
    return path


@pytest.mark.parametrize("new_length", [7000, 7679, 8321, 16000])
def test_audio_that_changed_after_labelling_is_an_error(counting_corpus, new_length):
    """Silence trimmed after labelling shifts every label."""
    path = with_other_audio(counting_corpus([8000]), counting_audio(new_length))
    with pytest.raises(ValueError, match=f"labelled with 8000 samples, but the audio has {new_length}"):
        PretrainingDataset(MAKER, [50])[0, read_cuts(path)]


@pytest.mark.parametrize("new_length, frames", [(8080 - 320, 24), (8079, 24), (8081, 25), (8080 + 320, 25)])
@pytest.mark.parametrize("in_tar", [False, True])
def test_a_hop_more_or_less_is_a_decoder(counting_corpus, warnings, new_length, frames, in_tar):
    """Decoders of MP3 differ by some samples. Such files were left out in every second batch, as unreadable."""
    path = with_other_audio(counting_corpus([8080]), counting_audio(new_length))
    (cut,) = read_cuts(path)
    if in_tar:  # its duration is that of the manifest, its recording the member of the tar
        cut.duration = 8080 / 16000
    for number in range(8):
        batch = PretrainingDataset(MAKER, [50])[number, CutSet.from_cuts([cut])]
        assert check_row(batch, 0)[1] == frames and not warnings


def test_unknown_crop_is_refused():
    """A typo in a config."""
    with pytest.raises(ValueError, match="expected one of .*'longest'"):
        PretrainingDataset(MAKER, [50], crop="longest")


def test_collate_pads_both_axes():
    """Shapes of a batch are its contract."""
    short = ("a", np.ones(400, np.float32), {5: np.array([1])})
    long = ("b", np.ones(720, np.float32), {5: np.array([2, 3])})
    batch = collate([short, long])
    assert batch["audio"].sum(dim=1).tolist() == [400, 720] == batch["length"].tolist()
    assert batch["labels"][5].tolist() == [[1, -100], [2, 3]]
    assert batch["utterances"] == ["a", "b"]


def test_the_chosen_channel_is_heard(counting_corpus, tmp_path, warnings):
    """NeMo's channel_selector is what the warning about stereo advises: it must do, and take the channel it names."""
    path = counting_corpus([8000])
    samples = counting_audio(8000)
    soundfile.write(tmp_path / "audio" / "u0.wav", np.stack([0 * samples, samples], axis=1), 16000, subtype="PCM_16")
    batch = PretrainingDataset(MAKER, [50])[0, read_cuts(path, channel_selector=1)]
    assert check_row(batch, 0) == (0, frame_count(8000)) and not warnings


@pytest.mark.parametrize("surplus", [-1, 1, 80, 320])
@pytest.mark.parametrize("offset", [0.1, 0.5])
def test_a_labelled_segment_alone_may_be_a_hop_longer(counting_corpus, warnings, surplus, offset):
    """Packed as MP3, say: its samples were looked for behind the offset again, and heard with labels of others."""
    path = counting_corpus([16000 if surplus > 0 else 16080, 8000])
    entries = read_manifest(path)
    num_samples = entries[0]["labels"]["num_samples"] + surplus
    soundfile.write(entries[0]["audio_filepath"], counting_audio(num_samples), 16000, subtype="PCM_16")
    entries[0]["labels"]["offset"], entries[0]["duration"] = offset, num_samples / 16000
    write_manifest(path, entries)
    cuts, dataset = read_cuts(path), PretrainingDataset(MAKER, [50])
    for number in range(10):
        assert check_row(dataset[number, cuts], 0)[1] == frame_count(8000) and not warnings
