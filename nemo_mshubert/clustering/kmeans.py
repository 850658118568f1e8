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

"""k-means on frames: sample frames from a stream, fit centres on a CPU or a GPU, assign frames to centres.

Features are never written to disk, and never held in memory for the whole corpus: centres are fitted on a uniform
sample, and frames are assigned ten minutes at a time.
"""

from importlib.util import find_spec
from typing import Iterable, Union

import numpy as np
import torch
from torch import Tensor

BACKENDS = ("auto", "sklearn", "cuml")
# fairseq: examples/hubert/simple_kmeans/learn_kmeans.py
MINIBATCH = dict(
    init="k-means++",
    max_iter=100,
    batch_size=10000,
    tol=0.0,
    max_no_improvement=100,
    n_init=20,
    reassignment_ratio=0.0,
    compute_labels=False,
)
FULL_BATCH = MINIBATCH["batch_size"]  # up to so many frames, every iteration uses all of them, on the CPU
ASSIGN_FRAMES = 16384  # per distance matrix: 66 MB for 1000 centres


def sample_frames(batches_of_features: Iterable[Union[np.ndarray, Tensor]], max_frames: int, seed: int) -> np.ndarray:
    """Uniform sample without replacement of a stream of frames. The memory needed is that of the sample.

    This is Vitter's algorithm R on whole batches: frame ``i`` draws one of ``i + 1`` places, and is kept if that place
    is in the reservoir. The sample does not depend on how the stream is divided into batches.

    Args:
        batches_of_features: ``[T, D]`` each, on any device; the frames that are kept are copied to the CPU.
        max_frames: size of the sample; a shorter stream is returned whole.
        seed: of the random places.

    Returns:
        float32 ``[min(max_frames, frames), D]``.
    """
    rng = np.random.default_rng(seed)
    sample, seen = None, 0
    for batch in batches_of_features:
        if sample is None:
            sample = np.empty((max_frames, batch.shape[1]), np.float32)
        index = np.arange(seen, seen + len(batch))
        place = np.where(index < max_frames, index, (rng.random(len(batch)) * (index + 1)).astype(np.int64))
        kept = place < max_frames
        # A place drawn twice keeps the later frame, as if frames came one at a time.
        sample[place[kept]] = torch.as_tensor(batch)[kept].cpu().numpy()
        seen += len(batch)
    if not seen:
        raise ValueError("no frames to sample.")
    return sample[:seen]


def choose_backend(backend: str) -> str:
    """The backend that ``backend`` stands for: "sklearn" or "cuml". A call before the pass over the corpus avoids a
    pass that fails at its end because cuML is missing.

    Raises:
        ValueError: no such backend.
        ImportError: cuML is requested, or chosen by "auto", but cannot be imported.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}.")
    if backend == "auto":
        backend = "cuml" if torch.cuda.is_available() and find_spec("cuml") else "sklearn"
    if backend == "cuml":
        _cuml_kmeans()
    return backend


def fit_kmeans(frames: np.ndarray, clusters: int, backend: str = "auto", seed: int = 0) -> np.ndarray:
    """Centres of k-means.

    Args:
        frames: ``[N, D]``.
        clusters: K.
        backend: "sklearn" (CPU), "cuml" (NVIDIA GPU), or "auto": cuML if it is installed and there is a GPU.
            For up to `FULL_BATCH` frames, scikit-learn is used in any case.
        seed: of the initial centres and of the mini-batches.

    Returns:
        float32 ``[K, D]``.

    Raises:
        ValueError: fewer frames than clusters, or no such backend.
        ImportError: as `choose_backend`.
    """
    backend = choose_backend(backend)
    if len(frames) < clusters:
        raise ValueError(
            f"{clusters} clusters on {len(frames)} frames. Use more audio, raise max_frames, or ask for fewer "
            "clusters."
        )
    if len(frames) <= FULL_BATCH:
        return _fit_full_batch(frames, clusters, seed)
    if backend == "cuml":
        return _fit_cuml(frames, clusters, seed)
    from sklearn.cluster import MiniBatchKMeans

    return MiniBatchKMeans(clusters, random_state=seed, **MINIBATCH).fit(frames).cluster_centers_.astype(np.float32)


def assign(features: Union[np.ndarray, Tensor], centres: np.ndarray) -> np.ndarray:
    """Index of the nearest centre (squared Euclidean distance, fp32) of each frame.

    Args:
        features: ``[T, D]``, on the device that is to compute the distances.
        centres: ``[K, D]``, K <= 65535.

    Returns:
        uint16 ``[T]``.
    """
    features = torch.as_tensor(features, dtype=torch.float32)
    centres_KD = torch.as_tensor(centres, dtype=torch.float32, device=features.device)
    squares_K = centres_KD.square().sum(dim=1)
    labels = []
    for features_TD in features.split(ASSIGN_FRAMES):
        # |x - c|^2 = x^2 - 2xc + c^2; x^2 is the same for all centres and would only cost precision
        distances_TK = torch.addmm(squares_K, features_TD, centres_KD.T, alpha=-2)
        labels.append(distances_TK.argmin(dim=1))
    return torch.cat(labels).cpu().numpy().astype(np.uint16)


def _fit_full_batch(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Plain k-means. fairseq's mini-batches of 10,000 make no sense on fewer points, such as 1000 centres.

    When centres are clustered, with two points per cluster, local optima differ in inertia by a few percent, so the
    best of ten starts is taken. With many frames per cluster they differ by tenths of a percent, which is not worth
    ten times the time.
    """
    from sklearn.cluster import KMeans

    starts = 10 if len(points) < 5 * clusters else 1
    return KMeans(clusters, n_init=starts, random_state=seed).fit(points).cluster_centers_.astype(np.float32)


def _fit_cuml(frames: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Full-batch k-means: on a GPU, the whole sample takes less time than mini-batches on a CPU.

    Without oversampling, cuML initialises as scikit-learn does: each centre is the best of several draws. Its default,
    k-means||, ended with an inertia 1.5 % above that of scikit-learn's mini-batches with their 20 starts.
    """
    options = dict(n_init=1, oversampling_factor=0.0, random_state=seed, output_type="numpy")
    kmeans = _cuml_kmeans()(n_clusters=clusters, **options)
    return np.asarray(kmeans.fit(np.ascontiguousarray(frames)).cluster_centers_, dtype=np.float32)


def _cuml_kmeans():
    try:
        from cuml.cluster import KMeans
    except ImportError as error:
        raise ImportError(
            "backend 'cuml' needs cuML: pip install 'nemo_mshubert[gpu]' on a machine with an NVIDIA GPU and a driver "
            f"for CUDA 13 (for CUDA 12: pip install cuml-cu12), or use backend 'sklearn' ({error})."
        ) from error
    return KMeans
