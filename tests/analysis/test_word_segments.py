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

"""Alignments, instances, frame spans and pooled hidden states of word-CCA."""

import gzip
import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from nemo_mshubert.analysis.word_segments import (
    AllHiddenStates,
    commonest_units,
    frame_span,
    pool_instances,
    sample_instances,
)
from nemo_mshubert.data.alignments import read_alignments
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.modules.waveform_preprocessor import WaveformPreprocessor


def write_alignments(path, utterances, kind="word"):
    """``{"u0": [("a", 0.0, 0.3), ...]}`` as JSONL, gzipped where the name says so."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as stream:
        for utt_id, units in utterances.items():
            rows = [{kind: name, "start": start, "end": end} for name, start, end in units]
            stream.write(json.dumps({"utt_id": utt_id, f"{kind}s": rows}) + "\n")
    return path


def spoken(words, step=0.2):
    """Words of ``step`` seconds in a row."""
    return [(word, round(index * step, 3), round((index + 1) * step, 3)) for index, word in enumerate(words.split())]


# --- Spans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, end, words, phones",
    [
        (0.05, 0.13, (2, 7), (4, 5)),  # floor(2.5), ceil(6.5); of five frames floor(6 / 3) go at each side
        (0.58, 1.28, (29, 64), (41, 52)),  # on the grid, where 0.58 / 0.02 is a little less than 29
        (0.06, 0.14, (3, 7), (4, 6)),  # four frames: floor(5 / 3); 0.14 / 0.02 is a little more than 7
        (0.04, 0.10, (2, 5), (3, 4)),
        (0.04, 0.08, (2, 4), (3, 4)),  # of two, one at each side would leave none
        (0.04, 0.06, (2, 3), (2, 3)),
        (0.045, 0.055, (2, 3), (2, 3)),  # within one frame
        (0.04, 0.04, (2, 3), (2, 3)),  # end == start: one frame
        (1.96, 2.02, (98, 100), (99, 100)),  # 100 frames: behind the last one
        (2.00, 2.01, (99, 100), (99, 100)),
    ],
)
def test_spans_by_hand(start, end, words, phones):
    assert frame_span(start, end, 100, drop_thirds=False) == words
    assert frame_span(start, end, 100, drop_thirds=True) == phones


def test_spans_are_never_empty_and_never_outside():
    rng = np.random.default_rng(0)
    for start, length, drop_thirds in zip(rng.uniform(0, 1, 500), rng.exponential(0.1, 500), rng.random(500) < 0.5):
        first, last = frame_span(start, start + length, 49, drop_thirds)
        assert 0 <= first < last <= 49


# --- Units -----------------------------------------------------------------------------------------------------------


def test_commonest_units_leave_out_silence_and_the_unknown(tmp_path):
    text = "b a b c a b sil spn sp <sil> <sil> <eps> [unk] [UNK] <unk> <UNK> <unk> <unk> <unk> c a d"
    alignments = read_alignments([write_alignments(tmp_path / "a.jsonl", {"u": spoken(text)})], "word")
    assert commonest_units(alignments, 3) == ["a", "b", "c"]  # alphabetical where counts are equal
    assert commonest_units(alignments, None) == commonest_units(alignments, 4) == ["a", "b", "c", "d"]
    phones = write_alignments(tmp_path / "phones.jsonl", {"u": spoken("S EY1 EY0 sil")}, "phone")
    assert commonest_units(read_alignments([phones], "phone"), None) == ["EY", "S"]
    with pytest.raises(ValueError, match="4 different words in the alignments of 1 utterances, fewer than the 500"):
        commonest_units(alignments, 500)


# --- Instances -------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path):
    """Ten utterances of two seconds, without audio; u9 has no alignment."""
    rows = [{"audio_filepath": f"u{n}.wav", "duration": 2.0, "text": ""} for n in range(10)]
    (tmp_path / "dev.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "dev.json"


@pytest.fixture
def alignments(tmp_path):
    utterances = {f"u{n}": spoken("the sea the ship of the sea <unk>") for n in range(9)}
    utterances["elsewhere"] = spoken("the only whale")
    return read_alignments([write_alignments(tmp_path / "words.jsonl", utterances)], "word")


def test_instances_are_drawn_from_aligned_utterances(manifest, alignments, caplog):
    sample = sample_instances([manifest], alignments, ["the", "sea", "whale", "of"], instances=15)
    assert sample.names == ["the", "sea", "of"] and sample.missing_units == ["whale"]
    assert Counter(sample.unit.tolist()) == {0: 15, 1: 15, 2: 9}  # of 27, 18 and 9
    spans = list(zip(sample.utterance, sample.start.tolist(), sample.unit.tolist()))
    assert len(set(spans)) == len(spans)
    starts = {0: {0.0, 0.4, 1.0}, 1: {0.2, 1.2}, 2: {0.8}}
    assert all(start in starts[unit] for _, start, unit in spans)
    assert sample.unaligned == 1 and "u9" in caplog.text
    summary = sample.summary()
    assert summary["instances_per_unit"] == {"the": 15, "sea": 15, "of": 9} and summary["utterances"] == 9


def test_the_seed_decides_the_instances(manifest, alignments):
    def draw(seed):
        return sample_instances([manifest], alignments, ["the", "sea"], instances=5, seed=seed)

    assert draw(0).id == draw(0).id != draw(1).id
    drawn = Counter(place for seed in range(60) for place in zip(draw(seed).utterance, draw(seed).start.tolist()))
    assert len(drawn) == 27 + 18  # none is left out for good


def test_other_audio_under_the_same_name_is_another_sample(manifest, alignments, tmp_path):
    """Its hidden states would be those of the audio before, from the files of an earlier call."""
    path = tmp_path / "u3.wav"
    ids = [sample_instances([manifest], alignments, ["the"], instances=15).id]
    for content, changed in ((b"a", 1), (b"b", 2), (b"bb", 2)):  # there now; of the same size; of the same time
        path.write_bytes(content)
        os.utime(path, ns=(changed, changed))
        ids.append(sample_instances([manifest], alignments, ["the"], instances=15).id)
    assert len(set(ids)) == 4 and sample_instances([manifest], alignments, ["the"], instances=15).id == ids[-1]


@pytest.mark.unit
def test_other_times_or_units_are_another_sample(manifest, alignments):
    """With repaired alignments, the states of the old times would be taken from the files of an earlier call."""
    sample = sample_instances([manifest], alignments, ["the"], instances=15)
    others = [{"start": sample.start - 0.01}, {"end": sample.end + 0.01}, {"names": ["of"]}, {"kind": "phone"}]
    others += [{"utterance": sample.utterance[::-1]}, {"unit": sample.unit + 1}]
    assert len({sample.id, *(replace(sample, **change).id for change in others)}) == 1 + len(others)


def test_unusable_manifests(manifest, alignments, tmp_path):
    with pytest.raises(ValueError, match="none of the 1 words wanted"):
        sample_instances([manifest], alignments, ["whale"], 15)
    with pytest.raises(ValueError, match="dev.json:1: utterance u0 is at .*dev.json:1 already"):
        sample_instances([manifest, manifest], alignments, ["the"], 15)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"audio_filepath": "x-1.wav"}) + "\n")
    with pytest.raises(ValueError, match="none of 1 utterances is aligned.*'x-1', of the alignments.*'u0'"):
        sample_instances([other], alignments, ["the"], 15)


@pytest.mark.parametrize("start, end", [(1.9, 2.03), (2.0, 2.01), (0.5, 0.4), (-0.1, 0.2)])
def test_alignments_beyond_the_audio_are_errors(manifest, tmp_path, start, end):
    broken = {"u3": [*spoken("the sea"), ("whale", start, end)], "u4": [*spoken("the sea"), ("whale", 1.9, 2.015)]}
    alignments = read_alignments([write_alignments(tmp_path / "broken.jsonl", broken)], "word")
    with pytest.raises(ValueError, match=r"dev.json:4: u3: word 'whale' is aligned to .* s of 2 s of audio"):
        sample_instances([manifest], alignments, ["the", "whale"], 15)
    sample_instances([manifest], alignments, ["the", "sea"], 15)  # it matters where it is needed only


@pytest.mark.unit
def test_words_of_no_length_and_audio_of_unknown_length_are_taken(manifest, tmp_path):
    """Aligners round short words to nothing, and manifests may lack durations; the audio tells, when it is read."""
    short = {"u3": [("sea", 0.5, 0.5)]}
    aligned = read_alignments([write_alignments(tmp_path / "shortest.jsonl", short)], "word")
    assert len(sample_instances([manifest], aligned, ["sea"], 15).unit) == 1
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({**row, "duration": None}) + "\n" for row in rows))
    words = {"u3": [("sea", 0.5, 0.5), ("the", 3.0, 3.2)]}
    aligned = read_alignments([write_alignments(tmp_path / "short.jsonl", words)], "word")
    assert len(sample_instances([manifest], aligned, ["the", "sea"], 15).unit) == 2


# --- Hidden states ---------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(counting_corpus, tmp_path):
    """A manifest of three utterances of noise, the times of six words, and the lengths in samples."""
    lengths = [8000, 16000, 12345]
    path = counting_corpus(lengths)
    for number, num_samples in enumerate(lengths):
        noise = 0.1 * np.random.default_rng(number).normal(size=num_samples)
        soundfile.write(tmp_path / "audio" / f"u{number}.wav", noise, 16000, subtype="PCM_16")
    utterances = {
        "u0": [("a", 0.03, 0.21), ("b", 0.21, 0.5)],
        "u1": [("b", 0.1, 0.4), ("a", 0.98, 1.0)],
        "u2": [("a", 0.0, 0.3), ("b", 0.5, 0.78)],
    }
    return path, utterances, lengths


@pytest.mark.parametrize("kind", ["word", "phone"])
def test_pooled_states_are_means_over_spans(corpus, tiny_encoder, tmp_path, kind):
    """Batches of padded audio against every utterance alone, in plain words."""
    path, utterances, lengths = corpus
    aligned = read_alignments([write_alignments(tmp_path / "a.jsonl", utterances, kind)], kind)
    sample = sample_instances([path], aligned, ["a", "b"], 15)
    encoder = tiny_encoder()
    pooled = pool_instances(sample, AllHiddenStates(encoder))
    assert pooled.shape == (5, 6, 24) and pooled.dtype == np.float32
    row = 0
    for number, num_samples in enumerate(lengths):
        audio = torch.from_numpy(soundfile.read(tmp_path / "audio" / f"u{number}.wav", dtype="float32")[0])
        with torch.no_grad():
            states, _ = encoder.hidden_states(audio[None, None], torch.tensor([num_samples]))
        for name, start, end in utterances[f"u{number}"]:
            first, last = frame_span(start, end, frame_count(num_samples), kind == "phone")
            assert sample.names[sample.unit[row]] == name
            for layer, state in enumerate(states):
                np.testing.assert_allclose(pooled[layer, row], state[0, first:last].mean(dim=0), atol=2e-5)
            row += 1


def test_a_models_own_preprocessor_scales_its_audio(corpus, tiny_encoder, tmp_path):
    path, utterances, _ = corpus
    aligned = read_alignments([write_alignments(tmp_path / "a.jsonl", utterances)], "word")
    sample = sample_instances([path], aligned, ["a", "b"], 15)
    encoder = tiny_encoder(conv_norm="layer_norm")
    plain = pool_instances(sample, AllHiddenStates(encoder))
    same = AllHiddenStates(encoder, WaveformPreprocessor())
    scaled = AllHiddenStates(encoder, WaveformPreprocessor(normalize="per_feature"))
    assert (same.normalized, scaled.normalized) == (False, True)
    np.testing.assert_array_equal(pool_instances(sample, same), plain)
    assert np.abs(pool_instances(sample, scaled) - plain).max() > 1e-3


def test_audio_shorter_than_its_manifest_says(counting_corpus, tiny_encoder, tmp_path):
    """By less than what reading it lets pass."""
    path = counting_corpus([8000], changes={0: {"duration": 0.75}})
    aligned = read_alignments([write_alignments(tmp_path / "a.jsonl", {"u0": [("a", 0.4, 0.7)]})], "word")
    sample = sample_instances([path], aligned, ["a"], 15)
    with pytest.raises(ValueError, match=r"json:1: u0: word 'a' is aligned to 0.4-0.7 s of 0.5 s of audio"):
        pool_instances(sample, AllHiddenStates(tiny_encoder()))


def test_broken_encoders_are_named(corpus, tiny_encoder, tmp_path):
    path, utterances, _ = corpus
    aligned = read_alignments([write_alignments(tmp_path / "a.jsonl", utterances)], "word")
    sample = sample_instances([path], aligned, ["a", "b"], 15)
    encoder = tiny_encoder()
    with torch.no_grad():
        next(encoder.layers.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="hidden states of encoder .* are not finite"):
        pool_instances(sample, AllHiddenStates(encoder))


def test_frame_rates_other_than_50_hz_are_errors(tiny_encoder):
    layers = [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 3, 2], [16, 2, 2]]
    with pytest.raises(ValueError, match=r"a frame of 160 samples \(100 Hz\), expected 320 \(50 Hz\)"):
        AllHiddenStates(tiny_encoder(conv_layers=layers))
