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

"""The lexicon decoder inside a stock NeMo model: ``transcribe()`` must use it, in every form it is called."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict

nemo_models = pytest.importorskip("nemo.collections.asr.models")

from nemo_mshubert.alphabet import ENGLISH_LABELS  # noqa: E402
from nemo_mshubert.decoding import acoustic  # noqa: E402
from nemo_mshubert.decoding.ctc_decoding import LexiconCTCDecoding, use_lexicon_decoder  # noqa: E402
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder  # noqa: E402
from nemo_mshubert.decoding.parallel import ParallelDecoder  # noqa: E402

pytestmark = pytest.mark.integration
FRAME_SECONDS = 0.01  # of this mel front end without subsampling
WORDS = ["the", "sea", "see", "a", "to"]


def new_model():
    """A stock letter model with random weights, and audio that makes it say something."""
    torch.manual_seed(0)
    jasper = {"filters": 16, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1], "dropout": 0.0}
    config = {
        "sample_rate": 16000,
        "labels": ENGLISH_LABELS,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "features": 16,
            "window_stride": FRAME_SECONDS,
            "dither": 0.0,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "activation": "relu",
            "feat_in": 16,
            "jasper": [{**jasper, "residual": False}],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": 16,
            "num_classes": len(ENGLISH_LABELS),
            "vocabulary": ENGLISH_LABELS,
        },
    }
    return nemo_models.EncDecCTCModel(OmegaConf.create(config)).eval()


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture
def decoder(write_arpa, write_lexicon_of, make_config):
    lm = write_arpa({word: -1.0 for word in WORDS}, {("the", "sea"): -0.1})
    config = make_config(lm, write_lexicon_of(WORDS), lm_weight=0.5, word_score=6.0, beam_size=50)
    return LexiconBeamSearchDecoder(ENGLISH_LABELS, config, FRAME_SECONDS)


@pytest.fixture
def audio():
    rng = np.random.default_rng(0)  # a second or more: transcribe() pads what is shorter
    return [rng.normal(0, 0.1, samples).astype(np.float32) for samples in (16000, 24000)]


def expected_of(model, decoder, audio):
    model.eval()  # transcribe() leaves the encoder in training mode
    best = []
    for samples in audio:
        with torch.no_grad():
            wave = torch.from_numpy(samples)[None]
            log_probs, lengths, _ = model(input_signal=wave, input_signal_length=torch.tensor([wave.shape[1]]))
        best.append(decoder.decode(log_probs[0, : lengths[0]], "utt"))
    return best


@pytest.mark.unit
@pytest.mark.parametrize("workers", [1, 2])
def test_a_padded_batch_decodes_as_each_utterance_alone(decoder, emit, workers):
    """NeMo's own flashlight wrapper decodes the padding: "cat" becomes "catsatcat"."""
    utterances = [emit("the|sea", ENGLISH_LABELS), emit("a_", ENGLISH_LABELS), emit("", ENGLISH_LABELS)]
    padding = emit("a|" * 8, ENGLISH_LABELS)
    batch = torch.from_numpy(np.stack([np.concatenate([alone, padding])[:8] for alone in utterances]))
    lengths = torch.tensor([len(alone) for alone in utterances])
    with ParallelDecoder(decoder, workers) as pool:
        decoding = LexiconCTCDecoding(pool)
        together = decoding.ctc_decoder_predictions_tensor(batch, lengths)
        assert [best.text for best in together] == ["the sea", "a", ""]
        assert [best.length for best in together] == lengths.tolist()
        expected = decoder.decode_all(enumerate(utterances))
        assert [(best.text, best.score) for best in together] == [(best.text, best.score) for best in expected]
        for wrong in ([7, 2, 9], [7, 2], [-1, 2, 0]):
            with pytest.raises(ValueError, match="frames, but the batch has 3 utterances of 8"):
                decoding.ctc_decoder_predictions_tensor(batch, torch.tensor(wrong))
        batch[1, 1, 2] = np.nan
        with pytest.raises(ValueError, match="utterance 1 of the batch: .*frame 1"):
            decoding.ctc_decoder_predictions_tensor(batch, lengths)


def test_words_that_are_not_their_own_spelling(write_arpa, make_config, tmp_path):
    """A point, which is no letter of the model, ended transcribe()."""
    lexicon = tmp_path / "doctors.lexicon"
    lexicon.write_text("the\tt h e |\ndr.\td o c t o r |\n")
    decoder = LexiconBeamSearchDecoder(
        ENGLISH_LABELS, make_config(write_arpa({"the": -1.0, "dr.": -1.0}), str(lexicon))
    )
    spoken = [ENGLISH_LABELS.index(letter) for letter in "the doctor"]
    log_probs_TV = torch.eye(len(ENGLISH_LABELS) + 1)[spoken].mul(0.9).add(0.001).log()
    (best,) = LexiconCTCDecoding(decoder).ctc_decoder_predictions_tensor(log_probs_TV[None])
    assert best.text == "the dr." and [word["word"] for word in best.timestamp["word"]] == ["the", "dr."]
    assert "".join(ENGLISH_LABELS[index] for index in best.y_sequence) == "the dr"


def test_transcribe_decodes_with_the_lexicon_and_goes_back(model, decoder, audio):
    greedy = [hypothesis.text for hypothesis in model.transcribe(audio, batch_size=1, verbose=False)]
    expected = expected_of(model, decoder, audio)
    assert all(best.text for best in expected) and greedy != [best.text for best in expected]

    use_lexicon_decoder(model, decoder)
    try:
        found = model.transcribe(audio, batch_size=1, verbose=False)
        assert [hypothesis.text for hypothesis in found] == [best.text for best in expected]
        assert set(" ".join(hypothesis.text for hypothesis in found).split()) <= set(WORDS)

        # NeMo rebuilds its own decoding in this call
        timed = model.transcribe(audio, batch_size=1, timestamps=True, verbose=False)
        assert [hypothesis.text for hypothesis in timed] == [best.text for best in expected]
        words = [(word["word"], word["start"], word["end"]) for word in timed[0].timestamp["word"]]
        assert [word for word, _, _ in words] == [word for word, _, _ in expected[0].words]
        assert np.ravel([times for _, *times in words]) == pytest.approx(
            np.ravel([times for _, *times in expected[0].words])
        )
    finally:
        model.change_decoding_strategy(None, verbose=False)
    assert [hypothesis.text for hypothesis in model.transcribe(audio, batch_size=1, verbose=False)] == greedy


@pytest.mark.parametrize("gap", [None, 1])
def test_segments_are_those_of_nemo(decoder, audio, gap):
    """What makes subtitles of timestamp["segment"] ended in a KeyError; NeMo cuts at pauses where it is told to."""
    model = new_model()
    with open_dict(model.cfg.decoding):
        model.cfg.decoding.segment_gap_threshold = gap
    use_lexicon_decoder(model, decoder)
    (found, _) = model.transcribe(audio, batch_size=1, timestamps=True, verbose=False)
    words, segments = found.timestamp["word"], found.timestamp["segment"]
    assert " ".join(segment["segment"] for segment in segments) == found.text and len(words) > 1
    assert (segments[0]["start"], segments[-1]["end"]) == (words[0]["start"], words[-1]["end"])
    pauses = [later["start_offset"] - word["end_offset"] for word, later in zip(words, words[1:])]
    assert len(segments) == 1 + (0 if gap is None else sum(pause >= gap for pause in pauses))
    assert gap is None or len(segments) > 1


@pytest.mark.unit
def test_segments_end_at_the_words_that_the_model_is_told_of(decoder, emit):
    """Subtitles of one line for an hour of speech, whatever the model's configuration says."""
    model = new_model()
    with open_dict(model.cfg.decoding):
        model.cfg.decoding.segment_seperators = ["a"]
    use_lexicon_decoder(model, decoder)
    spoken = torch.from_numpy(emit("the|sea|to|a|to", ENGLISH_LABELS))[None]
    (best,) = model.decoding.ctc_decoder_predictions_tensor(spoken)
    assert [segment["segment"] for segment in best.timestamp["segment"]] == ["the sea", "to a", "to"]
    for part, start in ((best.timestamp["segment"][0], 0.0), (best.timestamp["word"][1], 0.04)):
        assert (part["start"], part["end"]) == pytest.approx((start, 0.07))  # also without timestamps=True


def test_no_words_have_no_segments(decoder):
    """A silent file must not end transcribe()."""
    blank = torch.full((1, 5, len(ENGLISH_LABELS) + 1), -20.0)
    blank[..., -1] = 0.0
    (best,) = LexiconCTCDecoding(decoder).ctc_decoder_predictions_tensor(blank)
    assert (best.text, best.timestamp["word"], best.timestamp["segment"]) == ("", [], [])


@pytest.mark.unit
@pytest.mark.parametrize("is_own, verbose", [(True, True), (False, True), (False, False)])
def test_whoever_asks_for_another_decoding_gets_it(decoder, is_own, verbose):
    """Only the call within transcribe(timestamps=True) is passed over; results that were meant to be greedy would be
    those of the lexicon."""
    model = new_model()
    use_lexicon_decoder(model, decoder)
    config = model.cfg.decoding if is_own else model.cfg.decoding.copy()
    with open_dict(config):
        config.segment_gap_threshold = 7
    model.change_decoding_strategy(config, verbose=verbose)
    assert not isinstance(model.decoding, LexiconCTCDecoding) and "change_decoding_strategy" not in vars(model)
    assert model.decoding.segment_gap_threshold == 7  # theirs, not NeMo's default


def test_a_new_vocabulary_ends_the_lexicon(decoder, audio):
    """The decoding was NeMo's again, and transcribe(timestamps=True) gave no times without a word."""
    model = new_model()
    use_lexicon_decoder(model, decoder)
    model.change_vocabulary([*ENGLISH_LABELS, "\u00e9"])
    found = model.transcribe(audio, batch_size=1, timestamps=True, verbose=False)
    assert all(hypothesis.timestamp["word"] and hypothesis.timestamp["char"] for hypothesis in found)
    assert "change_decoding_strategy" not in vars(model)


def test_a_decoder_of_other_labels_is_refused(model, tmp_path, write_arpa, write_lexicon_of, make_config):
    config = make_config(write_arpa({"a": -1.0}), write_lexicon_of(["a"]))
    with pytest.raises(ValueError, match="the decoder was built for the labels .* the model has"):
        use_lexicon_decoder(model, LexiconBeamSearchDecoder([" ", "a"], config))


def test_our_models_and_long_files(tiny_ctc, write_arpa, write_lexicon_of, make_config, audio, tmp_path, monkeypatch):
    """The lexicon and the chunks of long files together, on one of our models: words in seconds of the file."""
    monkeypatch.setattr(acoustic, "MAX_CHUNK_SECONDS", 6)
    monkeypatch.setattr(acoustic, "CONTEXT_SECONDS", 2)
    model = tiny_ctc(conv_norm="layer_norm")
    config = make_config(write_arpa({word: -1.0 for word in WORDS}), write_lexicon_of(WORDS), beam_size=50)
    decoder = LexiconBeamSearchDecoder(ENGLISH_LABELS, config)
    long = np.random.default_rng(1).normal(0, 0.1, 16000 * 9).astype(np.float32)
    expected = [decoder.decode(acoustic.long_log_probs(model, wave), "utt") for wave in (long, audio[0])]
    use_lexicon_decoder(model, decoder)
    acoustic.use_chunks(model)
    found = model.transcribe([long, audio[0]], batch_size=2, timestamps=True, verbose=False)
    assert [hypothesis.text for hypothesis in found] == [best.text for best in expected] and expected[0].text
    ends = [word["end"] for word in found[0].timestamp["word"]]
    assert ends == pytest.approx([word.end for word in expected[0].words]) and 6 < ends[-1] <= 9


def test_a_decoder_of_another_frame_rate_is_refused(decoder):
    """Of a model with four times fewer frames all word times were a quarter of the true ones."""
    model = new_model()
    model.cfg.preprocessor.window_stride = 0.04
    with pytest.raises(
        ValueError, match="frames of 0.01 s, the model makes one every 0.04 s. Build it with frame_sec"
    ):
        use_lexicon_decoder(model, decoder)
    model.cfg.preprocessor.window_stride = FRAME_SECONDS
    use_lexicon_decoder(model, decoder)
