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

"""Units as text are the labels of the manifest, and those that follow from them."""

import base64

import numpy as np
import pytest

from nemo_mshubert.clustering.features import FeatureDescription
from nemo_mshubert.clustering.label_maker import fit_label_maker
from nemo_mshubert.clustering.label_text import label_lines
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import write_manifest
from nemo_mshubert.modules.frames import frame_count
from tests.conftest import load_script

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def maker():
    frames = np.random.default_rng(0).normal(size=(400, 39)).astype(np.float32)
    return fit_label_maker(frames, [12, 4], FeatureDescription("mfcc", 39), backend="sklearn")


@pytest.fixture
def labelled(tmp_path, maker):
    """Two utterances; their labels as arrays, and the manifest."""
    rng = np.random.default_rng(1)
    labels = [rng.integers(12, size=frame_count(samples)).astype(np.uint16) for samples in (4000, 7000)]
    lines = []
    for number, (samples, row) in enumerate(zip((4000, 7000), labels)):
        row[3:6] = 7
        field = FrameLabels(maker.id, samples, {12: row}).to_manifest()
        assert base64.b64decode(field["sets"]["12"]) == row.tobytes()
        lines.append({"audio_filepath": f"u{number}.wav", "utt_id": f"speaker/{number}", "labels": field})
    write_manifest(tmp_path / "labelled.json", lines)
    return labels, tmp_path / "labelled.json"


def parse(lines):
    names, rows = zip(*(line.rstrip("\n").split("\t") for line in lines))
    return list(names), [[int(number) for number in row.split(" ")] for row in rows]


def test_every_number_is_a_label(labelled, maker):
    labels, manifest = labelled
    expected = [row.tolist() for row in labels]
    assert parse(label_lines(manifest)) == (["speaker/0", "speaker/1"], expected)
    nearest = {number: int(maker.tables[4][number]) for number in range(12)}
    assert parse(label_lines(manifest, 4, maker))[1] == [[nearest[number] for number in row] for row in expected]


def test_repeats_become_one_number(labelled):
    labels, manifest = labelled
    _, rows = parse(label_lines(manifest, collapse=True))
    for row, found in zip(labels, rows):
        assert found == [int(row[0]), *(int(b) for a, b in zip(row, row[1:]) if a != b)] and len(found) < len(row)


def test_what_is_not_there_is_named(labelled, maker, tmp_path):
    _, manifest = labelled
    with pytest.raises(ValueError, match=r"labelled.json:1: no set of 4 clusters, but of \[12\]. Give --kmeans"):
        list(label_lines(manifest, 4))
    with pytest.raises(
        ValueError, match=r"labelled.json:1: no set of 5 clusters, but of \[4, 12\]. Name one of these"
    ):
        list(label_lines(manifest, 5, maker))
    frames = np.random.default_rng(5).normal(size=(400, 39)).astype(np.float32)
    other = fit_label_maker(frames, [12, 4], FeatureDescription("mfcc", 39), backend="sklearn")
    with pytest.raises(ValueError, match="labelled.json:1: labels of"):
        list(label_lines(manifest, 4, other))


def test_the_command_writes_all_or_nothing(labelled, maker, tmp_path):
    _, manifest = labelled
    maker.save(tmp_path / "km.npz")
    output, main = tmp_path / "units.txt", load_script("label").main
    with pytest.raises(ValueError, match="no set of 4 clusters"):
        main(["text", "--manifest", str(manifest), "--output", str(output), "--clusters", "4"])
    assert not output.exists()
    options = ["--clusters", "4", "--kmeans", str(tmp_path / "km.npz"), "--collapse"]
    main(["text", "--manifest", str(manifest), "--output", str(output), *options])
    assert output.read_text() == "".join(label_lines(manifest, 4, maker, collapse=True))
