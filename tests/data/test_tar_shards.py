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

"""Shards read by member: the same audio and errors as reading tars from start to end."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from nemo_mshubert.data import tar_shards
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import training_loader
from nemo_mshubert.data.shard_visits import LINE, VisitRecord, Visits
from nemo_mshubert.data.tar_shards import Shard, shards_of, with_audio
from nemo_mshubert.data.tarred import make_tarred
from nemo_mshubert.modules.frames import frame_count
from tests.data.test_resumable_loader import options

pytestmark = pytest.mark.unit
LENGTHS = [8000 + 800 * number for number in range(6)]


@pytest.fixture
def tars(counting_corpus, tmp_path):
    """Folder of a tarred dataset in two shards."""
    make_tarred(counting_corpus(LENGTHS), tmp_path / "tars", 2)
    return tmp_path / "tars"


def epoch_of(manifests, tars, lines=len(LENGTHS), channel_selector=None):
    """Cuts of one epoch, with audio, by recording."""
    visits = Visits(shards_of(manifests, tars), lambda entry: True, 0, True, VisitRecord(), channel_selector)
    cuts = [with_audio(cut) for cut in itertools.islice(visits, lines)]
    assert sorted({cut.custom[LINE][0] for cut in cuts}) == list(range(len(visits.shards)))
    assert not any("members" in vars(shard) for shard in visits.shards)  # indices of all tars would fill the memory
    return {cut.recording.id: cut for cut in cuts}


def patterns(folder, prefix=""):
    return (
        f"{prefix}{folder}/sharded_manifests/manifest__OP_0..1_CL_.json",
        f"{prefix}{folder}/audio__OP_0..1_CL_.tar",
    )


@pytest.mark.parametrize("layout", ["sharded", "one manifest", "sets", "remote", "remote tars"])
def test_all_ways_to_name_shards_give_the_same_utterances(tars, layout):
    """NeMo's patterns, its unsharded manifest, lists of sets, and tars behind a command or an address."""
    manifests, tar_paths = patterns(tars)
    if layout == "one manifest":
        manifests = f"{tars}/tarred_audio_manifest.json"
    elif layout == "sets":
        manifests = [[f"{tars}/sharded_manifests/manifest_{shard}.json"] for shard in range(2)]
        tar_paths = [[f"{tars}/audio_{shard}.tar"] for shard in range(2)]
    elif layout == "remote":
        manifests, tar_paths = patterns(tars, "pipe:cat ")
    elif layout == "remote tars":
        _, tar_paths = patterns(tars, "pipe:cat ")
    cuts = epoch_of(manifests, tar_paths)
    assert len(cuts) == len(LENGTHS)
    for number, num_samples in enumerate(LENGTHS):
        cut = cuts[f"audio_u{number}.wav"]
        expected, _ = soundfile.read(tars.parent / "audio" / f"u{number}.wav", dtype="float32")
        assert np.array_equal(cut.load_audio()[0], expected)
        assert cut.custom["labels"]["maker"] == "maker-one"


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, (samples, rate) in members.items():
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, rate, format="FLAC")
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            buffer.seek(0)
            tar.addfile(member, buffer)


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_segments_of_one_member_are_told_apart(tmp_path, prefix):
    """NeMo's converter keeps a long file whole and names its segments -sub1, -sub2... -sub10."""
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 48000).astype(np.float32)
    write_tar(tmp_path / "audio_0.tar", {"long.flac": (audio, 16000)})
    with open(tmp_path / "manifest_0.json", "w") as stream:
        for number, offset in enumerate((0.5, 1.5), start=9):
            labels = FrameLabels("maker-one", 16000, {50: np.zeros(frame_count(16000), dtype=np.int64)}, offset=offset)
            line = {"audio_filepath": f"long-sub{number}.flac", "offset": offset, "duration": 1.0, "shard_id": 0}
            stream.write(json.dumps({**line, "labels": labels.to_manifest()}) + "\n")
    config = options(
        manifest_filepath=f"{tmp_path}/manifest_0.json",
        tarred_audio_filepaths=f"{prefix}{tmp_path}/audio_0.tar",
        use_bucketing=False,
        batch_size=1,
        batch_duration=None,
    )
    loader = training_loader(config, PretrainingDataset("maker-one", [50]), 0, 1)
    starts = set()
    for batch in itertools.islice(loader, 6):
        samples = batch["audio"][0].numpy()
        (start,) = [n for n in (8000, 24000) if np.allclose(audio[n : n + len(samples)], samples, atol=1e-4)]
        starts.add(start)
    assert starts == {8000, 24000}


def test_segments_of_one_remote_member_come_in_the_same_order_in_every_process(tmp_path):
    """A resume passes over as many lines as were trained on: in another order they are others."""
    write_tar(tmp_path / "audio_0.tar", {"long.flac": (np.zeros(16000, np.float32), 16000)})
    lines = [
        (number, {"audio_filepath": f"long-sub{number}.flac", "offset": 0.1 * number, "duration": 0.1})
        for number in (3, 1, 6, 2, 5, 4)
    ]
    shard = Shard("manifest_0.json", f"pipe:cat {tmp_path}/audio_0.tar")
    assert [number for number, _ in shard.cuts(lines, None)] == [3, 1, 6, 2, 5, 4]


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_a_file_may_be_called_like_a_segment(counting_corpus, tmp_path, prefix):
    """Sessions of subjects, as subject-sub1.wav: read through a pipe they were looked for under another name."""
    manifest = counting_corpus([16000, 17000])
    entries = read_manifest(manifest)
    for number, entry in enumerate(entries):
        path = Path(entry["audio_filepath"])
        entry["audio_filepath"] = str(path.rename(path.with_name(f"patient-sub{number}.wav")))
    write_manifest(manifest, entries)
    make_tarred(manifest, tmp_path / "named", 1)
    config = options(
        manifest_filepath=f"{tmp_path}/named/sharded_manifests/manifest_0.json",
        tarred_audio_filepaths=f"{prefix}{tmp_path}/named/audio_0.tar",
        use_bucketing=False,
        batch_size=1,
        batch_duration=None,
    )
    loader = training_loader(config, PretrainingDataset("maker-one", [50]), 0, 1)
    names = {batch["utterances"][0] for batch in itertools.islice(loader, 6)}
    assert names == {"audio_patient-sub0.wav", "audio_patient-sub1.wav"}


@pytest.mark.parametrize("remote", ["tars", "both"])
def test_ranks_share_remote_tars(tars, remote):
    """Object stores: each rank reads other tars, also where one manifest, or none that is local, is for all."""
    manifests, tar_paths = patterns(tars, "pipe:cat ")
    if remote == "tars":
        manifests = f"{tars}/tarred_audio_manifest.json"
    config = options(manifest_filepath=manifests, tarred_audio_filepaths=tar_paths, use_bucketing=False)
    config.update(batch_duration=None, batch_size=3, shuffle_buffer_size=1)
    dataset = PretrainingDataset("maker-one", [50])
    names = [
        [
            name
            for batch in itertools.islice(training_loader(config, dataset, rank, 2), 1)
            for name in batch["utterances"]
        ]
        for rank in range(2)
    ]
    assert sorted(names[0] + names[1]) == sorted(f"audio_u{number}.wav" for number in range(len(LENGTHS)))


def test_streams_of_addresses_have_no_exit_status(tars, monkeypatch):
    """Commands have one; every shard behind an address would be called unreadable."""
    monkeypatch.setattr(tar_shards, "open_best", lambda path, mode: open(path.removeprefix("s3://"), mode))
    assert len(epoch_of(*patterns(tars, "s3://"))) == len(LENGTHS)


def test_options_that_change_the_sound_reach_it(tars):
    """NeMo's augmentations hang on the recording that a line announces; the one that is read must have them too."""
    manifests, tar_paths = patterns(tars)
    plain = options(manifest_filepath=manifests, tarred_audio_filepaths=tar_paths, use_bucketing=False)
    plain.update(batch_duration=None, batch_size=1)
    clipped = OmegaConf.merge(plain, {"clipping_enabled": True, "clipping_prob": 1.0, "clipping_prob_hard": 1.0})
    clipped.clipping_gain_db = [20.0, 21.0]
    dataset = PretrainingDataset("maker-one", [50])
    batches = [next(iter(training_loader(config, dataset, 0, 1))) for config in (plain, clipped)]
    assert batches[0]["utterances"] == batches[1]["utterances"]
    assert batches[0]["audio"].shape == batches[1]["audio"].shape
    assert not torch.allclose(batches[0]["audio"], batches[1]["audio"], atol=1e-4)


@pytest.mark.parametrize(
    "option",
    [
        {"perturb_speed": True},
        {"noise_path": "noise.json"},
        {"cut_into_windows_duration": 1.0},
        {"concatenate_samples": True},
        {"pad_min_duration": 2.0},
        {"slice_length": 1.0},
    ],
    ids=str,
)
def test_options_that_part_frames_from_labels_are_refused(tars, option):
    """Faster speech has other frames than those that were labelled."""
    manifests, tar_paths = patterns(tars)
    config = options(manifest_filepath=manifests, tarred_audio_filepaths=tar_paths, **option)
    with pytest.raises(ValueError, match=f"{[*option][0]}: .* from their labels"):
        training_loader(config, PretrainingDataset("maker-one", [50]), 0, 1)


def test_a_damaged_tar_is_named(tars):
    """Readers that pass over it would train on less than the manifest says."""
    tar = tars / "audio_1.tar"
    tar.write_bytes(b"x" * 512 + tar.read_bytes()[512:])
    with pytest.raises(ValueError, match="audio_1.tar: damaged"):
        epoch_of(*patterns(tars))


def test_a_tar_that_is_cut_short_during_the_run_is_named(tars):
    """Its last member would be decoded as a broken file, and passed over."""
    (shard,) = shards_of(f"{tars}/sharded_manifests/manifest_1.json", f"{tars}/audio_1.tar")
    name, (start, size) = max(shard.members.items(), key=lambda member: member[1])
    with open(shard.tar, "r+b") as stream:
        stream.truncate(start + size - 1)
    with pytest.raises(ValueError, match="audio_1.tar: truncated"):
        shard.read(name)


@pytest.mark.parametrize("remote", ["audio_1.tar", "sharded_manifests/manifest_1.json"])
def test_a_remote_shard_that_vanishes_or_breaks_off_is_named(tars, remote):
    """The library of an address says what is wrong, not where; Lhotse advises to install it, whatever is wrong."""
    data = (tars / remote).read_bytes()
    (tars / remote).write_bytes(data[: len(data) // 2])
    with pytest.raises((OSError, ValueError), match=f"{remote}(: cannot be read to its end|: no member|:[0-9]+: not)"):
        epoch_of(*patterns(tars, "pipe:cat "))
    (tars / remote).unlink()
    with pytest.raises(OSError, match=f"{remote}: cannot be read to its end"):
        epoch_of(*patterns(tars, "pipe:cat "))
    address = f"https://127.0.0.1:1/{remote}"  # nobody listens there
    whole = [f"{tars}/sharded_manifests/manifest_0.json", f"{tars}/audio_0.tar"]
    whole[remote.endswith("tar")] = address
    with pytest.raises(OSError, match=f"{address}: cannot be opened .*smart_open"):
        epoch_of(*whole)


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_other_rates_and_channels(tmp_path, prefix):
    """Members at 8 kHz are resampled; of two channels one is chosen, or the dataset reports them."""
    tone = np.sin(np.arange(8000) / 40).astype(np.float32) / 2
    write_tar(tmp_path / "audio_0.tar", {"a.flac": (tone, 8000), "b.flac": (np.stack([tone, -tone], 1), 8000)})
    lines = [
        {"audio_filepath": name, "duration": 1.0, "shard_id": 0, "side": side}
        for name, side in (("a.flac", 0), ("b.flac", 1))
    ]
    (tmp_path / "manifest_0.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    paths = (f"{tmp_path}/manifest_0.json", f"{prefix}{tmp_path}/audio_0.tar")
    cuts = epoch_of(*paths, lines=2)
    assert cuts["a.flac"].load_audio().shape == (1, 16000)
    assert cuts["b.flac"].load_audio().shape == (2, 16000)
    for selector in (1, "side"):  # NeMo takes a name for that of a field of the line
        second = epoch_of(*paths, lines=2, channel_selector=selector)["b.flac"]
        assert second.channel == 1
        assert np.allclose(second.load_audio(), -cuts["a.flac"].load_audio(), atol=1e-3)
    with pytest.raises(
        ValueError, match="[ab].flac: its line has no field 'ear', which channel_selector names. Add it"
    ):
        epoch_of(*paths, lines=2, channel_selector="ear")
    config = options(manifest_filepath=paths[0], tarred_audio_filepaths=paths[1], channel_selector=1)
    assert training_loader(config, PretrainingDataset("maker-one", [50]), 0, 1).dataset.visits.channel_selector == 1


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_tars_of_other_programs_have_folders_and_a_long_end(tmp_path, prefix):
    """A folder has no bytes to read; and what is behind the last member must be read, or the command that writes it
    seems to fail."""
    tone = np.sin(np.arange(16000) / 40).astype(np.float32) / 2
    soundfile.write(tmp_path / "a.flac", tone, 16000)
    (tmp_path / "folder").mkdir()
    with tarfile.open(tmp_path / "audio_0.tar", "w") as tar:
        for name in ("folder", "a.flac"):
            tar.add(tmp_path / name, name)
    with open(tmp_path / "audio_0.tar", "ab") as stream:
        stream.write(bytes(2**22))
    entry = {"audio_filepath": "a.flac", "offset": None, "duration": 1.0, "shard_id": 0}
    shard = Shard("manifest_0.json", f"{prefix}{tmp_path}/audio_0.tar")
    ((_, cut),) = list(shard.cuts([(0, entry)], None))
    assert np.allclose(with_audio(cut).load_audio()[0], tone, atol=1e-3)


def test_another_rate_and_an_option_that_changes_the_sound_go_together(tmp_path):
    """Else the option's transform would take the place of the resampling: half as many samples as labels are of."""
    tone = np.sin(np.arange(8000) / 40).astype(np.float32) / 2
    write_tar(tmp_path / "audio_0.tar", {"a.flac": (tone, 8000)})
    entry = {"audio_filepath": "a.flac", "duration": 1.0, "shard_id": 0}
    ((_, cut),) = Shard("manifest_0.json", f"{tmp_path}/audio_0.tar").cuts([(0, entry)], None)
    plain, halved = (with_audio(one).load_audio() for one in (cut, cut.perturb_volume(0.5)))
    assert plain.shape == halved.shape == (1, 16000) and np.allclose(halved, plain / 2, atol=1e-4)


def test_a_broken_member_is_skipped_and_counted(tars):
    """One bad file among a million must not end the run, and must not pass unseen."""
    tar = tars / "audio_0.tar"
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[0]
    data = bytearray(tar.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    tar.write_bytes(data)
    manifests, tar_paths = patterns(tars)
    config = options(manifest_filepath=manifests, tarred_audio_filepaths=tar_paths)
    dataset = PretrainingDataset("maker-one", [50], max_unreadable=10)
    batches = list(itertools.islice(training_loader(config, dataset, 0, 1), 12))
    assert dataset.unreadable.count > 0
    assert member.name not in {name for batch in batches for name in batch["utterances"]}
    assert all(torch.isfinite(batch["audio"]).all() for batch in batches)


def test_a_line_without_its_member_is_named(tars):
    """A manifest of another packing."""
    manifest = tars / "sharded_manifests" / "manifest_1.json"
    manifest.write_text(manifest.read_text().replace("audio_u", "other_u"))
    with pytest.raises(ValueError, match=r"audio_1.tar: no member other_u\d.wav, which .*manifest_1.json names"):
        epoch_of(*patterns(tars))


def test_weights_are_refused(tars):
    """Weights mean draws with replacement; here every shard is read once in an epoch."""
    sets = [[f"{tars}/sharded_manifests/manifest_{shard}.json", 0.5] for shard in range(2)]
    with pytest.raises(ValueError, match="no weights. List a set twice"):
        shards_of(sets, [[f"{tars}/audio_{shard}.tar"] for shard in range(2)])


def test_shards_without_partners_are_named(tars):
    """Patterns that count to different ends."""
    manifests, _ = patterns(tars)
    with pytest.raises(ValueError, match="do not match. Name the same shards in both"):
        shards_of(manifests, f"{tars}/audio__OP_0..2_CL_.tar")
    two = ["a.json", "b.json"]
    for manifests_and_tars in (([[manifests]], "audio_0.tar"), (two, ["a.tar"]), (two[:1], ["a.tar", "b.tar"])):
        with pytest.raises(ValueError, match="do not match: give a list of tars as long"):
            shards_of(*manifests_and_tars)
    manifest = tars / "tarred_audio_manifest.json"
    manifest.write_text(manifest.read_text().replace('"shard_id"', '"shard"'))
    with pytest.raises(ValueError, match="tarred_audio_manifest.json: a line has no 'shard_id'"):
        shards_of(str(manifest), f"{tars}/audio__OP_0..1_CL_.tar")


def test_a_line_without_its_member_is_named_for_remote_tars_too(tars):
    """The tar is read to its end without it: the epoch would be shorter, without a word."""
    manifest = tars / "sharded_manifests" / "manifest_1.json"
    (name, *_) = [json.loads(line)["audio_filepath"] for line in manifest.read_text().splitlines()]
    manifest.write_text(manifest.read_text().replace(name, "other.wav"))
    with pytest.raises(ValueError, match="audio_1.tar: no member other.wav, which .*manifest_1.json names"):
        epoch_of(*patterns(tars, "pipe:cat "))


def test_a_command_that_fails_behind_its_last_line_is_named(tars):
    """A download that breaks off at the end of a line: the rest of the shard would never be trained on."""
    manifest = tars / "sharded_manifests" / "manifest_1.json"
    command = f"pipe:head -n 1 {manifest}; exec 1>&-; sleep 0.3; exit 3"
    with pytest.raises(OSError, match="manifest_1.json.*: cannot be read to its end .*ended with 3"):
        Shard(command, f"{tars}/audio_1.tar").entries()
