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

"""If these fail, coarse labels are not those of the hierarchy, or a k-means file is taken for another."""

import os
from dataclasses import replace

import joblib
import numpy as np
import pytest

from nemo_mshubert.clustering import hierarchy
from nemo_mshubert.clustering.features import NORMALIZED, FeatureDescription
from nemo_mshubert.clustering.hierarchy import check_cluster_counts, coarsen, compose_tables, fit_hierarchy
from nemo_mshubert.clustering.label_maker import LabelMaker, coarsen_label_maker, fit_label_maker, is_own

pytestmark = pytest.mark.unit
FEATURES = FeatureDescription("hidden", 5, 6, "00112233445566aa")
SETS = [40, 20, 7, 3]


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def nested(frames):
    return fit_label_maker(frames, SETS, FEATURES, "nested", "sklearn", seed=0)


@pytest.fixture(scope="module")
def nearest(frames):
    return fit_label_maker(frames, SETS, FEATURES, "nearest", "sklearn", seed=0)


def nearest_index(point, centres):
    return int(np.argmin([np.sum((point - centre) ** 2) for centre in centres.astype(np.float64)]))


def test_tables_are_the_chain_of_nearest_centres(nested):
    """One step down at a time: the nearest of 3 to a centre of 40 can be another than the chain's."""
    for label in range(SETS[0]):
        expected = label
        for fine, coarse in zip(SETS, SETS[1:]):
            expected = nearest_index(nested.centres[fine][expected], nested.centres[coarse])
            assert nested.tables[coarse][label] == expected
    np.testing.assert_array_equal(nested.tables[40], np.arange(40))


def test_the_chain_is_not_the_shortcut():
    """A case where both differ, so that the test above could fail."""
    centres = {
        4: np.array([[0.0], [4.0], [5.2], [9.0]]),
        3: np.array([[0.0], [6.0], [9.0]]),
        2: np.array([[2.9], [9.0]]),
    }
    tables = compose_tables({clusters: array.astype(np.float32) for clusters, array in centres.items()})
    # 4.0 -> 6.0 -> 9.0 (3.0 away; 2.9 is 3.1 away), though 4.0 is nearest 2.9
    assert tables[2].tolist() == [0, 1, 1, 1]
    assert nearest_index(centres[4][1], centres[2]) == 0


def test_each_set_is_fitted_on_the_centres_before(frames, nested):
    """The paper's k-means of 500 is of the 1000 centres, not of frames."""
    again = fit_hierarchy(nested.centres[20], [7, 3], "sklearn", seed=0)
    np.testing.assert_array_equal(again[7], nested.centres[7])
    np.testing.assert_array_equal(again[3], nested.centres[3])
    assert [nested.centres[clusters].shape for clusters in SETS] == [(clusters, 5) for clusters in SETS]


def test_nested_stores_the_finest_and_expands_to_all(frames, nested):
    labels = nested.label(frames)
    assert list(labels) == [40]
    expected = [nearest_index(frame, nested.centres[40]) for frame in frames]
    np.testing.assert_array_equal(labels[40], expected)
    sets = nested.expand(labels[40])
    assert list(sets) == SETS and all(stream.dtype == np.uint16 for stream in sets.values())
    for clusters, stream in sets.items():
        np.testing.assert_array_equal(stream, [nested.tables[clusters][label] for label in expected])


def test_nearest_stores_every_set_from_the_features(frames, nearest):
    labels = nearest.label(frames)
    assert list(labels) == SETS == nearest.sets
    for clusters, stream in labels.items():
        np.testing.assert_array_equal(stream, [nearest_index(frame, nearest.centres[clusters]) for frame in frames])
    assert not np.array_equal(labels[3], nearest.expand(labels[40])[3])  # it is another assignment than nested


def test_saved_file_is_the_same_maker(tmp_path, nested):
    replace(nested, seed=7).save(tmp_path / "km.npz")
    loaded = LabelMaker.load(tmp_path / "km.npz")
    assert loaded.id == nested.id and loaded.sets == SETS and loaded.features == FEATURES
    assert (loaded.assignment, loaded.seed, loaded.versions) == ("nested", 7, nested.versions)
    for clusters in SETS:
        np.testing.assert_array_equal(loaded.centres[clusters], nested.centres[clusters])
        np.testing.assert_array_equal(loaded.tables[clusters], nested.tables[clusters])
    assert [path.name for path in tmp_path.iterdir()] == ["km.npz"]  # no temporary file is left


def test_a_file_that_the_disk_has_no_room_for_is_not_there(tmp_path, nested, monkeypatch):
    """Half a file would stand in the way of the next fit, and be read by whoever waits for it."""

    def fill(stream, **arrays):
        stream.write(b"PK")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    with pytest.raises(OSError, match="No space left"):
        nested.save(tmp_path / "km.npz")
    assert not list(tmp_path.iterdir())


def test_id_is_of_all_that_decides_labels(nested, nearest):
    """Two label makers with one id could be mixed up in training."""
    moved = {**nested.centres, 3: nested.centres[3] + np.float32(1e-6)}
    table = {**nested.tables, 3: (nested.tables[3] + 1) % 3}
    ids = [
        nested.id,
        nearest.id,
        replace(nested, centres=moved).id,
        replace(nested, tables=table).id,
        replace(nested, features=replace(FEATURES, layer=7)).id,
        replace(nested, features=replace(FEATURES, encoder="f" * 16)).id,
    ]
    assert len(set(ids)) == len(ids) and all(len(each) == 16 for each in ids)
    assert replace(nested, versions={}).id == nested.id


def test_same_seed_same_maker(frames, nested):
    assert fit_label_maker(frames, SETS, FEATURES, "nested", "sklearn", seed=0).id == nested.id
    other = fit_label_maker(frames, SETS, FEATURES, "nested", "sklearn", seed=1)
    assert other.id != nested.id and (nested.seed, other.seed) == (0, 1)


def test_the_backend_that_is_asked_for_fits_every_set(frames, nested, monkeypatch):
    """On a machine with both, "auto" is cuML: --backend sklearn, to repeat a fit made on CPUs, would be ignored."""
    asked = []

    def fit_kmeans(points, clusters, backend, seed):
        asked.append((clusters, backend))
        return points[:clusters]

    monkeypatch.setattr(hierarchy, "fit_kmeans", fit_kmeans)
    fit_label_maker(frames, [9, 4], FEATURES, "nested", "cuml", seed=0)
    coarsen_label_maker(nested, [5, 2], "nested", "cuml", seed=0)
    assert asked == [(clusters, "cuml") for clusters in (9, 4, 5, 2)]


def damage(path, kind, nested):
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "bit":
        content = bytearray(path.read_bytes())
        content[content.index(nested.centres[20].tobytes()) + 5] ^= 1
        path.write_bytes(content)
    elif kind == "method":  # of compression
        content = bytearray(path.read_bytes())
        content[content.rindex(b"PK\x01\x02") + 10] = 99
        path.write_bytes(content)
    elif kind == "text":
        path.write_text("centres")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "array":
        with open(path, "wb") as stream:
            np.save(stream, np.zeros(3))
    elif kind == "foreign":
        np.savez(path, centres=np.zeros(3))
    elif kind == "pickle":
        np.savez(path, header=np.array({"format": "x"}, dtype=object))


@pytest.mark.parametrize("kind", ["truncated", "bit", "method", "text", "empty", "array", "foreign", "pickle"])
def test_damaged_or_foreign_files_are_refused(tmp_path, nested, kind):
    path = tmp_path / "km.npz"
    nested.save(path)
    damage(path, kind, nested)
    with pytest.raises(ValueError, match="km.npz: not a k-means file .* Give the .npz .* copy it again"):
        LabelMaker.load(path)


def rewrite(path, change):
    """Save a k-means file again with other arrays."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(path, **arrays)


def test_a_file_of_another_format_is_refused(tmp_path, nested):
    """A later version may give the same arrays another meaning."""
    path = tmp_path / "km.npz"
    nested.save(path)
    rewrite(path, lambda arrays: arrays.update(header=np.char.replace(arrays["header"], "maker 1", "maker 2")))
    with pytest.raises(
        ValueError, match="km.npz: not a k-means file .*format 'nemo_mshubert label maker 2', expected"
    ):
        LabelMaker.load(path)


class RunsCode:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_file_with_code_in_it_does_not_run_it(tmp_path, nested):
    """k-means files are passed around; whoever loads one trusts no more than its labels."""
    path = tmp_path / "km.npz"
    nested.save(path)
    rewrite(path, lambda arrays: arrays.update(extra=np.array([RunsCode(tmp_path / "ran")], dtype=object)))
    with pytest.raises(ValueError, match="km.npz: not a k-means file"):
        LabelMaker.load(path)
    assert not (tmp_path / "ran").exists()


def test_an_edited_file_is_refused(tmp_path, nested):
    """All of zip's checksums are right, but the labels would not be those of the id in the header."""
    path = tmp_path / "km.npz"
    nested.save(path)
    rewrite(path, lambda arrays: np.add.at(arrays["centres_7"], (0, 0), 1))
    with pytest.raises(ValueError, match=f"km.npz: says id {nested.id} but holds .* edited or damaged"):
        LabelMaker.load(path)


def test_a_kmeans_of_joblib_is_not_called_truncated(tmp_path):
    """merge, check and pretrain.py: to copy it again would not help, what `make` left of it does."""
    joblib.dump({"cluster_centers_": np.zeros((3, 2))}, tmp_path / "km.bin")
    with pytest.raises(
        ValueError, match="km.bin: a k-means of joblib.*`label.py make` left beside the labels"
    ) as error:
        LabelMaker.load(tmp_path / "km.bin")
    assert "<output>.kmeans.npz" in str(error.value) and "copy it again" not in str(error.value)


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="fit_kmeans.py"):
        LabelMaker.load(tmp_path / "km.npz")


@pytest.mark.parametrize("counts", [[], [10, 10], [10, 20], [65536, 10], [10, 1], [10, 5, 1]])
def test_bad_cluster_counts_are_refused(counts, monkeypatch):
    """Before the finest set is fitted, which takes hours."""
    monkeypatch.setattr(hierarchy, "fit_kmeans", lambda *args: pytest.fail("fitted"))
    finest = np.zeros((counts[0] if counts else 0, 1), np.float32)
    for ask in (
        lambda: check_cluster_counts(counts),
        lambda: fit_hierarchy(finest, counts, "sklearn", seed=0),
        lambda: coarsen(finest, counts[1:], "sklearn", seed=0),
    ):
        with pytest.raises(ValueError, match="strictly descending"):
            ask()


@pytest.mark.parametrize("counts", [[65535, 2], [2]])
def test_the_largest_and_smallest_cluster_counts_are_taken(counts):
    check_cluster_counts(counts)


def test_more_clusters_than_frames_are_refused(frames):
    with pytest.raises(ValueError, match="700 clusters on 600 frames"):
        fit_label_maker(frames, [700, 10], FEATURES)


def test_unknown_assignment_is_refused(frames, nested):
    for ask in (
        lambda: fit_label_maker(frames, [4, 2], FEATURES, "best"),
        lambda: coarsen_label_maker(nested, [4, 2], "best", "sklearn", seed=0),
    ):
        with pytest.raises(ValueError, match="'best': expected one of nested, nearest"):
            ask()


def test_files_of_ours_are_known_by_their_content_or_name(tmp_path, nested):
    """--layer is refused for them, which say of which layer they are: else the labels would be of another."""
    nested.save(tmp_path / "km")
    (tmp_path / "km.bin").write_bytes(b"\x80\x04")
    assert is_own(tmp_path / "km") and is_own(tmp_path / "gone.npz") and not is_own(tmp_path / "km.bin")


def test_other_features_are_refused(nested):
    nested.check_features(FEATURES)
    for other in (replace(FEATURES, layer=9), replace(FEATURES, encoder="f" * 16), FeatureDescription("mfcc", 39)):
        with pytest.raises(ValueError, match=f"was fitted on 5 hidden features of layer 6 .* not on {other.name}"):
            nested.check_features(other)


def test_the_encoder_in_a_file_that_scales_otherwise_is_refused(nested):
    """ "Use the encoder and the layer that its k-means was fitted with" was what one had done."""
    scaled = replace(FEATURES, encoder=FEATURES.encoder + NORMALIZED)
    for maker, features in ((nested, scaled), (replace(nested, features=scaled), FEATURES)):
        with pytest.raises(ValueError, match="the same, but only for one of them .* scaled .*fit the k-means again"):
            maker.check_features(features)
    replace(nested, features=scaled).check_features(scaled)
