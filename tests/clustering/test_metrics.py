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

"""If these fail, the figures by which layers and numbers of clusters are chosen are wrong."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from nemo_mshubert.clustering.metrics import LabelMetrics, chance_information, unit_agreement, warn_of_few_clusters

pytestmark = pytest.mark.unit


def test_agreement_in_closed_form():
    # two phones, three clusters: clusters 0 and 1 are pure, cluster 2 says nothing
    joint = np.array([[4, 0, 2], [0, 4, 2]])
    agreement = unit_agreement(joint)
    assert agreement["aligned_frames"] == 12
    assert agreement["unit_purity"] == pytest.approx(10 / 12)
    assert agreement["cluster_purity"] == pytest.approx(8 / 12)
    assert agreement["pnmi"] == pytest.approx(8 / 12)  # of one bit of phone entropy, 8 of 12 frames give it all


def test_extremes():
    assert unit_agreement(np.diag([3, 5, 7]))["pnmi"] == pytest.approx(1)
    assert unit_agreement(np.outer([2, 3], [1, 4, 5]))["pnmi"] == pytest.approx(0, abs=1e-12)
    assert unit_agreement(np.array([[3, 4]]))["pnmi"] == 0  # one phone: nothing to tell


@pytest.mark.parametrize("units, clusters, frames", [(2, 3, 7), (6, 40, 300), (40, 300, 9000), (3, 5, 200_000)])
def test_chance_is_that_of_scikit_learn(units, clusters, frames):
    """Few and many frames per cell, and units and clusters of any size: terms left out of the sum would be missed."""
    rng = np.random.default_rng(0)
    shares = np.outer(rng.dirichlet(np.full(units, 0.5)), rng.dirichlet(np.full(clusters, 0.5)))
    joint = rng.multinomial(frames, shares.ravel()).reshape(shares.shape)
    there = joint[joint.any(axis=1)][:, joint.any(axis=0)]
    assert chance_information(joint) == pytest.approx(expected_mutual_information(there, frames), rel=1e-7)


def test_meaningless_labels_reach_pnmi_by_chance():
    """1000 clusters that know nothing of 60 phones look like a result on a minute of speech, where only the PNMI is
    shown; on hours they do not."""
    rng = np.random.default_rng(0)
    joint = np.zeros((60, 1000), np.int64)
    np.add.at(joint, (rng.integers(0, 60, 3000), rng.integers(0, 1000, 3000)), 1)
    agreement = unit_agreement(joint)
    assert agreement["pnmi"] > 0.5
    assert agreement["pnmi_chance"] == pytest.approx(agreement["pnmi"], abs=0.01)
    assert unit_agreement(np.full((60, 1000), 200))["pnmi_chance"] < 0.001
    assert unit_agreement(np.diag([300] * 60))["pnmi_chance"] < 0.05  # and it is not raised by labels that do know
    assert unit_agreement(np.array([[3, 4]]))["pnmi_chance"] == 0


def test_streaming_equals_all_frames_at_once():
    rng = np.random.default_rng(0)
    units, labels = rng.integers(-1, 5, 900), rng.integers(0, 12, 900)
    labels = np.where(rng.random(900) < 0.5, np.abs(units), labels)
    metrics = LabelMetrics([12, 3], num_units=5)
    for part in np.array_split(np.arange(900), [10, 500]):
        metrics.add({12: labels[part], 3: labels[part] % 3}, units[part])
    metrics.add({12: np.array([11]), 3: np.array([2])})  # not aligned: counts in the entropy only
    result = metrics.result()
    inside = units >= 0
    p = np.bincount(units[inside]) / inside.sum()
    for clusters, stream in [(12, labels), (3, labels % 3)]:
        assert result[clusters]["frames"] == 901 and result[clusters]["aligned_frames"] == inside.sum()
        expected = mutual_info_score(units[inside], stream[inside]) / -(p * np.log(p)).sum()
        assert result[clusters]["pnmi"] == pytest.approx(expected)
        assert 0 < result[clusters]["pnmi_chance"] < expected
        best = [np.bincount(units[inside][stream[inside] == each]).max() for each in np.unique(stream[inside])]
        assert result[clusters]["unit_purity"] == pytest.approx(sum(best) / inside.sum())


def test_without_alignments_there_is_usage_only():
    metrics = LabelMetrics([4])
    metrics.add({4: np.array([0, 0, 2, 2])})
    assert metrics.result() == {4: {"frames": 4, "entropy_bits": 1.0, "used_clusters": 2, "dead_clusters": 2}}


@pytest.mark.parametrize("in_use, frames_per_cluster, warns", [(24, 20, True), (26, 20, False), (10, 19, False)])
def test_few_clusters_in_use_are_told(caplog, in_use, frames_per_cluster, warns):
    """Fails if labels of a k-means that does not suit the audio pass in silence, or if those of a short manifest,
    which cannot use all clusters, are called unfit."""
    metrics = LabelMetrics([100, 10])
    labels = np.arange(frames_per_cluster * 100) % in_use
    metrics.add({100: labels, 10: labels % 10})
    warn_of_few_clusters({"manifest": "labelled.json", "sets": metrics.result()})
    assert ("labelled.json: labels are spread as over 24 of 100 clusters" in caplog.text) is warns
    assert bool(caplog.text) is warns
