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

"""Speed of the lexicon beam search and of its peers, on the same log-probabilities, lexicon, LM and weights.

Each row has the shortest time for decoding the utterances, since other work on the machine only makes it longer. Time
for loading LM and lexicon is not included.

    ours                 `ParallelDecoder`, one process per core
    plain flashlight     flashlight's LexiconDecoder called directly: one core, no checks, no word times
    pyctcdecode          NeMo's strategy of that name, with its default pruning. Not measured if it is not installed,
                         or if LM and model differ in case, which it cannot handle

The CPU time of one core can also be compared on a shared machine. The word error rate shows that answers of equal
quality are compared. pyctcdecode searches other hypotheses (words outside the lexicon, sums over alignments), so its
rate differs with the same weights.
"""

import dataclasses
import math
import multiprocessing
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions, SmearingMode, Trie
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from nemo_mshubert.alphabet import SPACE
from nemo_mshubert.benchmarks.measurement import Column, Row
from nemo_mshubert.decoding.config import LexiconBeamConfig, read_config
from nemo_mshubert.decoding.error_rates import word_errors
from nemo_mshubert.decoding.lexicon import fold_case, read_lexicon
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
from nemo_mshubert.decoding.log_probs import read_log_probs
from nemo_mshubert.decoding.parallel import ParallelDecoder
from nemo_mshubert.whole_files import PathLike

COLUMNS = (
    Column("decoder", "decoder"),
    Column("beam", "beam", "d"),
    Column("cores", "cores", "d"),
    Column("utterances_per_second", "utterances / s", ".2f"),
    Column("cpu_seconds", "CPU s / utterance", ".3f"),
    Column("wer", "WER %", ".2f"),
)
Utterances = List[Tuple[str, np.ndarray]]  # id, log_probs_TV
Decode = Callable[[Utterances], List[str]]


def benchmark(
    log_probs: PathLike,
    decode: PathLike,
    lm: Optional[str],
    lexicon: Optional[str],
    beams: Sequence[int],
    cores: Sequence[int],
    utterances: int,
    repeats: int,
    device: torch.device,
) -> List[Row]:
    """Decode the first ``utterances`` of a cache with every decoder, beam and number of cores.

    Args:
        log_probs: file of scripts/evaluate.py.
        decode: YAML of weights; ``lm`` and ``lexicon`` where it does not name them.
        repeats: number of times that each measurement is made.
        device: not used, since all decoders search on the CPU.

    Raises:
        FileNotFoundError, ValueError: as `read_log_probs`, `read_config` and `LexiconBeamSearchDecoder`.
    """
    cache = read_log_probs(log_probs)
    config = read_config(decode, lm=lm, lexicon=lexicon)
    some = list(zip(cache.utterances, cache.log_probs))[:utterances]
    rows = []
    for beam, number in product(beams, cores):
        for name, decoder in _decoders(cache.labels, dataclasses.replace(config, beam_size=beam), number):
            row = {"decoder": name, "beam": beam, "cores": number}
            rows.append({**row, **(_measure(decoder, some, cache.references, repeats) if decoder else {})})
            if number > 1:
                rows[-1].pop("cpu_seconds", None)  # spent in other processes, so unknown here
            print(rows[-1], flush=True)
    return rows


def _decoders(labels: List[str], config: LexiconBeamConfig, cores: int) -> Iterator[Tuple[str, Optional[Decode]]]:
    """Yield ``(row, function that decodes)``, one at a time; None for a decoder that is not available."""
    with ParallelDecoder(LexiconBeamSearchDecoder(labels, config), cores) as pool:
        yield "ours", lambda utterances: [best.text for best in pool.decode_all(utterances)]
    if cores == 1:  # it cannot use more
        yield "plain flashlight", partial(_decode_plainly, labels, *plain_flashlight(labels, config))
    theirs = pyctcdecode_decoder(labels, config)
    if theirs is None:
        yield "pyctcdecode", None
        return
    with multiprocessing.get_context("fork").Pool(cores) as pool:  # it accepts no other kind of pool
        decode = partial(theirs.decode_batch, pool if cores > 1 else None, beam_width=config.beam_size)
        yield "pyctcdecode", lambda utterances: decode([array for _, array in utterances])


def _measure(decode: Decode, utterances: Utterances, references: Sequence[str], repeats: int) -> Row:
    decode([(name, array[:50]) for name, array in utterances])  # loads LM and lexicon in every process
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        texts = decode(utterances)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "utterances_per_second": len(utterances) / min(seconds),
        "cpu_seconds": min(cpu_seconds) / len(utterances),
        "wer": 100 * word_errors(zip(references, texts)).rate,
    }


def plain_flashlight(labels: List[str], config: LexiconBeamConfig) -> Tuple[LexiconDecoder, Dictionary]:
    """flashlight's decoder, built as in its documentation with the settings of ``config``, and the dictionary of the
    words in its results."""
    spellings, words = read_lexicon(config.lexicon, labels), Dictionary()
    for word in (*spellings, "<unk>"):
        words.add_entry(word)
    lm = KenLM(str(config.lm), words)
    silence, blank = labels.index(SPACE), len(labels)
    trie, start = Trie(len(labels) + 1, silence), lm.start(False)
    for index, variants in enumerate(spellings.values()):
        for letters in variants:
            trie.insert(letters, index, lm.score(start, index)[1])
    trie.smear(SmearingMode.MAX)
    options = LexiconDecoderOptions(
        beam_size=config.beam_size,
        beam_size_token=config.beam_size_token or len(labels) + 1,
        beam_threshold=config.beam_threshold,
        lm_weight=config.lm_weight,
        word_score=config.word_score,
        unk_score=-math.inf,
        sil_score=config.sil_score,
        log_add=False,
        criterion_type=CriterionType.CTC,
    )
    unknown = words.get_index("<unk>")
    return LexiconDecoder(options, trie, lm, silence, blank, unknown, [], False), words


def _decode_plainly(
    labels: List[str], decoder: LexiconDecoder, words: Dictionary, utterances: Utterances
) -> List[str]:
    texts = []
    for _, array in utterances:
        array = np.ascontiguousarray(array)
        best = decoder.decode(array.ctypes.data, *array.shape)[0]
        found = " ".join(words.get_entry(index) for index in best.words if index >= 0)
        texts.append(fold_case(found, labels))
    return texts


def pyctcdecode_decoder(labels: List[str], config: LexiconBeamConfig) -> Optional[Any]:
    """A decoder with the same words, LM and weights; None if pyctcdecode is not installed or cannot read this LM.

    pyctcdecode weights the natural logarithms of the LM, flashlight those to base 10.
    """
    try:
        from pyctcdecode import build_ctcdecoder
    except ImportError:
        return None
    words = list(read_lexicon(config.lexicon, labels))
    if any(set(word) - set(labels) for word in words):
        return None
    alpha = config.lm_weight / math.log(10)
    return build_ctcdecoder([*labels, ""], str(Path(config.lm)), words, alpha=alpha, beta=config.word_score)
