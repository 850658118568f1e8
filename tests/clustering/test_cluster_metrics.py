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

import gzip
import json

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information

from nemo_mshubert.clustering.metrics import LabelMetrics, chance_information, load_alignments, unit_agreement


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


def write_alignments(path, lines):
    with gzip.open(path, "wt") as stream:
        stream.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    return path


def phone(name, start, end):
    return {"phone": name, "start": start, "end": end}


def test_a_frame_has_the_unit_at_its_centre(tmp_path):
    """Centres at 12.5, 32.5, 52.5, 72.5 ms: half a frame of shift would smear every phone border."""
    lines = [
        {"utt_id": "a", "phones": [phone("T", 0.0526, 0.07), phone("AH", 0.0125, 0.0325)]}
    ]  # order is not required
    alignments = load_alignments(write_alignments(tmp_path / "align.jsonl.gz", lines))
    names = [None if unit < 0 else alignments.names[unit] for unit in alignments.frame_units("a", 5)]
    assert names == ["AH", None, None, None, None]
    lines = [{"utt_id": "a", "phones": [phone("AH", 0.0, 0.0326), phone("T", 0.0326, 0.06)]}]
    alignments = load_alignments(write_alignments(tmp_path / "align.jsonl.gz", lines))
    names = [None if unit < 0 else alignments.names[unit] for unit in alignments.frame_units("a", 5)]
    assert names == ["AH", "AH", "T", None, None]
    assert alignments.frame_units("b", 5) is None


@pytest.mark.unit
def test_phones_in_any_order_are_the_same_alignment(tmp_path):
    """Purities and PNMI of a file that lists phones by name would be those of other frames, without a word."""
    phones = [phone(name, 0.02 * t, 0.02 * (t + 1)) for t, name in enumerate(["T", "AH", "S", "IY"])]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 0, 1]):
        line = {"utt_id": "a", "phones": [phones[place] for place in order]}
        alignments = load_alignments(write_alignments(tmp_path / "align.jsonl.gz", [line]))
        assert [alignments.names[unit] for unit in alignments.frame_units("a", 4)] == ["T", "AH", "S", "IY"]


def test_words_are_units_too(tmp_path):
    path = tmp_path / "align.jsonl"
    path.write_text(json.dumps({"utt_id": "a", "words": [{"word": "so", "start": 0, "end": 1}]}) + "\n")
    alignments = load_alignments(path)
    assert (alignments.kind, alignments.names) == ("word", ["so"])


@pytest.mark.parametrize(
    "line",
    ["{broken\n", {"utt_id": "b", "words": []}, {"phones": [phone("T", 0, 1)]}, {"utt_id": "b", "phones": [{}]}],
)
def test_a_bad_alignment_is_named(tmp_path, line):
    path = write_alignments(tmp_path / "align.jsonl.gz", [{"utt_id": "a", "phones": [phone("T", 0, 1)]}, line])
    with pytest.raises(ValueError, match="align.jsonl.gz:2: not an alignment"):
        load_alignments(path)


def test_an_alignment_in_another_encoding_is_named(tmp_path):
    """Without its line, nobody finds the one word with an accent."""
    path = tmp_path / "align.jsonl"
    words = (
        {"utt_id": "ab"[n], "words": [{"word": word, "start": 0, "end": 1}]}
        for n, word in enumerate(("so", "caf\u00e9"))
    )
    path.write_bytes("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in words).encode("latin-1"))
    with pytest.raises(ValueError, match="align.jsonl:2: not an alignment"):
        load_alignments(path)


@pytest.mark.parametrize("first", [[phone("T", 0, 1)], []])
def test_an_utterance_that_is_aligned_twice_is_named(tmp_path, first):
    """The last line silently won: of TIMIT's SA1, which every speaker reads, all but one speaker were measured
    against the times of another."""
    lines = [{"utt_id": "SA1", "phones": first}, {"utt_id": "SA2", "phones": [phone("T", 0, 1)]}]
    lines.append({"utt_id": "SA1", "phones": [phone("AH", 0, 1)]})
    with pytest.raises(ValueError, match='align.jsonl.gz:3: SA1 is aligned in line 1 already.*different "utt_id"'):
        load_alignments(write_alignments(tmp_path / "align.jsonl.gz", lines))


def test_no_alignment_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no aligned utterance"):
        load_alignments(write_alignments(tmp_path / "align.jsonl.gz", []))
