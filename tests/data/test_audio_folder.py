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

"""Manifests of any folder: every recording once and whole, no rubbish, and nothing half-written."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import OmegaConf

from nemo_mshubert.clustering.features import MfccFeatures
from nemo_mshubert.clustering.frame_sample import sample_corpus_frames
from nemo_mshubert.clustering.label_maker import fit_label_maker
from nemo_mshubert.clustering.labelling import label_manifest
from nemo_mshubert.data import audio_folder, mono_mix
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.audio_files import audio_suffixes
from nemo_mshubert.data.audio_folder import prepare_folder, utterance_ids
from nemo_mshubert.data.hours_table import hours_table
from nemo_mshubert.data.labels import check_labelled_manifest
from nemo_mshubert.data.manifest import read_manifest
from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import training_loader, validation_loader
from nemo_mshubert.data.tarred import make_tarred

pytestmark = pytest.mark.unit
SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_folder.py"
STRANGE = "Müller & Söhne/#1 [100%] {a}/it's (c), =d.wav"


def noise(num_samples, channels=1, seed=0):
    shape = (num_samples, channels) if channels > 1 else num_samples
    return np.random.default_rng(seed).uniform(-0.1, 0.1, shape)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def add(data):
    """``add("a/b.wav", 8000, rate=16000, ...)``: a recording of so many samples below the folder; its path."""

    def write(name, num_samples=8000, rate=16000, channels=1, **options):
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(num_samples, channels, seed=len(name)), rate, **options)
        return path

    return write


@pytest.fixture
def prepare(data, tmp_path):
    """``prepare(...)``: the lines of <tmp_path>/out/train.json, once written."""

    def run(**options):
        prepare_folder(data, tmp_path / "out/train.json", **options)
        return read_manifest(tmp_path / "out/train.json")

    return run


def ids(entries):
    return [entry["utt_id"] for entry in entries]


# --- Whole files -----------------------------------------------------------------------------------------------------


def test_every_format_at_any_depth_is_a_line(add, prepare, tmp_path):
    """A format or folder passed over is hours of speech that nobody misses until the model is trained."""
    recordings = [
        (add(STRANGE, 8000), 16000),
        (add("a.wav", 8000), 16000),
        (add("b/UPPER.WAV", 4000, 8000), 8000),
        (add("b/c/d/e.flac", 22050, 44100), 44100),
        (add("b/v.ogg", 24000, 48000), 48000),
        (add("b/w.opus", 24000, 48000, format="OGG", subtype="OPUS"), 48000),
        (add("x.aif", 11025, 22050, format="AIFF"), 22050),
        (add("x.y.au", 8000), 16000),
        (add("z.caf", 8000), 16000),
        (add("z2.w64", 8000), 16000),
    ]
    entries = prepare()
    assert entries == [
        {"audio_filepath": str(path), "duration": 0.5, "utt_id": utt_id, "sampling_rate": rate}
        for (path, rate), utt_id in zip(
            recordings, [STRANGE[:-4], "a", "b/UPPER", "b/c/d/e", "b/v", "b/w", "x", "x.y", "z", "z2"]
        )
    ]
    assert all(len(load_audio(entry)) == 8000 for entry in entries)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.json"]  # no temporary, no problems


def test_the_manifest_may_lie_above_its_audio(add, data):
    """Then the folder can be moved with it."""
    add("b/ü.wav")
    prepare_folder(data, data / "train.json")
    assert '"audio_filepath": "b/ü.wav"' in (data / "train.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a.wav", "b.wav"], ["a", "b"]),
        (["a.flac", "a.wav", "d/a.wav"], ["a.flac", "a.wav", "d/a"]),
        (["a.mp3", "a.wav", "a.wav.wav"], ["a.mp3", "a.wav", "a.wav.wav"]),
        (["a-0000.wav", "a.wav"], ["a-0000.wav", "a"]),
        (["a.mp3", "a.wav", "a.wav-0001.wav"], ["a.mp3", "a.wav", "a.wav-0001.wav"]),
        (["84-121123-0000.flac", "84-121123-0001.flac"], ["84-121123-0000", "84-121123-0001"]),
    ],
)
def test_ids_differ_also_those_of_segments(names, expected):
    """Alignments and metrics of one would be taken for those of the other."""
    found = utterance_ids(names)
    assert found == expected
    segments = [f"{utt_id}-{piece:04d}" for utt_id in found for piece in range(3)]
    assert len({*found, *segments}) == 4 * len(names)


def test_hidden_files_are_no_recordings(add, data, prepare):
    """macOS leaves "._" files beside those it copies, and trash keeps what somebody did not want."""
    add("a.wav")
    for name in ("._a.wav", ".b.wav", ".Trash/c.wav", "d/.cache/e/f.wav"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert ids(prepare()) == ["a"]


@pytest.mark.timeout(60)
def test_links_are_followed_once(add, data, prepare, tmp_path):
    """Recordings often lie on another disk; a link in a circle would be walked for ever."""
    add("d/a.wav")
    add("../elsewhere/b.wav")
    (data / "circle").symlink_to(data)
    (data / "above").symlink_to(tmp_path)
    (data / "0_again").symlink_to("d")
    (data / "far").symlink_to("../elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    (data / "file.wav").symlink_to("../elsewhere/b.wav")
    assert ids(prepare()) == ["above/elsewhere/b", "d/a", "file"]


def test_what_is_not_taken_is_told(add, data, prepare, caplog):
    """Of a folder of M4A and WAV the manifest would be the WAV alone, without a word."""
    add("a.wav")
    for name in ("b.m4a", "c.M4A", "notes.txt", "README"):
        (data / name).touch()
    with caplog.at_level("INFO"):
        prepare()
    assert f"{data}: not taken for audio: 2 .m4a, 1 without suffix, 1 .txt" in caplog.text
    (data / "a.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"no audio in it. .*\.aif, .*\.wav.* found 2 .m4a.*ffmpeg"):
        prepare()
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        prepare_folder(data / "nowhere", data / "train.json")


def test_headerless_files_are_not_guessed():
    """Anything is audio to a reader of raw samples."""
    assert ".raw" not in audio_suffixes() and {".wav", ".flac", ".ogg", ".aif", ".au"} <= set(audio_suffixes())


# --- Segments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate, num_samples", [(16000, 160000), (16000, 112003), (44100, 308701), (8000, 8001)])
def test_segments_are_the_file(add, prepare, rate, num_samples):
    """A gap is speech that is never heard, an overlap one that is heard twice as often."""
    path = add("a.wav", num_samples, rate)
    add("short.wav", 3 * rate, rate)
    entries = prepare(segment_seconds=3)
    *pieces, short = entries
    count = -(-num_samples // (3 * rate))
    assert short == {
        "audio_filepath": str(path.with_name("short.wav")),
        "duration": 3.0,
        "utt_id": "short",
        "sampling_rate": rate,
    }
    if count == 1:
        assert ids(pieces) == ["a"] and "offset" not in pieces[0]
        return
    assert ids(pieces) == [f"a-{piece:04d}" for piece in range(count)]
    assert all("sampling_rate" not in entry for entry in pieces)  # NeMo would take each for the whole file
    starts = [entry["offset"] * rate for entry in pieces]
    lengths = [entry["duration"] * rate for entry in pieces]
    np.testing.assert_allclose([*starts, *lengths], np.round([*starts, *lengths]), atol=1e-6)  # whole samples
    np.testing.assert_allclose([*starts, num_samples], np.cumsum([0, *lengths]), atol=1e-6)
    assert max(lengths) - min(lengths) < 1.5 and max(lengths) <= 3 * rate + 1e-6
    parts = [load_audio(entry) for entry in pieces]
    if rate == 16000:
        samples, _ = soundfile.read(path, dtype="float32")
        np.testing.assert_array_equal(np.concatenate(parts), samples)


@pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="libsndfile before 1.1 lacks MP3")
def test_segments_of_an_mp3_are_where_they_say(add, prepare):
    """Its frames overlap and lie at no fixed places; radio and podcasts are MP3."""
    path = add("a.mp3", 16000 * 5 + 7)
    samples, _ = soundfile.read(path, dtype="float32")
    pieces = [load_audio(entry) for entry in prepare(segment_seconds=1)]
    assert len(pieces) == 6
    np.testing.assert_allclose(np.concatenate(pieces), samples, atol=1e-4)


@pytest.mark.parametrize("segment_seconds", [0, None])
def test_files_stay_whole_where_that_is_wanted(add, prepare, segment_seconds):
    """For recordings that somebody cut already, or will transcribe."""
    add("a.wav", 30 * 16000)
    (entry,) = prepare(segment_seconds=segment_seconds)
    assert (entry["utt_id"], entry["duration"]) == ("a", 30.0)
    assert ids(prepare()) == ["a-0000", "a-0001"]


def test_labels_tars_and_training_take_them(add, data, prepare, tmp_path):
    """The manifest is for them; each has rules of its own for lines with an offset and for strange names."""
    add(STRANGE, 5 * 44100, 44100)
    add("calls/b [1].wav", 90001)
    add("stereo.ogg", 24000, 16000, channels=2)
    entries = prepare(segment_seconds=2, mono=tmp_path / "mono")
    train, labelled, features = tmp_path / "out/train.json", tmp_path / "out/labelled.json", MfccFeatures()
    assert len(entries) == 3 + 3 + 1
    frames = sample_corpus_frames([train], features, 10**6, seed=0)
    maker = fit_label_maker(frames, [8, 4], features.description, backend="sklearn")
    label_manifest(train, labelled, maker, features)
    assert check_labelled_manifest(labelled, maker.id)["utterances"] == 7

    loader = dict(sample_rate=16000, batch_size=2, min_duration=0.1, num_workers=0, pin_memory=False, seed=0)
    dataset = PretrainingDataset(maker.id, [8], "pad")
    plain = OmegaConf.create({**loader, "manifest_filepath": str(labelled)})
    heard = []
    for batch in validation_loader(plain, dataset, 0, 1):
        heard += [row[:length].numpy() for row, length in zip(batch["audio"], batch["length"])]
    assert sorted(len(row) for row in heard) == sorted(
        (len(load_audio(entry)) - 400) // 320 * 320 + 400 for entry in entries
    )
    for entry in entries[3:6]:  # at 16 kHz they are the samples of the file
        expected = load_audio(entry)
        assert any(np.array_equal(row, expected[: len(row)]) for row in heard)

    make_tarred(labelled, tmp_path / "tars", 2)
    tarred = OmegaConf.create(
        {
            **loader,
            "manifest_filepath": f"{tmp_path}/tars/sharded_manifests/manifest__OP_0..1_CL_.json",
            "tarred_audio_filepaths": f"{tmp_path}/tars/audio__OP_0..1_CL_.tar",
            "shuffle": True,
        }
    )
    batches = itertools.islice(training_loader(tarred, dataset, 0, 1), 20)
    assert len({name for batch in batches for name in batch["utterances"]}) == 7


# --- Problems --------------------------------------------------------------------------------------------------------


def test_everything_wrong_is_named_and_can_be_skipped(add, data, prepare, tmp_path):
    """Otherwise labelling stops at each of them, one a night."""
    add("good.wav")
    problems = {
        add("cut off.flac", 16000): "broken or cut off",
        add("short.wav", 399): "399 samples at 16000 Hz, shorter than one frame",
        add("short8.wav", 199, 8000): "199 samples at 8000 Hz, shorter than one frame",
        add("stereo.wav", channels=2): "2 channels, expected 1",
        add("gsm.wav", rate=8000, format="WAV", subtype="GSM610"): "which cannot be read from its middle on",
        add("none.wav", 0): "no samples",
        data / "empty.wav": "empty file",
        data / "page.mp3": "broken or cut off",
        data / "link.wav": "no file, but a link that leads nowhere",
        data / "pipe.wav": "no file, but a link that leads nowhere, or a pipe",
    }
    (data / "cut off.flac").write_bytes((data / "cut off.flac").read_bytes()[:-200])
    (data / "empty.wav").touch()
    (data / "page.mp3").write_bytes(b"<html>404</html>")
    (data / "link.wav").symlink_to("gone.wav")
    os.mkfifo(data / "pipe.wav")
    with pytest.raises(ValueError, match=f"{len(problems)} problems.*--skip_broken"):
        prepare()
    listed = (tmp_path / "out/problems.txt").read_text().splitlines()
    assert len(listed) == len(problems)
    for path, complaint in problems.items():
        assert any(line.startswith(f"{path}: ") and complaint in line for line in listed), path
    assert not (tmp_path / "out/train.json").exists()

    assert ids(prepare(skip_broken=True)) == ["good"]
    assert (tmp_path / "out/problems.txt").read_text().splitlines() == listed
    for path in problems:
        path.unlink()
    assert ids(prepare()) == ["good"]
    assert not (tmp_path / "out/problems.txt").exists()  # a stale list sends people after files that are sound


def test_shortest_that_has_a_label(add, prepare):
    """25 ms, at any rate."""
    add("a.wav", 400)
    add("b.wav", 200, 8000)
    assert ids(prepare()) == ["a", "b"]


def test_a_name_that_is_not_utf8_is_a_problem(add, data, prepare, tmp_path):
    """Names of old disks: the manifest cannot hold it, and nor could the list of problems."""
    add("a.wav")
    (data / os.fsdecode(b"caf\xe9.wav")).write_bytes((data / "a.wav").read_bytes())
    with pytest.raises(ValueError, match="1 problems"):
        prepare()
    assert r"caf\udce9.wav: the name is not UTF-8" in (tmp_path / "out/problems.txt").read_text()
    assert ids(prepare(skip_broken=True)) == ["a"]


def test_a_folder_that_may_not_be_read_is_a_problem(add, data, prepare, tmp_path, monkeypatch):
    """os.walk passes over it."""
    add("a.wav")
    add("locked/b.wav")
    real = os.scandir

    def scandir(path):  # root, as whom tests may run, may read everything
        if Path(path) == data / "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="1 problems"):
        prepare()
    assert (tmp_path / "out/problems.txt").read_text() == f"{data}/locked: cannot be read (Permission denied)\n"
    assert ids(prepare(skip_broken=True)) == ["a"]


def test_nothing_left_is_an_error(data, prepare):
    (data / "a.wav").touch()
    with pytest.raises(ValueError, match="no file is left. See .*problems.txt"):
        prepare(skip_broken=True)


# --- Several channels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subtype, channels, error", [("PCM_16", 2, 0.5001 / 2**15), ("FLOAT", 3, 1.0001 / 2**23)])
def test_a_mix_is_the_mean_of_the_channels(add, prepare, tmp_path, monkeypatch, subtype, channels, error):
    """In blocks, as recordings last hours."""
    monkeypatch.setattr(mono_mix, "BLOCK_FRAMES", 1000)
    path = add("calls/a b.wav", 22051, 22050, channels, subtype=subtype)
    add("single.wav")
    mixed, single = prepare(mono=tmp_path / "mono")
    assert (mixed["audio_filepath"], mixed["utt_id"]) == (str(tmp_path / "mono/calls/a b.flac"), "calls/a b")
    assert (mixed["duration"], mixed["sampling_rate"]) == (22051 / 22050, 22050)
    assert single["audio_filepath"] == str(path.parents[1] / "single.wav")
    samples, rate = soundfile.read(mixed["audio_filepath"])
    np.testing.assert_allclose(samples, soundfile.read(path)[0].mean(axis=1), atol=error)
    assert rate == 22050 and [file.name for file in (tmp_path / "mono").rglob("*.*")] == ["a b.flac"]


def test_mixes_are_made_once(add, prepare, tmp_path):
    """Of a corpus of weeks; what is there already is taken only where it is whole."""
    path = add("a.wav", channels=2)
    (entry,) = prepare(mono=tmp_path / "mono")
    mix = Path(entry["audio_filepath"])
    os.utime(mix, (1, 1))
    assert prepare(mono=tmp_path / "mono") == [entry] and mix.stat().st_mtime == 1
    for broken in (mix.read_bytes()[:-100], path.read_bytes()):  # cut off, or another file
        mix.write_bytes(broken)
        with pytest.raises(ValueError, match="1 problems"):
            prepare(mono=tmp_path / "mono")
        assert (
            f"{path}: {mix} is there already, and is not its mix. Remove"
            in (tmp_path / "out/problems.txt").read_text()
        )
        assert mix.read_bytes() == broken  # it may be somebody's


def test_mixes_of_another_folder_are_not_taken_over(add, prepare, tmp_path):
    """Clips of ten seconds that are called 0001 in each of two folders: the second manifest was of the first's."""
    path = add("0001.wav", channels=2)
    prepare(mono=tmp_path / "mono")
    soundfile.write(path, noise(8000, 2, seed=77), 16000)
    with pytest.raises(ValueError, match="1 problems"):
        prepare(mono=tmp_path / "mono")
    assert "0001.flac is there already, and is not its mix." in (tmp_path / "out/problems.txt").read_text()


def test_a_recording_that_breaks_while_it_is_mixed_is_a_problem(add, prepare, tmp_path):
    """Nothing of it is left, which the next call would take for the mix."""
    path = add("a.wav", channels=2, subtype="FLOAT")
    add("b.wav", channels=2)
    samples, rate = soundfile.read(path)
    samples[4000] = np.nan
    soundfile.write(path, samples, rate, subtype="FLOAT")
    with pytest.raises(ValueError, match="1 problems"):
        prepare(mono=tmp_path / "mono")
    assert (tmp_path / "out/problems.txt").read_text() == f"{path}: NaN or infinite samples\n"
    assert [file.name for file in (tmp_path / "mono").iterdir()] == ["b.flac"]
    assert ids(prepare(mono=tmp_path / "mono", skip_broken=True)) == ["b"]


def test_a_full_disk_is_not_the_recordings_fault(add, prepare, tmp_path, monkeypatch):
    """With --skip_broken all of them would be left out as broken."""
    add("a.wav", channels=2)
    monkeypatch.setattr(mono_mix, "_write", lambda *_: None)  # libsndfile's encoder says nothing at its last block
    with pytest.raises(OSError, match="mono/a.flac: could not be written whole. Is the disk full"):
        prepare(mono=tmp_path / "mono", skip_broken=True)
    assert not list((tmp_path / "mono").iterdir()) and not (tmp_path / "out/train.json").exists()


def test_problems_are_told_before_hours_of_mixing(add, data, prepare, tmp_path):
    add("a.wav", channels=2)
    (data / "b.wav").touch()
    with pytest.raises(ValueError, match="1 problems"):
        prepare(mono=tmp_path / "mono")
    assert not (tmp_path / "mono").exists()


def test_mixes_do_not_lie_among_the_recordings(add, data, prepare):
    """The next call would take both."""
    add("a.wav", channels=2)
    for mono in (data, data / "mono"):
        with pytest.raises(ValueError, match="lies in .*data, where the next call.*another --mono"):
            prepare(mono=mono)


# --- Train and dev ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prepare_both(data, tmp_path):
    """``prepare_both(...)``: the lines of train.json and dev.json."""

    def run(**options):
        paths = tmp_path / "out/train.json", tmp_path / "out/dev.json"
        prepare_folder(data, *paths, segment_seconds=1, **options)
        return tuple(map(read_manifest, paths))

    return run


def files(entries):
    return {entry["audio_filepath"] for entry in entries}


def test_the_split_is_by_file_and_stable(add, prepare_both):
    """Otherwise val_loss is of what the model has heard, and another one with every file that is added."""
    for number in range(40):
        add(f"{number}/a.wav", 24000)
    train, dev = prepare_both(dev_share=0.3)
    assert not files(train) & files(dev) and len(train) + len(dev) == 80 and len({*ids(train), *ids(dev)}) == 80
    assert 4 <= len(files(dev)) <= 20
    for number in range(40, 60):
        add(f"{number}/a.wav", 24000)
    more_train, more_dev = prepare_both(dev_share=0.3)
    assert files(train) < files(more_train) and files(dev) < files(more_dev)
    assert prepare_both(dev_share=0.3) == (more_train, more_dev)


def test_an_empty_side_is_an_error_with_a_remedy(add, prepare_both, tmp_path):
    """A hundredth of a few files is none; pre-training needs one to validate on."""
    add("a.wav")
    with pytest.raises(ValueError, match="1 file cannot be shared.*Leave out --dev_output"):
        prepare_both()
    for number in range(5):
        add(f"{number}.wav")
    with pytest.raises(ValueError, match="all of 6 files fall to dev"):
        prepare_both(dev_share=0.9999)
    with pytest.raises(ValueError, match="none of 6 files.*Give --dev_share 0") as error:
        prepare_both(dev_share=1e-6)
    assert not (tmp_path / "out").exists()
    _, dev = prepare_both(dev_share=float(str(error.value).split()[-3]))
    assert len(dev) == 1


@pytest.mark.parametrize("failing", ["train.json", "dev.json"])
def test_both_manifests_are_written_or_none(add, prepare_both, tmp_path, monkeypatch, failing):
    """A new train beside an old dev may share files with it."""
    for number in range(20):
        add(f"{number}.wav")
    before = prepare_both(dev_share=0.5)
    add("more.wav")
    real = audio_folder.manifest_lines

    def lines(path, entries):
        yield from itertools.islice(real(path, entries), 2 if Path(path).name == failing else None)
        if Path(path).name == failing:
            raise OSError("the disk is full")

    monkeypatch.setattr(audio_folder, "manifest_lines", lines)
    with pytest.raises(OSError, match="full"):
        prepare_both(dev_share=0.5)
    assert tuple(read_manifest(tmp_path / "out" / name) for name in ("train.json", "dev.json")) == before
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_kill_leaves_no_new_dev_beside_an_old_train(add, prepare_both, tmp_path, monkeypatch):
    """With another --dev_share the recordings that the model is judged by were among those that it is trained on."""
    for number in range(20):
        add(f"{number}.wav")
    prepare_both(dev_share=0.2)
    replace, renamed = os.replace, []

    def killed_between(source, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_between)
    with pytest.raises(KeyboardInterrupt):
        prepare_both(dev_share=0.8)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [Path(renamed[0]).name] == ["dev.json"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dev_output": "out/../out/train.json"}, "both manifests would be this file"),
        ({"dev_output": "data"}, "data: a folder. Name a file in it"),
        ({"dev_share": 1.0}, "--dev_share 1: expected a share of the files, between 0 and 1"),
        ({"dev_share": 0.0}, "--dev_share 0: expected a share of the files, between 0 and 1"),
        ({"segment_seconds": -1}, "--segment_seconds -1: expected 1 or more, or 0 for whole files"),
        ({"segment_seconds": float("nan")}, "--segment_seconds nan: expected 1 or more"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(add, prepare, tmp_path, monkeypatch, options, message):
    """Before what may take hours."""
    add("a.wav")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prepare(**options)
    assert not (tmp_path / "out").exists()


# --- The script ------------------------------------------------------------------------------------------------------


def test_table_adds_up(add, data, tmp_path):
    """People judge by this table whether all is there."""
    add("a.wav", 18 * 16000)
    add("b.wav", 18 * 16000)
    manifests = prepare_folder(data, tmp_path / "train.json", segment_seconds=10)
    table = hours_table(manifests, "files", "audio_filepath", "lines").splitlines()
    assert table[0].split() == ["manifest", "hours", "files", "lines"]
    assert table[1].split() == [str(tmp_path / "train.json"), "0.01", "2", "4"]


@pytest.mark.integration
def test_script_fails_on_a_broken_file(add, data, tmp_path):
    """A pipeline must stop at it, not after it."""
    for number in range(8):
        add(f"{number}.wav", 20000)
    outputs = ["--output", str(tmp_path / "train.json"), "--dev_output", str(tmp_path / "dev.json")]
    command = [sys.executable, str(SCRIPT), "--data", str(data), *outputs, "--dev_share", "0.5"]
    good = subprocess.run([*command, "--segment_seconds", "1"], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    assert good.stdout.split()[:4] == ["manifest", "hours", "files", "lines"]
    lines = sum(len(read_manifest(tmp_path / name)) for name in ("train.json", "dev.json"))
    assert lines == 16 == sum(int(row.split()[-1]) for row in good.stdout.splitlines()[1:])
    (data / "0.wav").write_bytes(b"")
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode != 0 and "0.wav: empty file" in bad.stderr and "Traceback" not in bad.stderr
