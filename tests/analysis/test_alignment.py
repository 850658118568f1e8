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

"""CTC forced alignment: the best of all paths, edges of words by hand, known times, manifests, and what is left
out."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.analysis import alignment
from nemo_mshubert.analysis.alignment import (
    MAX_GAP_FRAMES,
    CannotAlign,
    align_manifest,
    align_words,
    compare_times,
    share_gaps,
)
from nemo_mshubert.data.alignments import Alignments, read_alignments
from nemo_mshubert.data.manifest import read_manifest, utterance_id, write_manifest
from nemo_mshubert.decoding.evaluation import load_ctc_model
from tests.conftest import TINY_ENCODER, load_script

BLANK = len(ENGLISH_LABELS)


@pytest.fixture(scope="module")
def model(letters_path):
    return load_ctc_model(str(letters_path), "cpu")


def collapse(path):
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def log_probs_of(path, rng, confidence=8.0):
    """Log-probabilities ``[T, V + 1]`` whose best label of frame t is ``path[t]``."""
    logits = rng.normal(size=(len(path), BLANK + 1))
    logits[range(len(path)), path] += confidence
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def test_the_path_is_the_best_of_all_that_spell_the_text(model):
    """ "aa b" needs a blank between the letters; all label sequences of seven frames are tried."""
    rng = np.random.default_rng(0)
    labels = [ENGLISH_LABELS.index("a"), ENGLISH_LABELS.index("b"), ENGLISH_LABELS.index(" "), BLANK]
    wanted = [ENGLISH_LABELS.index(letter) for letter in "aa b"]
    for _ in range(5):
        log_probs = log_probs_of(rng.choice(labels, 7), rng, confidence=1.0)
        paths = (path for path in itertools.product(labels, repeat=7) if collapse(path) == wanted)
        best = max(sum(log_probs[frame, label] for frame, label in enumerate(path)) for path in paths)
        _, score = align_words(model, log_probs, "aa b")
        assert score == pytest.approx(best / 7, abs=1e-5)


def test_known_times_come_back(model):
    """Words whose letters fill known frames, silence of a second between two of them."""
    rng = np.random.default_rng(0)
    index = ENGLISH_LABELS.index
    spell = lambda word: [frame for letter in word for frame in (index(letter), index(letter), BLANK)]  # noqa: E731
    path = [BLANK] * 40 + spell("sea") + [index(" ")] + [BLANK] * 3 + spell("ship") + [BLANK] * 50
    path += [index(" ")] + spell("too") + [BLANK] * 30
    words, score = align_words(model, log_probs_of(path, rng), "sea ship too")
    assert [word.word for word in words] == ["sea", "ship", "too"] and score > -0.5
    sea, ship, too = ((round(word.start * 50), round(word.end * 50)) for word in words)
    # "sea" is frames 40 to 47, "ship" 53 to 63, "too" 116 to 123; the gap of 5 is halved, the others are silence
    assert sea == (40 - 5, 48 + 2) and ship == (50, 64 + 5) and too == (116 - 5, 124 + 5)


@pytest.mark.parametrize("added, frame_seconds", [([], 0.02), ([[16, 2, 2]], 0.04)])
def test_times_are_those_of_the_frames_of_the_model(tiny_ctc, added, frame_seconds):
    """Of a model of 25 Hz all times were half of the true ones."""
    model = tiny_ctc(conv_layers=[*TINY_ENCODER["conv_layers"], *added])
    path = [BLANK] * 20 + [ENGLISH_LABELS.index("a")] * 20
    (word,), _ = align_words(model, log_probs_of(path, np.random.default_rng(0)), "a")
    assert word.end == pytest.approx(40 * frame_seconds)


@pytest.mark.unit
def test_times_have_no_noise_of_floating_point(model):
    """35 frames of 0.02 s are 0.7000000000000001 s: behind the end of audio of 0.7 s."""
    path = [BLANK] * 20 + [ENGLISH_LABELS.index("a")] * 15
    (word,), _ = align_words(model, log_probs_of(path, np.random.default_rng(0)), "a")
    assert word.end == 0.7


@pytest.mark.unit
def test_letters_without_a_space_between_words():
    """Models of languages that are written without it: a ValueError of the list of letters."""
    model = SimpleNamespace(decoder=SimpleNamespace(vocabulary=["a", "b", "c"]))
    assert alignment._tokens(model, ["ab", "c"]) == ([0, 1, 2], [0, 0, 1])


def test_gaps_are_shared_up_to_a_limit():
    limit, half = MAX_GAP_FRAMES, MAX_GAP_FRAMES // 2
    assert share_gaps([(10, 12), (16, 18)], 30) == [(10 - half, 14), (14, 18 + half)]
    assert share_gaps([(10, 12), (12 + limit, 40)], 60) == [(5, 12 + half), (12 + half, 45)]
    assert share_gaps([(10, 12), (13 + limit, 40)], 60) == [(5, 12 + half), (13 + limit - half, 45)]
    assert share_gaps([(2, 4)], 6) == [(0, 6)]


def test_what_cannot_be_aligned(model):
    log_probs = log_probs_of([BLANK] * 5, np.random.default_rng(0))
    with pytest.raises(CannotAlign, match="5 frames for 6 tokens: the audio is too short"):
        align_words(model, log_probs, "abcdef")
    with pytest.raises(CannotAlign, match="5 frames for 5 tokens"):
        align_words(model, log_probs, "aabcd")
    assert align_words(model, log_probs, "aacd")[0] == [("aacd", 0.0, 0.1)]  # a frame for each, and the blank
    with pytest.raises(CannotAlign, match="the model has no letter '9', as in 'b9'"):
        align_words(model, log_probs, "a b9")
    with pytest.raises(CannotAlign, match='Write the "text" of all lines in NFKC'):
        align_words(model, log_probs, "a \uff42")  # a letter of double width
    with pytest.raises(CannotAlign, match="300000 frames with 5000 tokens need too much memory: cut the recording"):
        align_words(model, np.broadcast_to(np.float32(0), (300_000, len(ENGLISH_LABELS) + 1)), "a" * 5000)
    with pytest.raises(CannotAlign, match="no words"):
        align_words(model, log_probs, " ")


def test_what_a_bpe_model_cannot_align(bpe_path):
    """Words of other letters were aligned as <unk>, which the model never emits, with times that mean nothing; a lone
    zero-width space, of which SentencePiece makes nothing, ended the whole call."""
    bpe = load_ctc_model(str(bpe_path), "cpu")
    log_probs = log_probs_of([BLANK] * 60, np.random.default_rng(0))
    with pytest.raises(CannotAlign, match="the tokenizer lacks a letter of 'b9'"):
        align_words(bpe, log_probs, "the b9")
    with pytest.raises(CannotAlign, match=r"the tokenizer makes no token of the word '\\u200b'"):
        align_words(bpe, log_probs, "the \u200b sea")


def test_case_does_not_matter_to_pieces_of_one_case(bpe_path):
    """LibriSpeech's transcripts are upper case: every utterance would be left out."""
    bpe = load_ctc_model(str(bpe_path), "cpu")
    log_probs = log_probs_of([BLANK] * 60, np.random.default_rng(0))
    (the, sea), score = align_words(bpe, log_probs, "the sea")
    upper, upper_score = align_words(bpe, log_probs, "THE Sea")
    assert upper == [the._replace(word="THE"), sea._replace(word="Sea")] and upper_score == score


@pytest.mark.parametrize(
    "pieces, text",
    [(["<unk>", "▁THE", "S"], "THE"), (["[UNK]", "the", "##s"], "the"), (["<unk>", "▁The", "s"], "tHe")],
)
def test_the_case_of_pieces_is_not_that_of_unk(pieces, text):
    """<unk> is lower case in every model: one of capitals would pass for one of both cases, and align nothing."""
    asked = []
    tokenizer = SimpleNamespace(text_to_ids=lambda word: asked.append(word) or [1], unk_id=0)
    assert alignment._piece_tokens(SimpleNamespace(tokenizer=tokenizer), "tHe", pieces) == [1]
    assert asked == [text]


# --- Manifests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["letters_path", "bpe_path"])
def test_a_manifest_becomes_alignments(fixture, request, synthetic_corpus, tmp_path):
    """What analyze_cca.py reads: each word of each utterance, in order, within the audio."""
    model = load_ctc_model(str(request.getfixturevalue(fixture)), "cpu")
    entries = read_manifest(synthetic_corpus.dev)
    spelled = [entry for entry in entries if fixture == "letters_path" or "'" not in entry["text"]]  # no piece has it
    report = align_manifest(model, synthetic_corpus.dev, tmp_path / "words.jsonl")
    assert report == {"aligned": len(spelled), "left_out": len(entries) - len(spelled)}
    alignments = read_alignments([tmp_path / "words.jsonl"], "word")
    assert len(alignments.intervals) == len(spelled) > 1
    for entry in spelled:
        start, end, unit = alignments.intervals[Path(entry["audio_filepath"]).stem]
        assert [alignments.names[number] for number in unit] == entry["text"].split()
        assert (start < end).all() and (end[:-1] <= start[1:] + 1e-9).all() and end[-1] <= entry["duration"]
    assert not list(tmp_path.glob(".*"))


def test_alignments_are_compressed_where_their_name_says_so(model, synthetic_corpus, tmp_path):
    """Nothing could read the plain text under that name, and a second call would have written it again."""
    for _ in range(2):
        align_manifest(model, synthetic_corpus.dev, tmp_path / "words.jsonl.gz")
    align_manifest(model, synthetic_corpus.dev, tmp_path / "words.jsonl")
    compressed, plain = (read_alignments([tmp_path / name], "word") for name in ("words.jsonl.gz", "words.jsonl"))
    assert compressed.names == plain.names and compressed.intervals.keys() == plain.intervals.keys()


def test_an_interrupted_call_goes_on(model, synthetic_corpus, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    align_manifest(model, synthetic_corpus.train, whole)
    monkeypatch.setattr(alignment, "UTTERANCES_PER_WINDOW", 2)
    compute, calls = alignment.manifest_log_probs, []

    def stop(model, entries, *args, **kwargs):
        calls.append(len(entries))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(model, entries, *args, **kwargs)

    monkeypatch.setattr(alignment, "manifest_log_probs", stop)
    with pytest.raises(KeyboardInterrupt):
        align_manifest(model, synthetic_corpus.train, parts)
    assert not parts.exists()
    (partial,) = tmp_path.glob(".parts.jsonl.*.partial")
    with open(partial, "a") as stream:
        stream.write('{"utt_id": "cut off in the mid')
    align_manifest(model, synthetic_corpus.train, parts)
    assert parts.read_text() == whole.read_text()
    assert sum(calls[2:]) == len(read_manifest(synthetic_corpus.train)) - 2


def test_a_call_with_another_model_starts_anew(model, letters_path, synthetic_corpus, tmp_path, monkeypatch):
    """Times of the model that was a mistake would stay among those of the right one."""
    write_manifest(tmp_path / "one.json", read_manifest(synthetic_corpus.dev)[:1])
    words = tmp_path / "w[1].jsonl"  # with what glob takes for a pattern

    def fail(*args):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(alignment, "write_maybe_gzip", fail)
        with pytest.raises(OSError, match="disk is full"):
            align_manifest(model, tmp_path / "one.json", words)
    computed = []
    compute = alignment.manifest_log_probs
    monkeypatch.setattr(
        alignment, "manifest_log_probs", lambda *args, **kwargs: computed.append(1) or compute(*args, **kwargs)
    )
    other = load_ctc_model(str(letters_path), "cpu")
    with torch.no_grad():
        other.decoder.decoder_layers[0].bias += torch.linspace(0, 1, BLANK + 1)
    align_manifest(other, tmp_path / "one.json", words)
    assert computed == [1] and not list(tmp_path.glob(".w*"))


@pytest.mark.unit
def test_a_call_with_repaired_transcripts_starts_anew(model, synthetic_corpus, tmp_path, monkeypatch):
    """Words of the wrong transcripts would stay among those of the right ones."""
    entries = read_manifest(synthetic_corpus.dev)[:2]
    manifest, words = tmp_path / "two.json", tmp_path / "words.jsonl"
    write_manifest(manifest, [{**entry, "text": "a"} for entry in entries])
    monkeypatch.setattr(alignment, "UTTERANCES_PER_WINDOW", 1)
    compute, calls = alignment.manifest_log_probs, []

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "manifest_log_probs", stop)
    with pytest.raises(KeyboardInterrupt):
        align_manifest(model, manifest, words)
    write_manifest(manifest, [{**entry, "text": "b"} for entry in entries])
    align_manifest(model, manifest, words)
    spoken = [[word["word"] for word in json.loads(line)["words"]] for line in words.read_text().splitlines()]
    assert spoken == [["b"], ["b"]]


def test_utterances_without_alignment_are_left_out_and_counted(model, synthetic_corpus, tmp_path, caplog):
    entries = read_manifest(synthetic_corpus.dev)
    write_manifest(tmp_path / "some.json", [{**entries[0], "text": "number 9"}, entries[1]])
    assert align_manifest(model, tmp_path / "some.json", tmp_path / "w.jsonl") == {"aligned": 1, "left_out": 1}
    assert "is left out: the model has no letter '9'" in caplog.text
    write_manifest(tmp_path / "none.json", [{**entries[0], "text": "9"}])
    with pytest.raises(ValueError, match="none of 1 utterances can be aligned"):
        align_manifest(model, tmp_path / "none.json", tmp_path / "n.jsonl")
    for key in ("text", "duration"):
        write_manifest(tmp_path / "bad.json", [{**entries[0], key: None}])
        with pytest.raises(ValueError, match='bad.json:1: .* lacks "text" or "duration"'):
            align_manifest(model, tmp_path / "bad.json", tmp_path / "b.jsonl")
    write_manifest(tmp_path / "twice.json", [entries[0], entries[0]])
    with pytest.raises(ValueError, match="twice.json:2: utterance .* is at .*twice.json:1 already"):
        align_manifest(model, tmp_path / "twice.json", tmp_path / "t.jsonl")


def test_a_manifest_that_cannot_be_aligned_is_told_why_each_time(model, synthetic_corpus, tmp_path, caplog):
    """Called again, it sent to a log that had nothing: the reasons were logged by the call before. An empty manifest
    sent there, too."""
    entry = read_manifest(synthetic_corpus.dev)[0]
    write_manifest(tmp_path / "none.json", [{**entry, "text": "room 9"}])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"none.json: .*{utterance_id(entry)}: the model has no letter '9'"):
            align_manifest(model, tmp_path / "none.json", tmp_path / "w.jsonl")
    assert caplog.text.count("is left out") == 1
    (tmp_path / "empty.json").write_text("\n")
    with pytest.raises(ValueError, match="empty.json: the manifest is empty"):
        align_manifest(model, tmp_path / "empty.json", tmp_path / "w.jsonl")


@pytest.mark.parametrize("name", ["letters_path", "bpe_path"])
def test_a_model_that_diverged_aligns_nothing(name, request, synthetic_corpus, tmp_path):
    """It ended in an IndexError that names neither the utterance nor what is wrong with the model."""
    diverged = load_ctc_model(str(request.getfixturevalue(name)), "cpu")
    with torch.no_grad():
        diverged.decoder.decoder_layers[0].bias[0] = float("nan")
    write_manifest(tmp_path / "one.json", read_manifest(synthetic_corpus.dev)[:1])
    utt_id = utterance_id(read_manifest(synthetic_corpus.dev)[0])
    with pytest.raises(ValueError, match=f"{utt_id}: log-probabilities are NaN or infinite at frame 0"):
        align_manifest(diverged, tmp_path / "one.json", tmp_path / "w.jsonl")
    assert not (tmp_path / "w.jsonl").exists()


# --- Comparison with known times -------------------------------------------------------------------------------------


def times(**utterances):
    names = ["a", "b", "c", "", "sp", "<eps>"]
    rows = {
        utt_id: (
            np.array([r[1] for r in rows]),
            np.array([r[2] for r in rows]),
            np.array([names.index(r[0]) for r in rows]),
        )
        for utt_id, rows in utterances.items()
    }
    return Alignments("word", names, rows)


def test_offsets_by_hand():
    found = times(u=[("a", 0.10, 0.30), ("b", 0.43, 0.70)], v=[("c", 0.0, 1.0)], w=[("a", 0.0, 1.0)])
    known = times(u=[("a", 0.09, 0.30), ("b", 0.40, 0.85)], v=[("b", 0.0, 1.0)], x=[("a", 0.0, 1.0)])
    result = compare_times(found, known)
    assert (result["words"], result["utterances"], result["other_words"]) == (2, 1, 1)
    assert result["starts"]["mean_ms"] == pytest.approx(20) and result["ends"]["mean_ms"] == pytest.approx(-75)
    assert (result["starts"]["within_20_ms"], result["starts"]["within_50_ms"]) == (0.5, 1.0)
    assert (result["ends"]["within_20_ms"], result["ends"]["within_100_ms"]) == (0.5, 0.5)
    assert result["ends"]["median_abs_ms"] == pytest.approx(75)
    upper = Alignments("word", [name.upper() for name in known.names], known.intervals)
    assert compare_times(found, upper) == result  # LibriSpeech's transcripts are upper case
    paused = times(u=[("", 0.0, 0.09), ("a", 0.09, 0.30), ("<eps>", 0.30, 0.40), ("b", 0.40, 0.85), ("sp", 0.85, 1.0)])
    found = times(u=[("a", 0.10, 0.30), ("b", 0.43, 0.70)])
    again = compare_times(found, paused)  # TextGrids have intervals for pauses
    assert (again["starts"], again["ends"]) == (result["starts"], result["ends"]) and again["other_words"] == 0
    with pytest.raises(ValueError, match=r"no utterance with the same words in both \(1 with other words\)"):
        compare_times(times(v=[("a", 0.0, 1.0)]), known)


@pytest.mark.parametrize("limit", [20, 50, 100])
def test_a_word_at_the_limit_is_within_it(limit):
    """Times of aligners lie on grids of 10 or 20 ms, so that many words are off by 20 ms to the digit: the rounding of
    floating point left out half of them."""
    starts = [10 * step for step in range(500)]  # ms
    found = times(u=[("a", ms / 1000, (ms + limit) / 1000) for ms in starts])
    known = times(u=[("a", (ms + limit) / 1000, (ms - 1) / 1000) for ms in starts])
    result = compare_times(found, known)
    assert result["starts"][f"within_{limit}_ms"] == 1.0  # all are 20 (50, 100) ms early
    assert result["ends"][f"within_{limit}_ms"] == 0.0  # all are 21 (51, 101) ms late


def test_what_is_no_alignment_is_not_replaced(model, synthetic_corpus, tmp_path, monkeypatch):
    """--output of the manifest itself: its paths and transcripts were gone."""
    monkeypatch.setattr(alignment, "manifest_log_probs", None)  # before any work
    manifest = tmp_path / "some.json"
    write_manifest(manifest, read_manifest(synthetic_corpus.dev)[:1])
    (tmp_path / "notes.txt").write_text("kept\n")
    (tmp_path / "list.json").write_text("[1, 2]\n")
    for output, message in (
        (manifest, "no alignment"),
        (tmp_path / "notes.txt", "no alignment"),
        (tmp_path / "list.json", "no alignment"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(ValueError, match=f"{output}: .*{message}"):
            align_manifest(model, manifest, output)
    assert (tmp_path / "notes.txt").read_text() == "kept\n" and read_manifest(manifest)


def test_two_calls_at_once_leave_each_other_s_work(model, synthetic_corpus, tmp_path, monkeypatch):
    """The one that ended first removed what the other had done; two of one manifest wrote into one file."""
    entries = read_manifest(synthetic_corpus.dev)
    write_manifest(tmp_path / "first.json", entries[:1])
    write_manifest(tmp_path / "second.json", entries[1:2])
    compute, inner = alignment.manifest_log_probs, []

    def meanwhile(*args, **kwargs):
        if not inner:
            inner.append(True)
            with pytest.raises(RuntimeError, match="another process is aligning these utterances"):
                align_manifest(model, tmp_path / "first.json", tmp_path / "w.jsonl")
            align_manifest(model, tmp_path / "second.json", tmp_path / "w.jsonl")
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "manifest_log_probs", meanwhile)
    align_manifest(model, tmp_path / "first.json", tmp_path / "w.jsonl")
    (line,) = (tmp_path / "w.jsonl").read_text().splitlines()
    assert json.loads(line)["utt_id"] == utterance_id(entries[0]) and not list(tmp_path.glob(".w.jsonl*"))


def test_script(letters_path, synthetic_corpus, tmp_path, capsys):
    script = load_script("align")
    known = synthetic_corpus.root / "align_words.jsonl.gz"
    script.main(
        f"--model {letters_path} --manifest {synthetic_corpus.test} --output {tmp_path / 'w.jsonl'} "
        f"--reference {known} --device cpu".split()
    )
    report = json.loads(capsys.readouterr().out)
    assert report["aligned"] == len(read_manifest(synthetic_corpus.test)) and report["left_out"] == 0
    assert report["against_reference"]["words"] > 10 and report["against_reference"]["other_words"] == 0
