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

"""Quality of labels: entropy and dead clusters; with alignments also purities and PNMI, as HuBERT measures them.

With p(unit, cluster) over aligned frames (HuBERT, section IV-D; fairseq: measure_teacher_quality.py):

    unit purity     sum over clusters of max over units      accuracy of calling a cluster by its commonest unit
    cluster purity  sum over units of max over clusters      falls as clusters get finer
    PNMI            I(unit; cluster) / H(unit)               share of the unit's uncertainty that the label removes
    PNMI by chance  E[I] / H(unit)                           PNMI of labels that are independent of the units

On few frames, even meaningless labels seem to predict units, and more so with more clusters. E[I] is the expected
information if labels with the same frequencies were assigned to the frames at random (labels that last for several
frames reach somewhat more). A PNMI is meaningful only if it is far above its value by chance.

Frames outside any unit are skipped, since an alignment may be incomplete there. Give silence its own unit to have it
counted, as in fairseq's numbers. In TextGrids it has one: the interval without text.
"""

import logging
from typing import Any, Dict, Optional, Sequence

import numpy as np
from scipy.special import gammaln
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from nemo_mshubert.clustering.label_maker import LabelMaker
from nemo_mshubert.data.alignments import Alignments, check_aligned
from nemo_mshubert.data.labels import FrameLabels, cluster_usage
from nemo_mshubert.data.manifest import iter_manifest, utterance_id
from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)

ENOUGH_FRAMES = 20  # per cluster, to judge how many clusters are in use
# of a set. MFCCs, 100 clusters: 0.9 on the audio of the k-means, 0.4 to 0.7 on other corpora of full bandwidth, 0.2 or
# less where one of the two was cut off at 4 kHz or coded as MP3
FEW_CLUSTERS = 0.25


def measure_manifest(manifest: PathLike, maker: LabelMaker, alignments: Optional[Alignments] = None) -> Dict[str, Any]:
    """`LabelMetrics` of all sets of a labelled manifest. Alignment times are relative to the start of the utterance.

    Raises:
        ValueError: labels are malformed or from another maker, or no utterance is aligned.
    """
    if alignments:
        check_aligned([manifest], alignments)
    metrics = LabelMetrics(maker.sets, len(alignments.names) if alignments else 0)
    utterances = aligned = 0
    for where, entry in iter_manifest(manifest):
        labels = FrameLabels.from_manifest(entry.get("labels"), where, maker.id)
        units = alignments.frame_units(utterance_id(entry), labels.num_frames) if alignments else None
        sets = maker.expand(labels.sets[maker.sets[0]]) if maker.assignment == "nested" else labels.sets
        metrics.add(sets, units)
        utterances, aligned = utterances + 1, aligned + (units is not None)
    report = {"manifest": str(manifest), "maker": maker.id, "features": maker.features.name, "utterances": utterances}
    if alignments:
        report.update(unit=alignments.kind, aligned_utterances=aligned)
    return {**report, "sets": metrics.result()}


def warn_of_few_clusters(report: Dict[str, Any]) -> None:
    """Log a warning if the finest labels of `measure_manifest` are spread as over less than a quarter of the clusters:
    ``2 ** entropy_bits`` clusters in equal use have the same entropy."""
    clusters, usage = next(iter(report["sets"].items()))
    in_use = 2 ** usage["entropy_bits"]
    if usage["frames"] >= ENOUGH_FRAMES * clusters and in_use < FEW_CLUSTERS * clusters:
        logger.warning(
            "%s: labels are spread as over %.0f of %d clusters. Is this audio unlike that of the k-means, of another "
            "channel or codec, or band-limited? Then fit the k-means on audio like this.",
            report["manifest"],
            in_use,
            clusters,
        )


class LabelMetrics:
    """Counts labels, and pairs of label and unit, utterance by utterance; memory does not grow with the corpus.

    Args:
        sets: numbers of clusters.
        num_units: number of different units of the alignments, 0 without alignments.
    """

    def __init__(self, sets: Sequence[int], num_units: int = 0):
        self.counts = {clusters: np.zeros(clusters, np.int64) for clusters in sets}
        self.joint = {clusters: np.zeros((num_units, clusters), np.int64) for clusters in sets}

    def add(self, labels: Dict[int, np.ndarray], units: Optional[np.ndarray] = None) -> None:
        """Count an utterance: labels ``{clusters: [T]}`` and the unit index ``[T]`` of each frame, -1 for none."""
        for clusters, stream in labels.items():
            self.counts[clusters] += np.bincount(stream, minlength=clusters)
            if units is not None:
                inside = units >= 0
                np.add.at(self.joint[clusters], (units[inside], stream[inside]), 1)

    def result(self) -> Dict[int, Dict[str, Any]]:
        """Per set: `cluster_usage`; if frames were aligned, also ``aligned_frames`` and `unit_agreement`."""
        result = {}
        for clusters, counts in self.counts.items():
            result[clusters] = {"frames": int(counts.sum()), **cluster_usage(counts)}
            if self.joint[clusters].any():
                result[clusters].update(unit_agreement(self.joint[clusters]))
        return result


def unit_agreement(joint: np.ndarray) -> Dict[str, Any]:
    """Purities, PNMI and PNMI by chance from frame counts ``[units, clusters]``. With one unit, both PNMIs are 0."""
    frames = joint.sum()
    unit_entropy = entropy(joint.sum(axis=1))
    information, by_chance = mutual_info_score(None, None, contingency=joint), chance_information(joint)
    return {
        "aligned_frames": int(frames),
        "unit_purity": float(joint.max(axis=0).sum() / frames),
        "cluster_purity": float(joint.max(axis=1).sum() / frames),
        "pnmi": float(information / unit_entropy) if unit_entropy > 0 else 0.0,
        "pnmi_chance": float(by_chance / unit_entropy) if unit_entropy > 0 else 0.0,
    }


def chance_information(joint: np.ndarray) -> float:
    """Expected mutual information, in nats, of units and labels that are independent and have the margins of
    ``joint [units, clusters]``.

    It equals scikit-learn's ``expected_mutual_information`` (Vinh et al. 2010), which sums over all possible counts of
    a cell: with 1000 clusters and 70 phones, it takes 3 s per million frames. Here the sum covers the counts within
    ten standard deviations of the cell's mean: 3 s for 100 million.
    """
    unit_sizes, clusters = (margin[margin > 0].astype(np.float64) for margin in (joint.sum(axis=1), joint.sum(axis=0)))
    frames = unit_sizes.sum()
    information = 0.0
    for unit, times in zip(*np.unique(unit_sizes, return_counts=True)):  # many words are equally rare
        mean = unit * clusters / frames
        reach = 10 * np.sqrt(mean) + 10
        first = np.ceil(np.maximum(np.maximum(mean - reach, unit + clusters - frames), 1))
        last = np.floor(np.minimum(np.minimum(mean + reach, unit), clusters))
        width = np.maximum(last - first + 1, 0).astype(np.int64)
        count = np.repeat(first - np.cumsum(width) + width, width) + np.arange(width.sum())  # of all cells in a row
        cluster = np.repeat(clusters, width)
        log_chance = _log_choose(unit, count) + _log_choose(frames - unit, cluster - count)  # hypergeometric
        log_chance -= np.repeat(_log_choose(frames, clusters), width)
        information += times * np.sum(np.exp(log_chance) * count / frames * np.log(count * frames / (unit * cluster)))
    return float(information)


def _log_choose(n, k):
    """Logarithm of the binomial coefficient."""
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
