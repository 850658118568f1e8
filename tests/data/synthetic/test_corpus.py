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

"""The synthetic corpus: what is written is what is heard, when it is said to be heard, and the same every time."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_mshubert.data.librispeech import prepare_librispeech
from nemo_mshubert.data.synthetic import corpus
from nemo_mshubert.data.synthetic.corpus import SUBSETS, synthesize_corpus

pytest.importorskip("espeakng_loader", reason="synthetic speech needs espeakng-loader")
SCRIPT = Path(__file__).parents[3] / "scripts" / "synthesize_corpus.py"
MINUTES = dict(train_minutes=1.0, dev_minutes=0.5, test_minutes=0.5)


def read_times(path: Path):
    with gzip.open(path, "rt") as stream:
        return {entry["utt_id"]: entry for entry in map(json.loads, stream)}


def digests(root: Path):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    synthesize_corpus(root, **MINUTES, seed=3)
    return root


@pytest.fixture(scope="module")
def manifests(root, tmp_path_factory):
    return prepare_librispeech(root, tmp_path_factory.mktemp("manifests"))


@pytest.mark.unit
def test_corpus_is_a_sound_librispeech_folder_of_the_length_asked_for(manifests):
    """Every example and the quickstart start here."""
    assert sorted(manifests) == sorted(SUBSETS)
    for subset, minutes in zip(SUBSETS, MINUTES.values()):
        seconds = [entry["duration"] for entry in manifests[subset]]
        speakers = {entry["speaker"] for entry in manifests[subset]}
        assert len(speakers) == 2
        assert abs(sum(seconds) - 60 * minutes) <= 4 * len(speakers)  # half of the longest utterance per speaker
        assert 2 <= min(seconds) and max(seconds) <= 8
        assert {entry["gender"] for entry in manifests[subset]} == {"F", "M"}


@pytest.mark.unit
def test_audio_is_16_khz_mono_16_bit_neither_silent_nor_clipped(root):
    """NeMo would resample otherwise; clipped or silent speech teaches nothing."""
    for path in root.rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        samples, _ = soundfile.read(path)
        assert 0.1 < np.abs(samples).max() < 0.99, path
        assert np.sqrt(np.mean(samples[:1600] ** 2)) > 1e-5, f"{path}: digital silence before the speech"


@pytest.mark.unit
def test_words_are_the_transcript_in_order_and_within_the_audio(root, manifests):
    """Word-CCA and phone purity read these times."""
    words, phones = (read_times(root / f"align_{kind}.jsonl.gz") for kind in ("words", "phones"))
    entries = [entry for lines in manifests.values() for entry in lines]
    assert set(words) == set(phones) == {entry["utt_id"] for entry in entries}
    for entry in entries:
        spoken = words[entry["utt_id"]]["words"]
        assert " ".join(word["word"] for word in spoken) == entry["text"]
        assert phones[entry["utt_id"]]["complete"] is True
        for spans in (spoken, phones[entry["utt_id"]]["phones"]):
            times = [time for span in spans for time in (span["start"], span["end"])]
            assert times == sorted(times) and 0.1 < times[0] and times[-1] < entry["duration"] - 0.1
            assert all(0.009 < span["end"] - span["start"] < 1.5 for span in spans), entry["utt_id"]


@pytest.mark.unit
def test_the_speech_is_where_the_times_say(root, manifests):
    """Independent of espeak's word: the energy rises at the first word and falls at the last one."""
    words = read_times(root / "align_words.jsonl.gz")
    starts, ends = [], []
    for entry in (entry for lines in manifests.values() for entry in lines):
        samples, _ = soundfile.read(entry["audio_filepath"])
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)  # 10 ms
        level = np.sqrt(np.mean(frames**2, axis=1))
        heard = np.flatnonzero(level > 3 * level[:10].max())
        spoken = words[entry["utt_id"]]["words"]
        starts.append(heard[0] / 100 - spoken[0]["start"])
        ends.append((heard[-1] + 1) / 100 - spoken[-1]["end"])
    assert abs(np.median(starts)) < 0.02 and abs(np.median(ends)) < 0.02, (np.median(starts), np.median(ends))
    assert np.abs(starts).max() < 0.12 and np.abs(ends).max() < 0.2, "a wrong rate or offset moves these by far more"


@pytest.mark.unit
def test_sibilants_hiss_where_the_phones_say(root, manifests):
    """A drift within the utterance would leave its two ends in place; [s] is the phone one can measure."""
    phones = read_times(root / "align_phones.jsonl.gz")
    brightness = defaultdict(list)  # share of the energy above 4 kHz
    for entry in manifests["train-clean"]:
        samples, _ = soundfile.read(entry["audio_filepath"])
        for phone in phones[entry["utt_id"]]["phones"]:
            middle = round((phone["start"] + phone["end"]) / 2 * 16000)
            spectrum = np.abs(np.fft.rfft(samples[middle - 160 : middle + 160] * np.hanning(320))) ** 2
            brightness["s" if phone["phone"] == "s" else "other"].append(spectrum[80:].sum() / spectrum.sum())
    assert len(brightness["s"]) > 20
    assert np.mean(np.array(brightness["s"]) > 0.5) > 0.9
    assert np.median(brightness["other"]) < 0.1


@pytest.mark.unit
def test_subsets_share_no_voice_and_no_sentence(manifests):
    """Otherwise development and test results are those of the training set."""
    for what in ("speaker", "text"):
        seen = [{entry[what] for entry in manifests[subset]} for subset in SUBSETS]
        assert sum(map(len, seen)) == len(set.union(*seen)), what


@pytest.mark.unit
def test_same_seed_same_bytes_other_seed_other_corpus(root, tmp_path):
    """Reports name a seed; it has to mean one corpus."""
    time.sleep(1.1)  # espeak seeds its noise with the seconds of the clock, unless told otherwise
    synthesize_corpus(tmp_path / "same", **MINUTES, seed=3)
    assert digests(tmp_path / "same") == digests(root)
    synthesize_corpus(tmp_path / "other", train_minutes=0.1, dev_minutes=0.1, test_minutes=0.1, seed=4)
    assert not set(digests(tmp_path / "other").values()) & set(digests(root).values())


@pytest.mark.unit
def test_second_run_repairs_what_is_missing_and_touches_nothing_else(tmp_path):
    """An interrupted run is completed, and a repaired corpus is the corpus it was."""
    minutes = dict(train_minutes=0.3, dev_minutes=0.1, test_minutes=0.1)
    synthesize_corpus(tmp_path, **minutes)
    before = digests(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    synthesize_corpus(tmp_path, **minutes)
    assert written == {path: path.stat().st_mtime_ns for path in written}, "a complete corpus was written again"

    audio = sorted(tmp_path.rglob("*.flac"))
    audio[1].unlink()  # lost
    audio[-1].write_bytes(b"")  # cut off
    (tmp_path / "align_words.jsonl.gz").unlink()
    synthesize_corpus(tmp_path, **minutes)
    assert digests(tmp_path) == before
    untouched = [path for path in audio if path not in (audio[1], audio[-1])]
    assert all(path.stat().st_mtime_ns == written[path] for path in untouched)


@pytest.mark.unit
def test_a_speaker_whose_process_dies_is_named(tmp_path, monkeypatch):
    """A pool of processes waits for it for ever."""
    monkeypatch.setattr(corpus, "synthesize_speaker", os._exit)  # of a Voice: ends with an error
    with pytest.raises(RuntimeError, match="speaker .*: the process of espeak-ng ended with .*Run the same command"):
        synthesize_corpus(tmp_path, train_minutes=0.1, dev_minutes=0.1, test_minutes=0.1)


@pytest.mark.unit
def test_folder_of_other_settings_is_refused(root):
    """Two corpora mixed in one folder would be neither."""
    with pytest.raises(ValueError, match=r"holds another corpus, with seed 3 \(now 5\)"):
        synthesize_corpus(root, **MINUTES, seed=5)
    with pytest.raises(ValueError, match="dev-clean: 0 minutes"):
        synthesize_corpus(root, train_minutes=1, dev_minutes=0, test_minutes=1, seed=3)


@pytest.mark.integration
def test_script(tmp_path):
    """The command of the README."""
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "c")]
    sizes = ["--train_minutes", "0.1", "--dev_minutes", "0.1", "--test_minutes", "0.1"]
    subprocess.run([*command, *sizes], check=True, capture_output=True)
    assert (tmp_path / "c/align_words.jsonl.gz").is_file()
    other = subprocess.run([*command, *sizes, "--seed", "1"], capture_output=True, text=True)
    assert other.returncode != 0 and "another corpus" in other.stderr and "Traceback" not in other.stderr
