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

"""Tarred datasets: NeMo's layout, whole or absent, and loud when a shard is not."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
from nemo.utils import logging
from omegaconf import OmegaConf

from nemo_mshubert.data import tarred
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.tarred import all_paths, check_shards, has_remote_paths, make_tarred
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.whole_files import temporary_neighbour

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tarred.py"
LENGTHS = [8000 + 640 * number for number in range(7)]


def shards(folder, count):
    """NeMo's patterns for the manifests and the tars of a folder."""
    numbers = f"_OP_0..{count - 1}_CL_"
    return f"{folder}/sharded_manifests/manifest_{numbers}.json", f"{folder}/audio_{numbers}.tar"


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def members(folder):
    """{member name: bytes} of all shards, and the manifest line of each by name."""
    audio, lines = {}, {}
    for path in sorted(folder.glob("audio_*.tar")):
        shard = int(path.stem.split("_")[1])
        with tarfile.open(path) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}
        manifest = folder / "sharded_manifests" / f"manifest_{shard}.json"
        entries = [json.loads(line) for line in manifest.read_text().splitlines()]
        assert [entry["audio_filepath"] for entry in entries] == list(contents)
        assert {entry["shard_id"] for entry in entries} == {shard}
        audio.update(contents)
        lines.update({entry["audio_filepath"]: entry for entry in entries})
    return audio, lines


@pytest.mark.unit
def test_nothing_is_lost_or_changed(counting_corpus, tmp_path):
    """Every file byte for byte, every key of every line, each once."""
    changes = {2: {"text": 'wörter, "quoted"', "speaker": "7"}, 4: {"labels": ["dog"]}}  # of another program
    manifest = counting_corpus(LENGTHS, changes=changes)
    joined = make_tarred(manifest, tmp_path / "tars", num_shards=3)
    audio, lines = members(tmp_path / "tars")
    originals = {f"audio_u{number}.wav": entry for number, entry in enumerate(read_manifest(manifest))}
    assert audio == {name: Path(entry["audio_filepath"]).read_bytes() for name, entry in originals.items()}
    for name, entry in originals.items():
        line = {key: value for key, value in lines[name].items() if key != "shard_id"}
        assert line == {**entry, "audio_filepath": name}
    of_shards = [path.read_bytes().splitlines() for path in joined.parent.glob("*/manifest_*")]
    assert sorted(map(len, of_shards)) == [2, 2, 3]
    assert [json.loads(line) for line in joined.read_text().splitlines()] == [
        json.loads(line)
        for shard in range(3)
        for line in (tmp_path / f"tars/sharded_manifests/manifest_{shard}.json").read_text().splitlines()
    ]


@pytest.mark.unit
def test_same_seed_same_bytes(counting_corpus, tmp_path, monkeypatch):
    """Caches and checksums rest on it, from wherever the command is called; another seed is another order."""
    manifest = counting_corpus(LENGTHS)
    monkeypatch.chdir(manifest.parent)
    for folder, path, seed in (("one", manifest, 0), ("two", manifest.name, 0), ("three", manifest, 1)):
        make_tarred(path, tmp_path / folder, 3, seed=seed)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one") != digests(tmp_path / "three")
    assert list(members(tmp_path / "one")[0]) != list(members(tmp_path / "three")[0])


@pytest.mark.unit
def test_segments_become_members_of_their_own(counting_corpus, tmp_path):
    """Two segments of one file: each member holds its samples alone, and its labels are of them."""
    manifest = counting_corpus([32000])
    (entry,) = read_manifest(manifest)
    segments = []
    for offset in (0.0, 0.5):
        stream = ((round(offset * 50) + np.arange(frame_count(16000))) % 50).astype(np.uint16)
        labels = FrameLabels("maker-one", 16000, {50: stream}, offset=offset).to_manifest()
        segments.append({**entry, "offset": offset, "duration": 1.0, "labels": labels})
    write_manifest(manifest, segments)
    make_tarred(manifest, tmp_path / "tars", 1)
    audio, lines = members(tmp_path / "tars")
    assert sorted(audio) == ["audio_u0_at0.flac", "audio_u0_at8000.flac"]
    for name, start in (("audio_u0_at0.flac", 0), ("audio_u0_at8000.flac", 8000)):
        samples, rate = soundfile.read(io.BytesIO(audio[name]), dtype="int16")
        assert rate == 16000
        np.testing.assert_array_equal(samples, (np.arange(start, start + 16000) // 320).astype(np.int16))
        assert "offset" not in lines[name] and "offset" not in lines[name]["labels"]
        assert FrameLabels.from_manifest(lines[name]["labels"], name).sets[50][0] == start // 320 % 50


# --- Interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("fail_at", [1, 3, 5, 7])
def test_an_interrupted_run_leaves_whole_shards_and_a_rerun_completes_them(
    counting_corpus, tmp_path, monkeypatch, fail_at
):
    """Terabytes are packed over days: what is done must stay, and half a shard must never look whole."""
    manifest = counting_corpus(LENGTHS)
    make_tarred(manifest, tmp_path / "whole", 3)
    calls = []

    def die(entry):
        calls.append(entry)
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return read(entry)

    read = tarred._audio_bytes
    monkeypatch.setattr(tarred, "_audio_bytes", die)
    folder = tmp_path / "tars"
    with pytest.raises(KeyboardInterrupt):
        make_tarred(manifest, folder, 3, num_workers=1)
    monkeypatch.setattr(tarred, "_audio_bytes", read)
    whole = digests(tmp_path / "whole")
    left = digests(folder)
    assert "tarred_audio_manifest.json" not in left
    assert left.items() <= whole.items()  # each file that is there is the final one; no temporary is left
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("audio_*.tar")}
    make_tarred(manifest, folder, 3)
    assert digests(folder) == whole
    for name, modified in finished.items():
        shard = name.split("_")[1].split(".")[0]
        if f"sharded_manifests/manifest_{shard}.json" in left:
            assert (folder / name).stat().st_mtime_ns == modified  # not made twice


@pytest.mark.integration
def test_a_killed_script_is_completed_by_the_same_command(counting_corpus, tmp_path):
    """SIGKILL runs no clean-up: the next run must see through what is left."""
    manifest = counting_corpus(LENGTHS)
    make_tarred(manifest, tmp_path / "whole", 3)
    folder = tmp_path / "tars"
    killed = (
        "import os, signal, sys; from nemo_mshubert.data import tarred; read, calls = tarred._audio_bytes, []\n"
        "def die(entry):\n"
        "    calls.append(1)\n"
        "    return read(entry) if len(calls) < 5 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "tarred._audio_bytes = die\n"
        "tarred.make_tarred(sys.argv[1], sys.argv[2], 3, num_workers=1)\n"
    )
    process = subprocess.run([sys.executable, "-c", killed, str(manifest), str(folder)], capture_output=True)
    assert process.returncode == -9
    assert not (folder / "tarred_audio_manifest.json").exists()
    command = [sys.executable, str(SCRIPT), "--manifest", str(manifest), "--output", str(folder), "--num_shards", "3"]
    subprocess.run(command, check=True, capture_output=True)
    left = {name: digest for name, digest in digests(folder).items() if not name.rpartition("/")[2].startswith(".")}
    assert left == digests(tmp_path / "whole")
    check_shards(*shards(folder, 3))


# --- Readers ---------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_stock_lhotse_reader_sees_every_utterance_with_its_labels(counting_corpus, tmp_path):
    """NeMo's own loader, with our dataset behind it, as in training."""
    make_tarred(counting_corpus(LENGTHS), tmp_path / "tars", 2)
    manifests, tars = shards(tmp_path / "tars", 2)
    config = {
        "manifest_filepath": manifests,
        "tarred_audio_filepaths": tars,
        "sample_rate": 16000,
        "batch_size": 2,
        "shuffle": False,
        "force_finite": True,
        "shard_seed": 0,
        "num_workers": 0,
    }

    class Numbered(torch.utils.data.Dataset):
        dataset = PretrainingDataset("maker-one", [50], crop="pad")

        def __getitem__(self, cuts):
            return self.dataset[0, cuts]

    seen = {}
    for batch in get_lhotse_dataloader_from_config(OmegaConf.create(config), 0, 1, Numbered()):
        for row, name in enumerate(batch["utterances"]):
            frames = frame_count(int(batch["length"][row]))
            seen[name] = frames
            number = int(name.removesuffix(".wav").rpartition("u")[2])
            labels = batch["labels"][50][row, :frames]
            assert torch.equal(labels, (7 * number + torch.arange(frames)) % 50)
            hops = (batch["audio"][row, : 320 * frames : 320] * 32768).round().long()
            assert torch.equal(hops, torch.arange(frames))
    assert sorted(seen.values()) == sorted(frame_count(length) for length in LENGTHS)


@pytest.mark.unit
def test_stock_legacy_tarred_dataset_reads_the_tars(counting_corpus, tmp_path):
    """Other NeMo models read them by webdataset; the labels inside the lines must not disturb them."""
    from nemo.collections.asr.data.audio_to_text import TarredAudioToCharDataset

    manifest = counting_corpus(LENGTHS, changes={number: {"text": "ab"} for number in range(7)})
    joined = make_tarred(manifest, tmp_path / "tars", 2)
    dataset = TarredAudioToCharDataset(
        audio_tar_filepaths=shards(tmp_path / "tars", 2)[1],
        manifest_filepath=str(joined),
        labels=["a", "b"],
        sample_rate=16000,
        shuffle_n=0,
    )
    lengths = sorted(int(item[1]) for item in dataset)
    assert lengths == sorted(LENGTHS)


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_two_identical_lines_are_refused(counting_corpus, tmp_path):
    """One member cannot serve two lines; a reader would pair the wrong ones."""
    manifest = counting_corpus([8000, 9000])
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([*lines, lines[1]]))
    with pytest.raises(ValueError, match="u1.wav occurs twice.*remove the double line"):
        make_tarred(manifest, tmp_path / "tars", 1)
    assert not (tmp_path / "tars").exists()


@pytest.mark.unit
def test_files_of_one_name_in_different_folders_are_kept_apart(counting_corpus, tmp_path):
    """Many corpora number their files per folder."""
    manifest = counting_corpus([8000, 9000])
    entries = read_manifest(manifest)
    other = tmp_path / "audio" / "b" / "u0.wav"
    other.parent.mkdir()
    Path(entries[1]["audio_filepath"]).rename(other)
    write_manifest(manifest, [entries[0], {**entries[1], "audio_filepath": str(other)}])
    make_tarred(manifest, tmp_path / "tars", 1)
    assert sorted(members(tmp_path / "tars")[0]) == ["audio_b_u0.wav", "audio_u0.wav"]
    elsewhere = tmp_path / "manifests" / "train.json"  # not above its audio
    write_manifest(elsewhere, read_manifest(manifest))
    make_tarred(elsewhere, tmp_path / "others", 1)
    below_root = "_".join(tmp_path.parts[1:]).replace(".", "_")
    assert sorted(members(tmp_path / "others")[0]) == [f"{below_root}_audio_b_u0.wav", f"{below_root}_audio_u0.wav"]


@pytest.mark.unit
def test_files_whose_names_meet_in_a_tar_are_both_named(counting_corpus, tmp_path):
    """They were called a double line, whose removal would have lost one of them."""
    manifest = counting_corpus([8000, 9000])
    entries = read_manifest(manifest)
    for entry, name in zip(entries, ("u.1.wav", "u_1.wav")):
        path = Path(entry["audio_filepath"])
        entry["audio_filepath"] = str(path.rename(path.with_name(name)))
    write_manifest(manifest, entries)
    with pytest.raises(ValueError, match=r"u\.1\.wav and .*u_1\.wav would both be audio_u_1\.wav in a tar. Rename"):
        make_tarred(manifest, tmp_path / "tars", 1)


@pytest.mark.unit
@pytest.mark.parametrize("num_shards", [0, 3])
def test_impossible_numbers_of_shards_are_refused(counting_corpus, tmp_path, num_shards):
    """An empty shard would stall a loader process."""
    with pytest.raises(ValueError, match=f"expected 1 to 2 .*found {num_shards}"):
        make_tarred(counting_corpus([8000, 9000]), tmp_path / "tars", num_shards)


@pytest.mark.unit
def test_folder_of_another_dataset_is_refused(counting_corpus, tmp_path):
    """Shards of two manifests, side by side, look like one dataset."""
    first = counting_corpus([8000, 9000])
    make_tarred(first, tmp_path / "tars", 2)
    before = digests(tmp_path / "tars")
    with pytest.raises(ValueError, match="holds a tarred dataset of another manifest"):
        make_tarred(counting_corpus([8000, 9000, 8000], name="other.json"), tmp_path / "tars", 2)
    with pytest.raises(ValueError, match="another manifest, number of shards or seed"):
        make_tarred(first, tmp_path / "tars", 1)
    write_manifest(first, read_manifest(first)[::-1])  # of the same name
    with pytest.raises(ValueError, match="holds a tarred dataset of another manifest"):
        make_tarred(first, tmp_path / "tars", 2)
    assert digests(tmp_path / "tars") == before


@pytest.mark.unit
def test_missing_audio_is_named_and_leaves_no_half_shard(counting_corpus, tmp_path):
    """Then the line is repaired, and the same command goes on."""
    manifest = counting_corpus([8000, 9000])
    (tmp_path / "audio" / "u1.wav").rename(tmp_path / "kept.wav")
    with pytest.raises(FileNotFoundError, match="u1.wav: no such audio file"):
        make_tarred(manifest, tmp_path / "tars", 1)
    assert not list((tmp_path / "tars").glob("audio_*"))
    (tmp_path / "kept.wav").rename(tmp_path / "audio" / "u1.wav")
    make_tarred(manifest, tmp_path / "tars", 1)
    assert len(members(tmp_path / "tars")[0]) == 2


@pytest.mark.unit
def test_one_address_among_paths_is_enough():
    """What is behind it cannot be counted: an epoch would be taken for that of the other sets."""
    assert has_remote_paths([["a.json"], ["pipe:cat b.json"]]) and not has_remote_paths(["a.json", "b.json"])


@pytest.fixture
def three_shards(counting_corpus, tmp_path):
    make_tarred(counting_corpus(LENGTHS), tmp_path / "tars", 3)
    return tmp_path / "tars"


@pytest.mark.unit
def test_whole_shards_pass_however_they_are_named(three_shards):
    """NeMo takes patterns, lists of patterns, and weighted lists of lists."""
    manifests, tars = shards(three_shards, 3)
    check_shards(manifests, tars)
    check_shards(manifests.replace("_OP_", "{").replace("_CL_", "}"), tars.replace("_OP_", "{").replace("_CL_", "}"))
    check_shards([[manifests, 0.3], [manifests, 2]], [[tars], [tars]])
    check_shards(str(three_shards / "tarred_audio_manifest.json"), tars)


@pytest.mark.unit
@pytest.mark.parametrize("left", ["audio_0.tar", "sharded_manifests/manifest_2.json"])
def test_a_tarred_dataset_of_unknown_origin_is_not_mixed_with(three_shards, counting_corpus, left):
    """NeMo's tool names its shards alike: they were taken for ours, and their lines for those of the manifest."""
    for path in [*three_shards.glob("*.*"), *three_shards.glob("*/*.json")]:
        if path != three_shards / left:
            path.unlink()
    before = (three_shards / left).read_bytes()
    with pytest.raises(ValueError, match=f"{left}: of a tarred dataset, of which no source.json .*--output"):
        make_tarred(counting_corpus(LENGTHS), three_shards, 3)
    assert [path for path in three_shards.rglob("*.*") if path.is_file()] == [three_shards / left]
    assert (three_shards / left).read_bytes() == before


@pytest.mark.unit
@pytest.mark.parametrize("name", ["speech (v2)", "a[1]", "a{1..2}", "<x>"])
def test_a_path_that_nemo_takes_for_a_pattern_is_named(tmp_path, name):
    """The error was about a path with other brackets, which nobody had written."""
    path = tmp_path / name / "train.json"
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(ValueError, match=r"train.json: NeMo reads the brackets .* link"):
        all_paths(str(path))
    assert all_paths([str(tmp_path / "plain.json")]) == [str(tmp_path / "plain.json")]


@pytest.mark.unit
def test_shards_that_are_left_out_are_a_warning(three_shards, monkeypatch):
    """A pattern copied from a smaller dataset: the training is of a part of the corpus, and nothing else says so."""
    warnings = []
    monkeypatch.setattr(logging, "warning", warnings.append)
    manifests, tars = shards(three_shards, 3)
    check_shards([manifests], [[tars], [tars]])
    check_shards(manifests, tars, 1, 2)  # a rank's share is not what is used
    assert not warnings
    manifests, tars = shards(three_shards, 2)
    check_shards([manifests], [[tars], [tars]])
    assert len(warnings) == 1 and f"{three_shards}: 2 of its 3 shards are used" in warnings[0]
    assert "_OP_0..2_CL_" in warnings[0]
    (three_shards / "source.json").unlink()  # of another tool: not known
    check_shards(*shards(three_shards, 2))
    assert len(warnings) == 1


@pytest.mark.unit
@pytest.mark.parametrize("cut_bytes", [1, 1024, 3000, "all but one block", "all"])
def test_truncated_tar_is_an_error(three_shards, cut_bytes):
    """Readers only warn and go on: a tenth of the corpus would be missing from the whole training."""
    path = three_shards / "audio_1.tar"
    size = path.stat().st_size
    # tarfile pads to records of 10 kB; what is behind the first end mark may go without loss.
    data = path.read_bytes().rstrip(b"\0")
    left = {"all": 0, "all but one block": 512}.get(cut_bytes)
    os.truncate(path, len(data) - cut_bytes if left is None else left)
    assert path.stat().st_size < size
    with pytest.raises(ValueError, match="audio_1.tar: truncated.*make_tarred.py"):
        check_shards(*shards(three_shards, 3))


@pytest.mark.unit
@pytest.mark.parametrize("name", ["audio_2.tar", "sharded_manifests/manifest_0.json"])
def test_missing_shard_is_an_error(three_shards, name):
    """Copied without one file."""
    (three_shards / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{Path(name).name}: no such shard.*make_tarred.py again"):
        check_shards(*shards(three_shards, 3))


@pytest.mark.shared_data
def test_real_speech_survives(shared_data, tmp_path):
    """FLACs of LibriSpeech, as they are."""
    files = sorted((shared_data / "librispeech" / "audio").glob("*.flac"))[:3]
    if not files:
        pytest.skip("no FLAC files in librispeech/audio")
    entries = [{"audio_filepath": str(path), "duration": soundfile.info(path).duration, "text": ""} for path in files]
    write_manifest(tmp_path / "m.json", entries)
    make_tarred(tmp_path / "m.json", tmp_path / "tars", 1)
    audio, _ = members(tmp_path / "tars")
    for name, data in audio.items():
        (tmp_path / "x.flac").write_bytes(data)
        original = next(path for path in files if name.endswith(path.stem.replace(".", "_") + ".flac"))
        assert np.array_equal(
            load_audio({"audio_filepath": str(tmp_path / "x.flac")}), load_audio({"audio_filepath": str(original)})
        )


@pytest.mark.unit
def test_what_was_killed_takes_no_room_and_two_do_not_pack_at_once(counting_corpus, tmp_path, held_elsewhere):
    """Each kill left some hundred megabytes for good; and of two calls both would have packed everything."""
    manifest, output = counting_corpus(LENGTHS), tmp_path / "tarred"
    first = held_elsewhere(output / ".lock")
    left = temporary_neighbour(output / "audio_1.tar")
    left.touch()
    (output / "sharded_manifests").mkdir()
    for manifest_of_it in ("tarred_audio_manifest.json", "sharded_manifests/manifest_1.json"):  # labels: megabytes
        temporary_neighbour(output / manifest_of_it).touch()
    with pytest.raises(RuntimeError, match="another process is packing into this folder. Wait for it, or give"):
        make_tarred(manifest, output, 2)
    assert left.exists()  # the other process may be writing it
    first.kill()
    first.wait()
    make_tarred(manifest, output, 2)
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]


@pytest.mark.unit
def test_another_seed_is_another_dataset(counting_corpus, tmp_path):
    """Shards that are completed in another order hold some utterances twice, and others never."""
    manifest = counting_corpus([8000, 9000])
    make_tarred(manifest, tmp_path / "tars", 2, seed=3)
    with pytest.raises(ValueError, match="another manifest, number of shards or seed"):
        make_tarred(manifest, tmp_path / "tars", 2, seed=4)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["audio_1.tar", "sharded_manifests/manifest_1.json"])
def test_a_removed_half_of_a_shard_is_made_again(counting_corpus, tmp_path, name):
    """What `check_shards` advises for a truncated tar would find its manifest and leave the shard without one."""
    manifest, folder = counting_corpus(LENGTHS), tmp_path / "tars"
    make_tarred(manifest, folder, 3)
    whole = digests(folder)
    (folder / name).unlink()
    make_tarred(manifest, folder, 3)
    assert digests(folder) == whole


@pytest.mark.unit
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 5000)], ids=["missing", "truncated"])
@pytest.mark.parametrize("shard", range(3))
def test_ranks_share_the_look_at_the_shards(three_shards, shard, damage):
    """One that no rank looks at is found when its turn comes, after days."""
    damage(three_shards / f"audio_{shard}.tar")
    found = []
    for rank in range(2):
        try:
            check_shards(*shards(three_shards, 3), rank, 2)
        except (FileNotFoundError, ValueError) as error:
            found.append(str(error))
    assert len(found) == 1 and f"audio_{shard}.tar" in found[0]
