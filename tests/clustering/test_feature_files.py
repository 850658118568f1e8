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

"""Features in files are those that labels are made of."""

import json
import multiprocessing
import os

import numpy as np
import pytest
import soundfile

from nemo_mshubert.clustering.feature_files import write_features
from nemo_mshubert.clustering.features import MfccFeatures
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.modules.frames import frame_count

pytestmark = pytest.mark.unit
LENGTHS = {"a/1.x": 8000, "a/2": 12345, "b": 16000}


@pytest.fixture
def manifest(tmp_path):
    lines = []
    for number, (utt_id, length) in enumerate(LENGTHS.items()):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, length), 16000)
        lines.append({"audio_filepath": str(path), "utt_id": utt_id})
    write_manifest(tmp_path / "dev.json", lines)
    return tmp_path / "dev.json"


def test_files_hold_the_features_of_each_utterance(manifest, tmp_path):
    features, folder = MfccFeatures(), tmp_path / "out"
    assert write_features(manifest, folder, features) == 3
    for entry in read_manifest(manifest):
        samples, _ = soundfile.read(entry["audio_filepath"], dtype="float32")
        found = np.load(folder / f"{entry['utt_id']}.npy")
        assert found.dtype == np.float32 and found.shape == (frame_count(LENGTHS[entry["utt_id"]]), 39)
        np.testing.assert_allclose(found, features([samples])[0].numpy(), rtol=1e-4, atol=1e-4)
    assert json.loads((folder / "features.json").read_text())["dimension"] == 39


def test_features_of_half_precision_are_written_in_full(manifest, tmp_path):
    """NumPy has no bfloat16, in which a feature maker may compute: the call would end when the first file is due."""

    class Half(MfccFeatures):
        def __call__(self, waveforms):
            return [rows.bfloat16() for rows in super().__call__(waveforms)]

    write_features(manifest, tmp_path / "out", Half())
    assert np.load(tmp_path / "out" / "b.npy").dtype == np.float32


def test_an_interrupted_call_goes_on(manifest, tmp_path):
    folder = tmp_path / "out"
    write_features(manifest, folder, MfccFeatures())
    kept = (folder / "b.npy").stat().st_mtime_ns
    (folder / "a" / "2.npy").unlink()
    assert write_features(manifest, folder, MfccFeatures()) == 1
    assert (folder / "a" / "2.npy").is_file() and (folder / "b.npy").stat().st_mtime_ns == kept


def test_a_call_that_was_killed_at_its_first_file_goes_on(manifest, tmp_path):
    """The folder would have to be found and removed by hand, though the same command had made it."""

    def killed():
        os.replace = lambda *_: os._exit(0)  # as if killed before the description has its name
        write_features(manifest, tmp_path / "out", MfccFeatures())

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join()
    assert (
        child.exitcode == 0 and not (tmp_path / "out" / "features.json").exists() and any((tmp_path / "out").iterdir())
    )
    assert write_features(manifest, tmp_path / "out", MfccFeatures()) == 3


def test_other_features_are_not_mixed_in(manifest, tmp_path):
    folder = tmp_path / "out"
    write_features(manifest, folder, MfccFeatures())
    (folder / "features.json").write_text('{"kind": "hidden"}')
    with pytest.raises(ValueError, match=r"features.json: of other features \({'kind': 'hidden'}\). Give another"):
        write_features(manifest, folder, MfccFeatures())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="mine: holds something else"):
        write_features(manifest, tmp_path / "mine", MfccFeatures())


def test_files_of_other_audio_are_not_taken_over(manifest, tmp_path):
    """Recordings that were cut anew have segments of the same ids: files of the first cut passed for those of the
    second."""
    folder, lines = tmp_path / "out", read_manifest(manifest)
    write_manifest(manifest, [{**lines[2], "offset": 0.0, "duration": 0.5}])
    write_features(manifest, folder, MfccFeatures())
    assert write_features(manifest, folder, MfccFeatures()) == 0
    for seconds in ("1", "0.1"):
        write_manifest(manifest, [{**lines[2], "offset": 0.0, "duration": float(seconds)}])
        with pytest.raises(
            ValueError, match=f"b.npy: has 24 frames of other audio than .*dev.json:1, of {seconds} s. Give another"
        ):
            write_features(manifest, folder, MfccFeatures())


@pytest.mark.parametrize(
    "utt_id, message",
    [
        ("b", "dev.json:3: utterance b is at .*dev.json:1 already"),
        ("../b", "dev.json:1: the id '../b' is no name of a file below"),
        ("/etc/b", "dev.json:1: the id '/etc/b' is no name"),
        ("./b", "dev.json:1: the id './b' is no name"),  # would be the file of b
    ],
)
def test_ids_that_are_no_names_are_refused_before_anything_is_written(manifest, tmp_path, utt_id, message):
    lines = read_manifest(manifest)
    lines[0]["utt_id"] = utt_id
    write_manifest(manifest, lines)
    with pytest.raises(ValueError, match=message):
        write_features(manifest, tmp_path / "out", MfccFeatures())
    assert not (tmp_path / "out").exists()
