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

"""The hierarchy of label sets and its tables: k-means of 500 on the 1000 centres, of 250 on the 500, and so on.

frames --k-means--> 1000 centres --k-means--> 500 centres --k-means--> 250 centres ...
label of 1000  --nearest of 500-->  label of 500  --nearest of 250-->  label of 250 ...
"""

from typing import Dict, Sequence

import numpy as np

from nemo_mshubert.clustering.kmeans import assign, fit_kmeans
from nemo_mshubert.data.labels import MAX_CLUSTERS


def check_cluster_counts(cluster_counts: Sequence[int]) -> None:
    """Raise ``ValueError`` unless the counts are strictly descending, from at most 65535 to at least 2."""
    descending = all(fine > coarse for fine, coarse in zip(cluster_counts, cluster_counts[1:]))
    if not cluster_counts or not descending or cluster_counts[0] > MAX_CLUSTERS or cluster_counts[-1] < 2:
        raise ValueError(
            f"clusters {list(cluster_counts)}: expected strictly descending numbers from {MAX_CLUSTERS} to 2, such as "
            "1000 500 250 125 50 25."
        )


def fit_hierarchy(frames: np.ndarray, cluster_counts: Sequence[int], backend: str, seed: int) -> Dict[int, np.ndarray]:
    """Centres ``{clusters: float32 [clusters, D]}``: the finest set is fitted on ``frames [N, D]``, every other set on
    the centres of the set before it.

    All centres have the same weight, however many frames they have: the paper clusters "the cluster centers".
    """
    check_cluster_counts(cluster_counts)
    finest = fit_kmeans(frames, cluster_counts[0], backend, seed)
    return coarsen(finest, cluster_counts[1:], backend, seed)


def coarsen(finest: np.ndarray, cluster_counts: Sequence[int], backend: str, seed: int) -> Dict[int, np.ndarray]:
    """Like `fit_hierarchy`, with given finest centres ``[K, D]``; ``cluster_counts`` are the counts below K."""
    check_cluster_counts([len(finest), *cluster_counts])
    centres = {len(finest): finest}
    points = finest
    for clusters in cluster_counts:
        centres[clusters] = points = fit_kmeans(points, clusters, backend, seed)
    return centres


def compose_tables(centres: Dict[int, np.ndarray]) -> Dict[int, np.ndarray]:
    """Look-up tables ``{clusters: uint16 [K_finest]}`` from the finest label to the label of each set, in the order of
    ``centres``.

    Each label stands for a centre; its label in the next set is that of the nearest centre there. The table of the
    finest set is the identity.
    """
    tables: Dict[int, np.ndarray] = {}
    previous = None
    for clusters, points in centres.items():
        if previous is None:
            tables[clusters] = np.arange(clusters, dtype=np.uint16)
        else:
            tables[clusters] = assign(centres[previous], points)[tables[previous]]
        previous = clusters
    return tables
