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

"""If these fail, centres are fitted on a biased sample, or frames go to the wrong centre."""

import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans

from nemo_mshubert.clustering import kmeans
from nemo_mshubert.clustering.kmeans import assign, choose_backend, fit_kmeans, sample_frames

pytestmark = pytest.mark.unit


def batches(num_frames, size):
    frames = np.arange(num_frames, dtype=np.float32)[:, None]
    return [frames[start : start + size] for start in range(0, num_frames, size)]


def test_short_stream_is_returned_whole():
    np.testing.assert_array_equal(sample_frames(batches(50, 7), 100, seed=0)[:, 0], np.arange(50))
    np.testing.assert_array_equal(sample_frames(batches(50, 7), 50, seed=0)[:, 0], np.arange(50))


def test_sample_has_no_repetition_and_repeats_with_its_seed():
    sample = sample_frames(batches(1000, 30), 100, seed=3)
    assert sample.shape == (100, 1) and len(np.unique(sample)) == 100
    np.testing.assert_array_equal(sample, sample_frames(batches(1000, 30), 100, seed=3))
    assert not np.array_equal(sample, sample_frames(batches(1000, 30), 100, seed=4))


def test_sample_does_not_depend_on_batches():
    """The order of the manifest decides the k-means, not the window size or the number of GPUs."""
    np.testing.assert_array_equal(sample_frames(batches(999, 1), 50, seed=1), sample_frames(batches(999, 333), 50, 1))


@pytest.mark.parametrize("frames, size", [(60, 20), (3, 1)])
def test_every_frame_is_equally_likely(frames, size):
    """A biased reservoir would fit the k-means on the first (or last) speakers of the manifest."""
    draws, hits = 4000, np.zeros(frames)
    for seed in range(draws):
        hits[sample_frames(batches(frames, 17), size, seed)[:, 0].astype(int)] += 1
    expected = draws * size / frames
    sigma = np.sqrt(draws * (1 / 3) * (2 / 3))
    assert np.abs(hits - expected).max() < 4.5 * sigma  # 60 frames: one failure in 2500 seeds, and the seeds are fixed


def test_empty_stream_is_refused():
    with pytest.raises(ValueError, match="no frames"):
        sample_frames([], 10, seed=0)


@pytest.mark.parametrize("scale", [1, 100])
def test_assign_is_the_nearest_centre(scale, monkeypatch):
    monkeypatch.setattr(kmeans, "ASSIGN_FRAMES", 37)  # several distance matrices
    rng = np.random.default_rng(0)
    features = (scale * rng.normal(size=(200, 39)) + 5).astype(np.float32)
    centres = (scale * rng.normal(size=(30, 39)) + 5).astype(np.float32)
    labels = assign(features, centres)
    brute_force = [np.argmin([np.sum((x - c) ** 2) for c in centres.astype(np.float64)]) for x in features]
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, brute_force)
    for other in ((features.astype(np.float64), centres), (features, centres.astype(np.float64))):  # of other programs
        np.testing.assert_array_equal(assign(*other), labels)


def test_assign_of_no_frames_is_empty():
    assert assign(np.empty((0, 3), np.float32), np.ones((2, 3), np.float32)).shape == (0,)


def blobs(num_frames, seed=0):
    """Frames around six far corners: any k-means of six must find them."""
    corners = 100 * np.eye(6, dtype=np.float32)
    rng = np.random.default_rng(seed)
    return corners, corners[rng.integers(0, 6, num_frames)] + rng.normal(0, 1, (num_frames, 6)).astype(np.float32)


@pytest.mark.parametrize("num_frames", [300, 12000])  # plain and mini-batch k-means
def test_sklearn_finds_the_clusters(num_frames):
    corners, frames = blobs(num_frames)
    centres = fit_kmeans(frames, 6, "sklearn", seed=0)
    assert centres.dtype == np.float32
    np.testing.assert_allclose(centres[assign(corners, centres)], corners, atol=1)
    np.testing.assert_array_equal(centres, fit_kmeans(frames, 6, "sklearn", seed=0))


def test_mini_batches_only_above_one_batch(monkeypatch):
    """Mini-batches of 10,000 on 1000 centres would be full batches of drawn-with-replacement points."""
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)  # importing either class fails, and says which path ran
    with pytest.raises(ImportError):
        fit_kmeans(np.zeros((10001, 2), np.float32), 2, "sklearn")
    called = []
    monkeypatch.setattr(kmeans, "_fit_full_batch", lambda *args: called.append(args))
    fit_kmeans(np.zeros((10000, 2), np.float32), 2, "sklearn")
    assert called


def test_mini_batches_are_those_of_fairseq():
    """The options of examples/hubert/simple_kmeans/learn_kmeans.py, of which HuBERT's labels come."""
    frames = np.random.default_rng(0).normal(size=(10001, 3)).astype(np.float32)
    fairseq = MiniBatchKMeans(
        n_clusters=7,
        init="k-means++",
        max_iter=100,
        batch_size=10000,
        tol=0.0,
        max_no_improvement=100,
        n_init=20,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=5,
    )
    centres = fit_kmeans(frames, 7, "sklearn", seed=5)
    np.testing.assert_array_equal(centres, fairseq.fit(frames).cluster_centers_.astype(np.float32))


@pytest.mark.parametrize("points, starts", [(34, 10), (35, 1)])  # five to a cluster
def test_centres_of_centres_are_the_best_of_ten_starts(points, starts):
    """From one start the coarse sets of a hierarchy would be percents worse than they could be."""
    frames = np.random.default_rng(1).normal(size=(points, 4)).astype(np.float32)
    expected = KMeans(7, n_init=starts, random_state=2).fit(frames).cluster_centers_.astype(np.float32)
    other = KMeans(7, n_init=11 - starts, random_state=2).fit(frames).cluster_centers_.astype(np.float32)
    np.testing.assert_array_equal(fit_kmeans(frames, 7, "sklearn", seed=2), expected)
    assert not np.array_equal(expected, other)


def test_cuml_starts_as_scikit_learn_does(monkeypatch):
    """A stand-in for a machine with cuML: its own default start ends 1.5 % above scikit-learn."""
    made = []

    def cuml_kmeans(n_clusters, n_init, oversampling_factor, random_state, output_type):
        made.append((oversampling_factor, output_type))
        return KMeans(n_clusters, n_init=n_init, random_state=random_state)

    monkeypatch.setattr(kmeans, "_cuml_kmeans", lambda: cuml_kmeans)
    corners, frames = blobs(12000)
    centres = fit_kmeans(frames, 6, "cuml", seed=0)
    assert made == [(0.0, "numpy")] and centres.dtype == np.float32 and centres.shape == (6, 6)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_auto_takes_cuml_where_it_can_run(monkeypatch, gpu, installed):
    """Of a GPU without cuML, or cuML on a login node, an ImportError or a CUDA error would be all there is."""
    monkeypatch.setattr(kmeans.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(kmeans, "find_spec", lambda name: object() if installed and name == "cuml" else None)
    monkeypatch.setattr(kmeans, "_cuml_kmeans", lambda: None)
    assert choose_backend("auto") == ("cuml" if gpu and installed else "sklearn")
    assert [choose_backend(name) for name in ("sklearn", "cuml")] == ["sklearn", "cuml"]


def test_bad_requests_say_what_to_do():
    with pytest.raises(ValueError, match="10 clusters on 9 frames. Use more audio"):
        fit_kmeans(np.zeros((9, 2), np.float32), 10)
    with pytest.raises(ValueError, match="backend 'faiss': expected one of auto, sklearn, cuml"):
        fit_kmeans(np.zeros((9, 2), np.float32), 2, "faiss")


@pytest.mark.parametrize("frames", [100, 10001])
def test_missing_cuml_says_how_to_install_it(monkeypatch, frames):
    monkeypatch.setitem(sys.modules, "cuml", None)
    with pytest.raises(ImportError, match=r"nemo_mshubert\[gpu\].*backend 'sklearn'"):
        fit_kmeans(np.zeros((frames, 2), np.float32), 2, "cuml")


def test_cuml_finds_the_same_clusters():
    pytest.importorskip("cuml", reason="needs cuML and an NVIDIA GPU")
    corners, frames = blobs(12000)
    centres = fit_kmeans(frames, 6, "cuml", seed=0)
    np.testing.assert_allclose(centres[assign(corners, centres)], corners, atol=1)
