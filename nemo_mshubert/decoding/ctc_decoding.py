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

"""Lexicon beam search inside a stock NeMo letter model, for ``model.transcribe()``."""

import math
from types import MethodType
from typing import Any, List, Union

from nemo.collections.asr.models import EncDecCTCModel
from nemo.collections.asr.parts.submodules.ctc_decoding import CTCDecoding, CTCDecodingConfig
from nemo.collections.asr.parts.utils.rnnt_utils import Hypothesis
from nemo.collections.asr.parts.utils.timestamp_utils import get_segment_offsets
from torch import Tensor

from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder, LexiconHypothesis
from nemo_mshubert.decoding.parallel import ParallelDecoder

Decoder = Union[LexiconBeamSearchDecoder, ParallelDecoder]
SEGMENTS = ("segment_seperators", "segment_gap_threshold")  # NeMo's settings, as it spells them


class LexiconCTCDecoding(CTCDecoding):
    """NeMo's decoding object with another search.

    ``segments`` are values for the settings in `SEGMENTS` that differ from NeMo's defaults.
    """

    def __init__(self, decoder: Decoder, **segments: Any):
        super().__init__(CTCDecodingConfig(**segments), decoder.labels)
        self._lexicon_decoder = decoder

    def ctc_decoder_predictions_tensor(
        self,
        decoder_outputs: Tensor,
        decoder_lengths: Tensor = None,
        fold_consecutive: bool = True,
        return_hypotheses: bool = False,
    ) -> List[Hypothesis]:
        """Best transcription of each row of log-probabilities ``[B, T, V]``, trimmed to ``decoder_lengths``.

        ``fold_consecutive`` and ``return_hypotheses`` are NeMo's arguments and have no effect: repeats are always
        merged, and hypotheses always hold the text, its score, the ids of its letters, and the times of words and
        segments (``timestamp["word"]`` and ``["segment"]``, as in NeMo).
        """
        rows, frames = decoder_outputs.shape[:2]
        lengths = [frames] * rows if decoder_lengths is None else decoder_lengths.tolist()
        if len(lengths) != rows or not all(0 <= length <= frames for length in lengths):
            raise ValueError(f"lengths of {lengths} frames, but the batch has {rows} utterances of {frames}.")
        names = (f"utterance {row} of the batch" for row in range(rows))
        trimmed = (log_probs_TV[:length] for log_probs_TV, length in zip(decoder_outputs, lengths))
        found = self._lexicon_decoder.decode_all(zip(names, trimmed))
        return [self._as_nemo(best, length) for best, length in zip(found, lengths)]

    def _as_nemo(self, best: LexiconHypothesis, length: int) -> Hypothesis:
        frame_seconds = self._lexicon_decoder.frame_seconds
        words = [
            {
                "word": timed.word,
                "start_offset": round(timed.start / frame_seconds),
                "end_offset": round(timed.end / frame_seconds),
                "start": timed.start,
                "end": timed.end,
            }
            for timed in best.words
        ]
        # not all letters of the text are labels: a lexicon may spell "dr." as "doctor"
        letters = [self.vocabulary.index(letter) for letter in best.text if letter in self.vocabulary]
        # without NeMo's supported_punctuation, which only causes a warning, even if no times were requested
        segments = get_segment_offsets(
            words, self.segment_seperators, segment_gap_threshold=self.segment_gap_threshold
        )
        timestamp = {"timestep": [], "word": words, "segment": segments}
        return Hypothesis(best.score, letters, best.text, timestamp=timestamp, length=length)


def use_lexicon_decoder(model: EncDecCTCModel, decoder: Decoder) -> None:
    """Make ``model.transcribe()`` decode with ``decoder``, until ``model.change_decoding_strategy(cfg)`` is called.

    Validation during training keeps its greedy WER. Segments end as set in the model's decoding config.

    Raises:
        ValueError: the decoder was built for labels or a frame rate that differ from the model's.
    """
    labels = list(model.decoder.vocabulary)
    if decoder.labels != labels:
        raise ValueError(
            f"the decoder was built for the labels {decoder.labels}, the model has {labels}. Build the decoder with "
            "the model's decoder.vocabulary; a lexicon decodes letter models, not BPE."
        )
    frame_seconds = model.cfg.preprocessor.window_stride * model.encoder.subsampling_factor  # as in NeMo's timestamps
    if not math.isclose(decoder.frame_seconds, frame_seconds, rel_tol=1e-6):
        raise ValueError(
            f"the decoder was built for frames of {decoder.frame_seconds} s, the model makes one every "
            f"{frame_seconds:g} s. Build it with frame_seconds={frame_seconds:g}: word times are of these."
        )
    segments = {name: model.cfg.decoding[name] for name in SEGMENTS if name in model.cfg.decoding}
    model.decoding = LexiconCTCDecoding(decoder, **segments)
    model.change_decoding_strategy = MethodType(_change_decoding_strategy, model)


def _change_decoding_strategy(model: EncDecCTCModel, decoding_cfg=None, verbose: bool = True) -> None:
    """Ignore the call inside ``transcribe(timestamps=...)``, which is not verbose and passes the model's own config.

    It would silently replace the lexicon search by greedy decoding, and our hypotheses always hold times. Once
    ``change_vocabulary()`` has replaced the decoding, the stock method is used again, which turns times on.
    """
    is_ours = isinstance(model.decoding, LexiconCTCDecoding)
    if is_ours and decoding_cfg is model.cfg.decoding and not verbose:
        return
    del model.change_decoding_strategy  # the stock method again
    model.change_decoding_strategy(decoding_cfg, verbose=verbose)
