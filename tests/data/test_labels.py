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

"""If these fail, a model can be trained on labels of other audio, another rate or another k-means without a word."""

import base64
import json

import numpy as np
import pytest
import soundfile

from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.labels import (
    MAX_PROBLEMS_SHOWN,
    FrameLabels,
    _header_samples,
    check_labelled_manifest,
    check_labels_of,
    cluster_usage,
)
from nemo_mshubert.data.manifest import iter_manifest, write_manifest
from nemo_mshubert.data.tarred import make_tarred
from nemo_mshubert.modules.frames import frame_count

pytestmark = pytest.mark.unit
MAKER = "0123456789abcdef"


def make_labels(num_samples=48000, clusters=20, maker=MAKER, offset=None, seed=0):
    stream = np.random.default_rng(seed).integers(0, clusters, frame_count(num_samples)).astype(np.uint16)
    return FrameLabels(maker, num_samples, {clusters: stream}, offset)


def encode(values):
    return base64.b64encode(np.asarray(values, "<u2").tobytes()).decode()


def field(**changes):
    return {**make_labels().to_manifest(), **changes}


def test_format_is_as_documented():
    """Other people's readers of the manifest rely on these names and bytes."""
    labels = FrameLabels(MAKER, 1040, {1000: np.array([1, 999, 258], np.uint16)}, offset=1.5)
    assert labels.to_manifest() == {
        "maker": MAKER,
        "frame_rate": 50,
        "num_frames": 3,
        "num_samples": 1040,
        "offset": 1.5,
        "sets": {"1000": base64.b64encode(bytes([1, 0, 231, 3, 2, 1])).decode()},
    }
    assert "offset" not in make_labels().to_manifest()


def test_round_trip_through_json():
    labels = FrameLabels(
        MAKER, 48000, {70: make_labels(clusters=70).sets[70], 20: make_labels().sets[20]}, offset=0.25
    )
    back = FrameLabels.from_manifest(json.loads(json.dumps(labels.to_manifest())), "here")
    assert (back.maker, back.num_samples, back.offset, back.num_frames) == (MAKER, 48000, 0.25, 149)
    assert list(back.sets) == [70, 20]
    for clusters, stream in labels.sets.items():
        np.testing.assert_array_equal(back.sets[clusters], stream)


def test_crop_is_the_slice_and_a_tensor_can_own_it():
    labels = FrameLabels.from_manifest(field(), "here")
    crop = labels.crop(3, 10)[20]
    np.testing.assert_array_equal(crop, labels.sets[20][3:13])
    assert crop.dtype == np.int64 and crop.flags.writeable
    assert len(labels.crop(149, 0)[20]) == 0
    for start, length in [(-1, 5), (140, 10)]:
        with pytest.raises(ValueError, match="of 149 frames"):
            labels.crop(start, length)


@pytest.mark.parametrize(
    "bad, message",
    [
        (None, 'no "labels"'),
        ([], 'no "labels"'),
        ({key: value for key, value in field().items() if key != "num_samples"}, 'lacks "num_samples"'),
        (field(num_frames="149"), '"num_frames" .* expected int'),
        (field(num_samples=True), '"num_samples" .* expected int'),
        (field(maker=7), '"maker" .* expected str'),
        (field(offset="0"), '"offset" .* expected seconds'),
        (field(sets={}), '"sets" .* is empty'),
        (field(sets={"many": ""}), "'many' is not a number"),
        (field(sets={"70000": ""}), "'70000' is not a number"),
        (field(sets={"20": "not base64!"}), "base64"),
        (field(sets={"20": 5}), "base64"),
        (field(sets={"20": "\n" + field()["sets"]["20"]}), "base64"),
        (field(sets={"20": base64.b64encode(b"abc").decode()}), "base64 of 16-bit"),
        (field(sets={"20": encode(range(15))}), "15 labels of set 20 for 149 frames"),
        (field(num_frames=150), '"num_frames" is 150, but 48000 samples have 149'),
        (field(num_samples=47759), "47759 samples have 148"),
        (field(frame_rate=100), "100 Hz, expected 50"),
        (field(sets={"20": encode([*range(19), 20] * 7 + [0] * 9)}), "label 20 in a set of 20"),
        (field(sets={"20": encode([3] * 149)}), "all 149 labels of set 20 are 3"),
        (field(num_samples=32080, num_frames=100, sets={"20": encode([3] * 100)}), "all 100 labels"),
        (field(num_samples=399, num_frames=0, sets={"20": ""}), "shorter than one frame"),
    ],
)
def test_a_bad_field_is_refused_and_named(bad, message):
    with pytest.raises(ValueError, match=message) as error:
        FrameLabels.from_manifest(bad, "train.json:17")
    assert "train.json:17" in str(error.value)
    assert any(word in str(error.value) for word in ("label.py", "Remove", "remove"))  # the remedy


def test_a_short_constant_utterance_is_speech():
    """A second of one label happens (a long vowel, silence): refusing it would stop a real corpus."""
    labels = FrameLabels(MAKER, 32000, {20: np.full(99, 7, np.uint16)})
    assert FrameLabels.from_manifest(labels.to_manifest(), "here").num_frames == 99


def test_another_maker_is_refused():
    FrameLabels.from_manifest(field(), "train.json:1", MAKER)
    with pytest.raises(ValueError, match="train.json:1: labels of label maker 0123.* expected feed"):
        FrameLabels.from_manifest(field(), "train.json:1", "feed" * 4)


def test_cluster_usage_in_closed_form():
    assert cluster_usage(np.array([5, 5, 5, 5])) == {"entropy_bits": 2.0, "used_clusters": 4, "dead_clusters": 0}
    assert cluster_usage(np.array([9, 0])) == {"entropy_bits": 0.0, "used_clusters": 1, "dead_clusters": 1}
    assert cluster_usage(np.array([2, 1, 1, 0]))["entropy_bits"] == pytest.approx(1.5)
    nothing = cluster_usage(np.zeros(3, np.int64))  # NaN would be no JSON in the metrics of an empty manifest
    assert nothing == {"entropy_bits": 0.0, "used_clusters": 0, "dead_clusters": 3}


def test_label_sets_are_reported_finest_first(manifest):
    """As everywhere else; two reports of the same labels would differ. Clusters that no line has are dead."""
    entries = [entry for _, entry in iter_manifest(manifest)]
    for entry in entries:
        sets = entry["labels"]["sets"]
        entry["labels"]["sets"] = {"30": sets["20"], "20": sets["20"], "100": sets["20"]}
    write_manifest(manifest, entries)
    sets = check_labelled_manifest(manifest)["sets"]
    assert list(sets) == [100, 30, 20]
    assert [usage["dead_clusters"] for usage in sets.values()] == [80, 10, 0]


# --- a whole manifest ------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path):
    """Three labelled utterances: 16 kHz, 8 kHz (resampled on reading), and a segment of a file."""
    rng = np.random.default_rng(0)
    entries = []
    for name, rate, samples in [("a", 16000, 48000), ("b", 8000, 12345), ("c", 16000, 64000)]:
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, rng.normal(0, 0.1, samples), rate)
        entries.append({"audio_filepath": str(path), "duration": samples / rate})
    entries[2].update(offset=0.77701, duration=2.123)
    for entry in entries:
        entry["labels"] = make_labels(len(load_audio(entry)), offset=entry.get("offset")).to_manifest()
    path = tmp_path / "train.json"
    write_manifest(path, entries)
    return path


def rewrite(manifest, line, **changes):
    entries = [entry for _, entry in iter_manifest(manifest)]
    entries[line - 1].update(changes)
    write_manifest(manifest, entries)


def test_a_good_manifest_gives_its_statistics(manifest):
    """Lengths from headers must be those of the loaded audio, resampled and cut; else good labels are refused."""
    summary = check_labelled_manifest(manifest, MAKER)
    lengths = [len(load_audio(entry)) for _, entry in iter_manifest(manifest)]
    assert summary["maker"] == MAKER and summary["utterances"] == 3
    assert summary["frames"] == sum(frame_count(length) for length in lengths)
    assert summary["hours"] == pytest.approx(sum(lengths) / 16000 / 3600)
    assert summary["sets"][20]["used_clusters"] == 20
    assert 4.2 < summary["sets"][20]["entropy_bits"] <= np.log2(20)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": None}, 'no "labels"'),
        ({"labels": make_labels(24690, maker="f" * 16).to_manifest()}, "label maker ffff"),
        (
            {"labels": make_labels(24690, clusters=30).to_manifest()},
            r"label sets \[30\], the lines before have \[20\]",
        ),
        ({"labels": make_labels(24689).to_manifest()}, "labels of 24689 samples .* audio of 24690"),
        ({"offset": 0.2}, "the audio or the line was changed"),
        ({"offset": 0.5}, r"1.04\d* s of audio behind the offset of 0.5 s, the manifest says 1.54"),
        ({"audio_filepath": "gone.wav"}, "no such audio file"),
        ({"audio_filepath": __file__}, "cannot be read as audio"),
    ],
)
def test_a_bad_line_is_named(manifest, changes, message):
    rewrite(manifest, 2, **changes)
    with pytest.raises(ValueError, match=message) as error:
        check_labelled_manifest(manifest)
    assert "1 lines with a problem" in str(error.value) and f"{manifest}:2: " in str(error.value)


def test_a_segment_that_was_moved_is_named(manifest):
    """As long as before, but of other audio: its labels would be those of the words beside it."""
    rewrite(manifest, 3, offset=0.5)
    with pytest.raises(ValueError, match="train.json:3: labels of .* at offset 0.77701, audio of .* at offset 0.5"):
        check_labelled_manifest(manifest)


def test_all_problems_are_listed_up_to_a_limit(manifest):
    """One run tells the user all that is to be repaired, without flooding the terminal."""
    entries = [entry for _, entry in iter_manifest(manifest)]
    write_manifest(manifest, entries[:1] + [{**entries[1], "labels": None}] * (MAX_PROBLEMS_SHOWN + 5))
    with pytest.raises(ValueError) as error:
        check_labelled_manifest(manifest)
    message = str(error.value)
    assert f"{MAX_PROBLEMS_SHOWN + 5} lines with a problem" in message and message.endswith("... and 5 more")
    assert message.count(f"{manifest}:") == MAX_PROBLEMS_SHOWN + 1  # and once in the heading


def test_a_line_that_is_not_json_is_named_beside_other_problems(manifest):
    rewrite(manifest, 1, labels=None)
    manifest.write_text(manifest.read_text() + "{broken\n")
    with pytest.raises(ValueError, match=r"(?s)train.json:1: .*train.json:4: not JSON"):
        check_labelled_manifest(manifest)


def test_a_tarred_manifest_is_refused_at_its_first_line(counting_corpus, tmp_path):
    """Not twenty times "remove the line", of lines that are right."""
    make_tarred(counting_corpus([16000] * 3), tmp_path / "tars", 1)
    joined = tmp_path / "tars" / "tarred_audio_manifest.json"
    with pytest.raises(
        FileNotFoundError, match=f"{joined}:1: .* has a shard_id.* manifest that scripts/make_tarred.py"
    ):
        check_labelled_manifest(joined)


def test_empty_manifest(tmp_path):
    (tmp_path / "empty.json").touch()
    with pytest.raises(ValueError, match="empty"):
        check_labelled_manifest(tmp_path / "empty.json")


def test_an_offset_behind_the_end_is_named(tmp_path):
    """`label.py check` lists problems by line, this one too."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16000, np.float32), 16000)
    with pytest.raises(ValueError, match="m.json:3: the offset of 2.0 s is not within the 1.0 s"):
        _header_samples({"audio_filepath": str(tmp_path / "a.wav"), "offset": 2.0}, "m.json:3")


def test_the_first_lines_are_checked_without_their_audio(tmp_path):
    """A training starts with this look; labels of another k-means, or a set less, would end it at a later batch."""
    good = {"audio_filepath": "gone.wav", "labels": field()}
    bad = {
        "another maker": (field(maker="f" * 16), f"m.json:3: labels of label maker ffff.* expected {MAKER}"),
        "another set": (make_labels(clusters=30).to_manifest(), r"m.json:3: the label sets \[20\] are missing"),
        "no labels": (None, 'm.json:3: no "labels" object'),
    }
    for labels, message in bad.values():
        write_manifest(tmp_path / "m.json", [good, good, {**good, "labels": labels}])
        check_labels_of(tmp_path / "m.json", MAKER, [20], lines=2)
        for lines in (3, None):
            with pytest.raises(ValueError, match=message):
                check_labels_of(tmp_path / "m.json", MAKER, [20], lines)
