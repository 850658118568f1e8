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

"""The lexicon beam search against results worked out by hand, and against all paths tried one by one."""

import dataclasses
import itertools
import math
import pickle
import re

import kenlm
import numpy as np
import pytest
import torch

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.decoding.lexicon_beam import FRAME_SECONDS, LexiconBeamSearchDecoder
from nemo_mshubert.modules.frames import HOP_SAMPLES

pytestmark = pytest.mark.unit
AB = [" ", "a", "b"]


def best_text(decoder, log_probs):
    return decoder.decode(log_probs, "utt").text


@pytest.fixture
def sea(write_arpa, write_lexicon_of, make_config, emit):
    """Sounds like "the sea": its a beats e by 1 nat in the last frame. The LM prefers "the see" by 0.5 in log10."""
    lm = write_arpa({"the": -1.0, "sea": -1.0, "see": -1.0}, {("the", "sea"): -0.9, ("the", "see"): -0.4})
    config = make_config(lm, write_lexicon_of(["the", "sea", "see"]))
    log_probs = emit("the|se_a", ENGLISH_LABELS)
    log_probs[-1, ENGLISH_LABELS.index("a")] = math.log(0.6)
    log_probs[-1, ENGLISH_LABELS.index("e")] = math.log(0.6) - 1.0
    return config, log_probs


@pytest.mark.parametrize("lm_weight, text", [(0.0, "the sea"), (1.99, "the sea"), (2.01, "the see"), (8.0, "the see")])
def test_lm_flips_the_answer_exactly_where_the_weights_say(sea, lm_weight, text):
    """1 nat of acoustics against 0.5 of log10 LM: the tie is at a weight of 2; elsewhere a unit or a sign is wrong."""
    config, log_probs = sea
    decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, dataclasses.replace(config, lm_weight=lm_weight))
    assert best_text(decoder, log_probs) == text


@pytest.mark.parametrize("word_score, text", [(0.49, "today"), (0.51, "to day")])
def test_word_score_flips_one_word_into_two(write_arpa, write_lexicon_of, make_config, emit, word_score, text):
    """ "to day" costs 0.5 nat more in one frame, and has one word more."""
    config = make_config(
        write_arpa({"to": -1.0, "day": -1.0, "today": -1.0}), write_lexicon_of(["to", "day", "today"])
    )
    log_probs = emit("to_day", ENGLISH_LABELS)
    log_probs[2, ENGLISH_LABELS.index(" ")] = log_probs[2, len(ENGLISH_LABELS)] - 0.5
    decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, dataclasses.replace(config, word_score=word_score))
    assert best_text(decoder, log_probs) == text


@pytest.mark.parametrize("sil_score, text", [(-0.49, "to day"), (-0.51, "today")])
def test_sil_score_counts_each_delimiter_frame_but_not_the_closing_one(
    write_arpa, write_lexicon_of, make_config, emit, sil_score, text
):
    """ "to day" is 0.5 nat better in one frame, which is a delimiter."""
    config = make_config(
        write_arpa({"to": -1.0, "day": -1.0, "today": -1.0}), write_lexicon_of(["to", "day", "today"])
    )
    log_probs = emit("to|day", ENGLISH_LABELS)
    log_probs[2, len(ENGLISH_LABELS)] = log_probs[2, ENGLISH_LABELS.index(" ")] - 0.5
    decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, dataclasses.replace(config, sil_score=sil_score))
    assert best_text(decoder, log_probs) == text


def exhaustive(log_probs_TV, labels, words, config):
    """Word sequences and their scores, best first, by trying every path of tokens: slow, and nothing in common with a
    beam search."""
    lm, blank, scores = kenlm.Model(config.lm), len(labels), {}
    for path in itertools.product(range(blank + 1), repeat=len(log_probs_TV)):
        merged = [token for token, _ in itertools.groupby(path)]
        found = "".join(labels[token] for token in merged if token != blank).split()
        if not set(found) <= set(words):
            continue
        score = sum(float(log_probs_TV[frame, token]) for frame, token in enumerate(path))
        score += config.sil_score * sum(labels[token] == " " for token in path if token != blank)
        score += config.word_score * len(found) + config.lm_weight * lm.score(" ".join(found), bos=True, eos=True)
        scores[tuple(found)] = max(scores.get(tuple(found), -math.inf), score)
    return sorted(scores.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("seed", range(24))
def test_equals_an_exhaustive_search(write_arpa, write_lexicon_of, make_config, seed):
    """Best and n-best words and scores, with random weights: a lost last word or a merged wrong path shows here."""
    rng = np.random.default_rng(seed)
    words = ["a", "b", "ab", "ba", "aab"]
    lm = write_arpa(
        {word: float(rng.uniform(-3, 0)) for word in words},
        {pair: float(rng.uniform(-3, 0)) for pair in itertools.product(words, repeat=2)},
    )
    weights = dict(lm_weight=rng.uniform(0, 3), word_score=rng.uniform(-2, 2), sil_score=rng.uniform(-2, 0))
    config = make_config(lm, write_lexicon_of(words), **{name: float(value) for name, value in weights.items()})
    log_probs = np.log(rng.dirichlet(np.ones(4), size=6)).astype(np.float32)

    decoder = LexiconBeamSearchDecoder(AB, config)
    found = decoder.decode(log_probs, "utt")
    expected = exhaustive(log_probs, AB, words, config)[:5]
    text, score = expected[0]
    assert tuple(timed.word for timed in found.words) == text
    assert found.score == pytest.approx(score, abs=1e-4)
    best, *others = decoder.decode_n_best(log_probs, "utt", 5)
    assert best == found
    assert [tuple(timed.word for timed in other.words) for other in others] == [text for text, _ in expected[1:]]
    assert [other.score for other in others] == pytest.approx([score for _, score in expected[1:]], abs=1e-4)


@pytest.fixture
def ab_decoder(write_arpa, write_lexicon_of, make_config):
    words = ["a", "b", "ab", "ba"]
    config = make_config(write_arpa({word: -1.0 for word in words}), write_lexicon_of(words), lm_weight=1.0)
    return LexiconBeamSearchDecoder(AB, config)


def test_word_times_are_those_of_their_letters(ab_decoder, emit):
    """Frames 2-5 hold a-bb, 9 holds a, at 20 ms: blanks and delimiters around a word are not part of it."""
    assert FRAME_SECONDS == HOP_SAMPLES / SAMPLE_RATE
    best = ab_decoder.decode(emit("|_a_bb_||a__", AB, probability=0.99), "utt")
    assert best.text == "ab a"
    assert [(word, round(start, 6), round(end, 6)) for word, start, end in best.words] == [
        ("ab", 0.04, 0.12),
        ("a", 0.18, 0.20),
    ]
    of_10_ms = LexiconBeamSearchDecoder(AB, ab_decoder.config, frame_seconds=0.01)
    halved = of_10_ms.decode(emit("|_a_bb_||a__", AB, probability=0.99), "utt")
    assert [round(word.end, 6) for word in halved.words] == [0.06, 0.10]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda x: torch.from_numpy(x).double()])
def test_every_kind_of_array_is_taken(ab_decoder, emit, kind):
    utterances = [(tokens, kind(emit(tokens, AB))) for tokens in ("a|ba", "b_", "")]
    assert [best.text for best in ab_decoder.decode_all(utterances)] == ["a ba", "b", ""]


def test_bfloat16_output_is_taken(ab_decoder, emit):
    """numpy knows no bfloat16, which is what a model evaluated in bf16 gives."""
    assert best_text(ab_decoder, torch.from_numpy(emit("a|ba", AB)).bfloat16()) == "a ba"


def test_the_last_word_needs_no_delimiter(ab_decoder, emit):
    """NeMo's transcripts have no final space; flashlight alone would drop the word."""
    log_probs = emit("ab", AB)
    log_probs[:, 0] = -np.inf
    assert best_text(ab_decoder, log_probs) == "ab"


@pytest.mark.parametrize("beam_size", [1, 2, 3, 4])
def test_the_last_word_ends_in_narrow_beams_too(write_arpa, write_lexicon_of, make_config, emit, beam_size):
    """A word that costs something when it ends gave way to itself unfinished, and to a longer one of which it is the
    beginning: nearly every utterance lost its last word in a beam of one, and some in beams of two and three."""
    words = ["the", "cat", "cats", "cart"]
    lm = write_arpa({"the": -1.0, "cat": -1.5, "cats": -1.2, "cart": -1.2})
    config = make_config(lm, write_lexicon_of(words), lm_weight=2.0, word_score=-1.0, beam_size=beam_size)
    decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, config)
    log_probs = emit("the|cat", ENGLISH_LABELS)
    for letter in ("r", " "):
        log_probs[-1, ENGLISH_LABELS.index(letter)] = log_probs[-1, ENGLISH_LABELS.index("t")] - 1.0
    assert best_text(decoder, log_probs) == "the cat"
    assert best_text(decoder, emit("the|cat|", ENGLISH_LABELS)) == "the cat"


def test_upper_case_lm_gives_text_in_the_model_case(tmp_path, write_arpa, make_config, emit):
    """The official LibriSpeech LM is upper case; a transcript in upper case would count every word as an error."""
    (tmp_path / "upper").write_text("AB\ta b |\nA\ta |\n")
    config = make_config(write_arpa({"AB": -1.0, "A": -1.0}), str(tmp_path / "upper"), lm_weight=1.0)
    assert best_text(LexiconBeamSearchDecoder(AB, config), emit("ab|a", AB)) == "ab a"


def test_n_best_are_as_many_different_transcriptions_as_wanted(ab_decoder, emit):
    """Lists to choose from by another model: a transcription twice is one choice less."""
    log_probs = emit("ab", AB, probability=0.5)
    found = ab_decoder.decode_n_best(log_probs, "utt", 4)
    assert len({best.text for best in found}) == len(found) == 4
    assert [best.score for best in found] == sorted((best.score for best in found), reverse=True)
    everything = ab_decoder.decode_n_best(log_probs, "utt", 10_000)  # more than there are
    assert everything[:4] == found and len({best.text for best in everything}) == len(everything) < 100


def test_an_unfinished_word_is_none(write_arpa, write_lexicon_of, make_config, emit):
    """Where every hypothesis ends inside a word."""
    words = ["aab", "aba", "bab"]
    config = make_config(write_arpa({word: -1.0 for word in words}), write_lexicon_of(words))
    log_probs = emit("a_", AB)
    log_probs[0, [0, 3]] = -np.inf  # a letter for certain: no hypothesis is between words
    decoder = LexiconBeamSearchDecoder(AB, config)
    best = decoder.decode(log_probs, "utt")
    assert best.words == () and best.score == pytest.approx(log_probs.max(axis=1).sum(), abs=1e-5)
    # not one for each letter reached
    assert [best.text for best in decoder.decode_n_best(log_probs, "utt", 9)] == [""]


def test_other_weights_share_lm_and_lexicon(sea):
    config, log_probs = sea
    decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, config)
    with_lm = decoder.with_config(dataclasses.replace(config, lm_weight=3.0))
    assert with_lm._trie is decoder._trie and with_lm._lm is decoder._lm  # rebuilt per utterance, tuning takes hours
    assert (best_text(decoder, log_probs), best_text(with_lm, log_probs)) == ("the sea", "the see")
    assert best_text(pickle.loads(pickle.dumps(with_lm)), log_probs) == "the see"
    for other in (dict(lm="other.bin"), dict(lexicon="other.lexicon")):
        with pytest.raises(ValueError, match="this decoder holds"):
            decoder.with_config(dataclasses.replace(config, **other))


@pytest.mark.parametrize("beam_size, text", [(1, "the sea"), (10_000, "the see")])
def test_beams_prune(sea, beam_size, text):
    """With an LM that wants "the see", which the beam of one has dropped when that word ends."""
    config, log_probs = sea
    config = dataclasses.replace(config, lm_weight=2.5, beam_size=beam_size)
    assert best_text(LexiconBeamSearchDecoder(ENGLISH_LABELS, config), log_probs) == text


@pytest.mark.parametrize("threshold, text", [(1.9, "the sea"), (2.1, "the see")])
def test_the_threshold_prunes_what_is_so_much_worse(sea, threshold, text):
    """In nats: a "see" that is 1 nat behind in each of its last two frames, and that the LM wants when it ends."""
    config, log_probs = sea
    config = dataclasses.replace(config, lm_weight=4.5, beam_threshold=threshold)
    log_probs = np.concatenate([log_probs, log_probs[-1:]])
    assert best_text(LexiconBeamSearchDecoder(ENGLISH_LABELS, config), log_probs) == text


@pytest.mark.parametrize("tokens, text", [(1, "the sea"), (2, "the see")])
def test_only_the_best_letters_of_a_frame_are_tried(sea, tokens, text):
    """With an LM that wants "the see", whose last letter is the second best of its frame."""
    config, log_probs = sea
    config = dataclasses.replace(config, lm_weight=8.0, beam_size_token=tokens)
    assert best_text(LexiconBeamSearchDecoder(ENGLISH_LABELS, config), log_probs) == text


def test_a_narrow_beam_keeps_what_the_lm_wants_at_the_end_of_a_word(write_arpa, write_lexicon_of, make_config, emit):
    """Letters count what the best word below them will ("smearing"): else the score of a word comes after the beam."""
    lm = write_arpa({"sea": -0.1, "tea": -3.0, "pea": -3.0})
    config = make_config(lm, write_lexicon_of(["sea", "tea", "pea"]), lm_weight=2.0, beam_size=2)
    log_probs = emit("tea", ENGLISH_LABELS)
    for letter, behind in (("p", 0.5), ("s", 1.0)):
        log_probs[0, ENGLISH_LABELS.index(letter)] = log_probs[0, ENGLISH_LABELS.index("t")] - behind
    assert best_text(LexiconBeamSearchDecoder(ENGLISH_LABELS, config), log_probs) == "sea"


def test_a_letter_counts_its_best_word_not_how_many_begin_with_it(write_arpa, write_lexicon_of, make_config, emit):
    """Summed up, three words beginning with s beat the likelier "tea", which the narrow beam then never hears."""
    words = {"tea": -1.0, "sea": -1.2, "see": -1.2, "set": -1.2}
    config = make_config(write_arpa(words), write_lexicon_of(words), lm_weight=2.0, beam_size=1)
    log_probs = emit("tea|", ENGLISH_LABELS)
    log_probs[0, ENGLISH_LABELS.index("s")] = log_probs[0, ENGLISH_LABELS.index("t")]
    narrow = LexiconBeamSearchDecoder(ENGLISH_LABELS, config)
    assert best_text(narrow, log_probs) == "tea"
    assert best_text(narrow.with_config(dataclasses.replace(config, beam_size=10_000)), log_probs) == "tea"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_the_utterance_and_the_frame(ab_decoder, emit, value):
    """flashlight would return some words for NaN, and nobody would know."""
    sound, broken = emit("ab", AB), emit("ba", AB)
    broken[1, 2] = value
    with pytest.raises(ValueError, match="utt-7: .*frame 1"):
        ab_decoder.decode_all([("utt-3", sound), ("utt-7", broken)])


def test_output_of_another_model_is_refused(ab_decoder, emit):
    with pytest.raises(ValueError, match=re.escape("utt: log-probabilities of shape (2, 29), expected [frames, 4]")):
        ab_decoder.decode(emit("ab", ENGLISH_LABELS), "utt")
    with pytest.raises(ValueError, match=re.escape("utt: log-probabilities of shape (4,), expected [frames, 4]")):
        ab_decoder.decode(emit("a", AB)[0], "utt")


def test_lm_that_knows_no_word_of_the_lexicon_is_refused(write_arpa, write_lexicon_of, make_config):
    """An upper-case LM with a lower-case lexicon gives every word the score of <unk>: an LM without effect."""
    lm = write_arpa({"THE": -1.0, "SEA": -1.0})
    with pytest.raises(ValueError, match="knows none of the 2 words.*'the'.*upper"):
        LexiconBeamSearchDecoder(ENGLISH_LABELS, make_config(lm, write_lexicon_of(["the", "sea"])))


def test_absent_or_broken_lm_is_named(tmp_path, write_lexicon_of, make_config):
    lexicon = write_lexicon_of(["a"])
    with pytest.raises(FileNotFoundError, match="no such language model.*train_ngram.py"):
        LexiconBeamSearchDecoder(AB, make_config(str(tmp_path / "no.bin"), lexicon))
    (tmp_path / "text.bin").write_text("not an LM\n")
    with pytest.raises(ValueError, match="text.bin: KenLM cannot load it"):
        LexiconBeamSearchDecoder(AB, make_config(str(tmp_path / "text.bin"), lexicon))


def test_every_spelling_of_a_word_counts(write_arpa, make_config, emit, tmp_path):
    """A word that a lexicon spells in two ways would be heard in the first alone, and be an error in the other."""
    lexicon = tmp_path / "spellings.lexicon"
    lexicon.write_text("doctor\ta b |\ndoctor\tb b a |\nnurse\tb a |\n")
    decoder = LexiconBeamSearchDecoder(AB, make_config(write_arpa({"doctor": -1.0, "nurse": -1.0}), str(lexicon)))
    for heard in ("ab", "b_ba", "ab|b_ba"):
        assert best_text(decoder, emit(heard, AB)) == " ".join(["doctor"] * (1 + heard.count("|")))


def test_a_pickled_decoder_keeps_its_frame_rate(sea):
    """Workers rebuild it; timestamps of a model of 40 ms frames would be half of the true ones."""
    config, log_probs = sea
    decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, config, frame_seconds=0.04)
    expected = decoder.decode(log_probs, "utt")
    assert pickle.loads(pickle.dumps(decoder)).decode(log_probs, "utt") == expected
    assert expected.words[-1].end == pytest.approx(0.04 * len(log_probs))
