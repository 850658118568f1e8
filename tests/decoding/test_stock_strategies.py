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

"""NeMo's own decoding strategies on our models: they stay usable through ``change_decoding_strategy``."""

import math

import numpy as np
import pytest
import torch
from nemo.collections.asr.models import ASRModel
from omegaconf import OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS

pytestmark = pytest.mark.integration
TOKEN_OFFSET = 100  # NeMo's n-gram LMs of tokens write token i as the character 100 + i


@pytest.fixture
def heard(emit):
    """Sounds like "the see": of the last frame's letters e beats a by half a nat."""
    log_probs = emit("the|se_e", ENGLISH_LABELS)
    log_probs[-1, ENGLISH_LABELS.index("e")] = math.log(0.6)
    log_probs[-1, ENGLISH_LABELS.index("a")] = math.log(0.6) - 0.5
    return log_probs


@pytest.fixture
def token_lm(tmp_path):
    """An LM of letters in NeMo's encoding: all alike, but after the first e of "see" the a is ten times likelier."""
    letters = [chr(TOKEN_OFFSET + index) for index in range(len(ENGLISH_LABELS))]
    e, a = (letters[ENGLISH_LABELS.index(letter)] for letter in "ea")
    lines = ["\\data\\", f"ngram 1={len(letters) + 3}", "ngram 2=2", "", "\\1-grams:"]
    lines += ["-99\t<s>\t0", "-1.5\t</s>", "-9\t<unk>", *(f"-1.5\t{letter}\t0" for letter in letters)]
    lines += ["", "\\2-grams:", f"-0.5\t{e} {a}", f"-1.5\t{e} {e}", "", "\\end\\", ""]
    (tmp_path / "letters.arpa").write_text("\n".join(lines), encoding="utf-8")
    return str(tmp_path / "letters.arpa")


def decode(model, log_probs, strategy, **beam):
    """Text of one utterance alone."""
    (text,) = decode_batch(model, [log_probs], strategy, **beam)
    return text


def decode_batch(model, utterances, strategy, **beam):
    """Texts of a padded batch, whose padding says something else."""
    model.change_decoding_strategy(OmegaConf.create({"strategy": strategy, **({"beam": beam} if beam else {})}))
    lengths = [len(utterance) for utterance in utterances]
    padding = utterances[0][:1].repeat(max(lengths), axis=0)
    rows = [np.concatenate([utterance, padding])[: max(lengths)] for utterance in utterances]
    hypotheses = model.decoding.ctc_decoder_predictions_tensor(
        torch.from_numpy(np.stack(rows)), decoder_lengths=torch.tensor(lengths)
    )
    return [(one[0] if isinstance(one, list) else one).text.strip() for one in hypotheses]


@pytest.mark.parametrize("strategy", ["greedy", "greedy_batch"])
def test_greedy(tiny_ctc, heard, strategy):
    assert decode_batch(tiny_ctc(), [heard, np.concatenate([heard, heard])], strategy) == ["the see", "the seethe see"]


@pytest.mark.parametrize("alpha, text", [(0.0, "the see"), (0.2, "the see"), (0.25, "the sea"), (1.0, "the sea")])
def test_beam_batch_with_an_ngpu_lm(tiny_ctc, heard, token_lm, alpha, text):
    """Half a nat of acoustics against one in log10, 2.3 nats, of LM: the tie is at a weight of 0.217.

    One utterance at a time: in NeMo 3.0 the frames of the padding shuffle the LM's states of shorter rows.
    """
    beam = dict(beam_size=8, ngram_lm_model=token_lm, ngram_lm_alpha=alpha, beam_beta=0.0)
    assert decode(tiny_ctc(), heard, "beam_batch", **beam) == text


@pytest.mark.parametrize("alpha, text", [(0.0, "the see"), (0.2, "the see"), (0.25, "the sea"), (1.0, "the sea")])
def test_pyctcdecode_with_a_word_lm(tiny_ctc, heard, emit, write_arpa, alpha, text):
    """The same tie with an LM of words."""
    pytest.importorskip("pyctcdecode", reason="NeMo's strategy of that name needs it")
    unigrams = {"the": -1.0, "sea": -1.0, "see": -1.0}
    lm = write_arpa(unigrams, {("the", "sea"): -0.5, ("the", "see"): -1.5})
    beam = dict(beam_size=50, ngram_lm_model=lm, ngram_lm_alpha=alpha, beam_beta=0.0)
    longer = np.concatenate([heard, emit("|the", ENGLISH_LABELS)])
    assert decode_batch(tiny_ctc(), [heard, longer], "pyctcdecode", **beam) == [text, f"{text} the"]


def test_bpe_models_too(bpe_path):
    """Token by token: what greedy_batch hears in steep log-probabilities, beam_batch hears, too."""
    model = ASRModel.restore_from(str(bpe_path), map_location="cpu").eval()
    tokens = [3, 40, 7, 7, 40, 21, 40]  # 40: the blank
    log_probs = np.full((len(tokens), 41), math.log(0.1 / 40), np.float32)
    log_probs[np.arange(len(tokens)), tokens] = math.log(0.9)
    expected = model.tokenizer.ids_to_text([3, 7, 21])
    assert decode(model, log_probs, "greedy_batch") == expected.strip()
    assert decode(model, log_probs, "beam_batch", beam_size=8, beam_beta=0.0) == expected.strip()
