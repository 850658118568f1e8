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

"""Lexicon beam search with a word n-gram LM for letter CTC models: the wav2vec 2.0 recipe on flashlight-text.

NeMo's own flashlight wrapper cannot spell the word delimiter. This one ends every spelling with it, and reads words
instead of letters from the result.

The score of a transcription is the log-probability (natural log) of its best alignment + ``lm_weight`` x KenLM's log10
probability + ``word_score`` per word + ``sil_score`` per frame of word delimiter. Weights tuned for pyctcdecode or
NeMo's NGPU-LM cannot be used here, because these use natural logs for the LM.
"""

from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

import numpy as np
from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions, SmearingMode, Trie
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from nemo_mshubert.alphabet import SPACE
from nemo_mshubert.decoding.config import LexiconBeamConfig
from nemo_mshubert.decoding.lexicon import fold_case, read_lexicon
from nemo_mshubert.decoding.log_probs import checked_log_probs

FRAME_SECONDS = 0.02  # HuBERT's 320 samples at 16 kHz
UNKNOWN_WORD = "<unk>"
UNFINISHED = -1e6  # nats: more than the difference between any two hypotheses


class TimedWord(NamedTuple):
    """A word with its start and end (exclusive) in seconds: from the first frame of its first letter to the last frame
    of its last letter."""

    word: str
    start: float
    end: float


class LexiconHypothesis(NamedTuple):
    """One transcription: words in the case of the model's letters, and the ``score`` described in the module's
    docstring."""

    words: Tuple[TimedWord, ...]
    score: float

    @property
    def text(self) -> str:
        return " ".join(timed.word for timed in self.words)


class LexiconBeamSearchDecoder:
    """Decoder for the labels of one model, one lexicon and one LM; ``config`` holds weights and beams.

    Args:
        labels: the model's labels without the blank, which is the last index of its output (as in NeMo).
        config: files, weights and beams; see ``conf/decode/lexicon_beam.yaml``.
        frame_seconds: time between two frames of the model's output.

    Raises:
        FileNotFoundError: no such LM or lexicon.
        ValueError: the lexicon does not fit the labels, or the LM knows no word of the lexicon.
    """

    def __init__(self, labels: Sequence[str], config: LexiconBeamConfig, frame_seconds: float = FRAME_SECONDS):
        self.labels = list(labels)
        self.frame_seconds = frame_seconds
        spellings = read_lexicon(config.lexicon, self.labels)
        self._words = [fold_case(word, self.labels) for word in spellings]
        words = Dictionary()
        for word in (*spellings, UNKNOWN_WORD):
            words.add_entry(word)
        self._unknown = words.get_index(UNKNOWN_WORD)
        self._lm = _load_lm(config.lm, words)
        self._trie = self._build_trie(spellings, config)
        self._blank = len(self.labels)
        self._delimiter = self.labels.index(SPACE)
        self._configure(config)

    def _build_trie(self, spellings: Dict[str, List[List[int]]], config: LexiconBeamConfig) -> Trie:
        """The spellings as a tree of letters. Each node has the score of the best unigram below it ("smearing")."""
        trie = Trie(len(self.labels) + 1, self.labels.index(SPACE))
        start = self._lm.start(False)
        unknown_score = self._lm.score(start, self._unknown)[1]
        known = 0
        for index, variants in enumerate(spellings.values()):
            score = self._lm.score(start, index)[1]
            known += score != unknown_score
            for letters in variants:
                trie.insert(letters, index, score)
        if known == 0:
            raise ValueError(
                f"{config.lm}: the language model knows none of the {len(spellings)} words of {config.lexicon} (the "
                f"first is {next(iter(spellings))!r}). Is one in upper and the other in lower case, or of another "
                "language? Write the lexicon from this LM's ARPA with scripts/train_ngram.py --arpa."
            )
        trie.smear(SmearingMode.MAX)
        return trie

    def _configure(self, config: LexiconBeamConfig) -> None:
        self.config = config
        options = LexiconDecoderOptions(
            beam_size=config.beam_size,
            beam_size_token=config.beam_size_token or len(self.labels) + 1,
            beam_threshold=config.beam_threshold,
            lm_weight=config.lm_weight,
            word_score=config.word_score,
            unk_score=-np.inf,  # closed vocabulary: the lexicon's words only
            sil_score=config.sil_score,
            log_add=False,  # best path, not the sum, as in wav2vec 2.0
            criterion_type=CriterionType.CTC,
        )
        self._decoder = LexiconDecoder(
            options, self._trie, self._lm, self._delimiter, self._blank, self._unknown, [], False
        )
        # Unlike fairseq's, NeMo's transcripts do not end with the delimiter. So models need not emit one after the
        # last word, and flashlight would drop that word. One more frame lets the word end, or the delimiter continue,
        # at no cost. Other words stay unfinished, with a penalty: in a narrow beam, their continuations would displace
        # the finished word.
        self._closing_frame = np.full((1, len(self.labels) + 1), -np.inf, dtype=np.float32)
        self._closing_frame[0, self._blank] = UNFINISHED
        self._closing_frame[0, self._delimiter] = -config.sil_score

    def with_config(self, config: LexiconBeamConfig) -> "LexiconBeamSearchDecoder":
        """This decoder with other weights and beams; it shares LM and lexicon. Raises ``ValueError`` if ``config`` has
        another LM or lexicon."""
        ours, theirs = self.config, config
        if (ours.lm, ours.lexicon) != (theirs.lm, theirs.lexicon):
            raise ValueError(
                f"{theirs.lm}, {theirs.lexicon}: this decoder holds {ours.lm}, {ours.lexicon}. Build one."
            )
        other = object.__new__(type(self))  # not copy.copy: __reduce__ would rebuild LM and trie
        vars(other).update(vars(self))
        other._configure(config)
        return other

    def decode(self, log_probs_TV: Any, utterance: str) -> LexiconHypothesis:
        """The best transcription.

        Args:
            log_probs_TV: ``[T, V]``, numpy or torch, of any float type; V = labels + blank; T may be 0.
            utterance: name of the utterance, for errors.

        Raises:
            ValueError: NaN or wrong shape; names the utterance.
        """
        return self.decode_n_best(log_probs_TV, utterance, 1)[0]

    def decode_n_best(self, log_probs_TV: Any, utterance: str, count: int) -> List[LexiconHypothesis]:
        """Like `decode`, but up to ``count`` transcriptions with different words, best first, as far as the beam holds
        them."""
        checked = checked_log_probs(log_probs_TV, len(self.labels), utterance)
        emissions = np.concatenate([checked, self._closing_frame])  # contiguous, and kept alive during the call
        found: Dict[Tuple[str, ...], LexiconHypothesis] = {}
        for result in self._decoder.decode(emissions.ctypes.data, *emissions.shape):  # best first
            words = self._timed_words(result)
            score = result.score - (UNFINISHED if result.tokens[-2] == self._blank else 0.0)  # in the closing frame
            # several hypotheses with the same words may end inside different unfinished words: keep the best one
            found.setdefault(tuple(timed.word for timed in words), LexiconHypothesis(words, score))
            if len(found) == count:
                break
        return list(found.values())

    def decode_all(self, utterances: Iterable[Tuple[str, Any]]) -> List[LexiconHypothesis]:
        """`decode` of ``(utterance, log_probs_TV)`` pairs."""
        return [self.decode(log_probs_TV, utterance) for utterance, log_probs_TV in utterances]

    def _timed_words(self, result) -> Tuple[TimedWord, ...]:
        """Words of a flashlight result. It has a token and a word (-1: none) per frame, plus a first and a last
        state."""
        words, start, end = [], None, 0
        for frame, (token, word) in enumerate(zip(result.tokens[1:], result.words[1:])):
            if token not in (self._blank, self._delimiter):
                start, end = frame if start is None else start, frame + 1
            if word >= 0:
                words.append(TimedWord(self._words[word], start * self.frame_seconds, end * self.frame_seconds))
                start = None
        return tuple(words)

    def __reduce__(self):
        """Pickle the arguments that rebuild the decoder, since LM and trie are C++ objects."""
        return type(self), (self.labels, self.config, self.frame_seconds)


def _load_lm(path: str, words: Dictionary) -> KenLM:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such language model. Make one with scripts/train_ngram.py.")
    try:
        return KenLM(str(path), words)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: KenLM cannot load it ({error}). Make it anew with scripts/train_ngram.py."
        ) from error
