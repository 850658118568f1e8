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

"""Word times from a fine-tuned CTC model, for corpora without alignments: NeMo's Viterbi aligns text and frames.

        frames      _ _ t h _ e _ _ _ c c a t _ _     (_: blank; the space is also a token)
        words           |---------|   |-------|       from the first frame of the first letter to the last of the last

CTC emits a letter when it is sure of it, not when the letter begins. A gap of up to `MAX_GAP_FRAMES` between two words
is therefore speech and is divided evenly between them; a longer gap is silence.
"""

import fcntl
import glob
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from nemo.collections.asr.parts.utils.aligner_utils import viterbi_decoding

from nemo_mshubert.alphabet import SPACE, pieces_of_text
from nemo_mshubert.analysis.word_segments import SILENCES
from nemo_mshubert.data.alignments import Alignments
from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.data.manifest import distinct_utterances, iter_manifest, not_empty, utterance_id
from nemo_mshubert.data.maybe_gzip import open_maybe_gzip, write_maybe_gzip
from nemo_mshubert.data.transcripts import in_form, other_form
from nemo_mshubert.decoding.acoustic import manifest_log_probs
from nemo_mshubert.decoding.lexicon import fold_case
from nemo_mshubert.decoding.log_probs import checked_log_probs
from nemo_mshubert.file_lock import try_to_lock
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.partial_file import locked_partial
from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)

MAX_GAP_FRAMES = 10  # 0.2 s
MAX_LATTICE = 2 * 10**9  # bytes, about 20 minutes of speech; NeMo's search needs twice as many
UTTERANCES_PER_WINDOW = 200  # whose log-probabilities are in memory together
BATCH_SECONDS = 120  # of padded audio
TOLERANCES_MS = (20, 50, 100)


class WordTime(NamedTuple):
    word: str
    start: float  # seconds
    end: float


class CannotAlign(ValueError):
    """An utterance cannot be aligned; the message says why."""


# --- One utterance ---------------------------------------------------------------------------------------------------


def align_words(model: EncDecCTCModel, log_probs_TV: np.ndarray, text: str) -> Tuple[List[WordTime], float]:
    """Times of the words of ``text``, and how well they fit: the mean log-probability per frame of the path.

    Raises:
        CannotAlign: no words, a letter that the model lacks, a word that its tokenizer drops, fewer frames than the
            transcript needs, or a recording too long for the memory.
    """
    words = text.split()
    if not words:
        raise CannotAlign("no words")
    tokens, word_of_token = _tokens(model, words)
    blank = log_probs_TV.shape[1] - 1
    needed = len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:]))
    if len(log_probs_TV) < needed:
        raise CannotAlign(f"{len(log_probs_TV)} frames for {len(tokens)} tokens: the audio is too short for the text")
    states = [blank] * (2 * len(tokens) + 1)
    if len(log_probs_TV) * len(states) > MAX_LATTICE:
        raise CannotAlign(
            f"{len(log_probs_TV)} frames with {len(tokens)} tokens need too much memory: cut the recording at pauses"
        )
    states[1::2] = tokens
    (path,) = viterbi_decoding(
        torch.from_numpy(log_probs_TV)[None],
        torch.tensor([states]),
        torch.tensor([len(log_probs_TV)]),
        torch.tensor([len(states)]),
        viterbi_device=torch.device("cpu"),
    )
    score = float(np.mean([log_probs_TV[frame, states[state]] for frame, state in enumerate(path)]))
    spans = _word_spans(path, word_of_token, len(words))
    frames = share_gaps(spans, len(log_probs_TV))
    # Frame times as in NeMo's timestamps. They are rounded to microseconds, so that 35 * 0.02 is 0.7.
    frame_seconds = model.cfg.preprocessor.window_stride * model.encoder.subsampling_factor
    times = [(round(first * frame_seconds, 6), round(end * frame_seconds, 6)) for first, end in frames]
    return [WordTime(word, start, end) for word, (start, end) in zip(words, times)], score


def _tokens(model: EncDecCTCModel, words: Sequence[str]) -> Tuple[List[int], List[Optional[int]]]:
    """Token numbers of the transcript, and the number of each token's word (None for the space of a letter model)."""
    tokens: List[int] = []
    owners: List[Optional[int]] = []
    labels = list(model.decoder.vocabulary)
    for number, word in enumerate(words):
        if isinstance(model, EncDecCTCModelBPE):
            of_word = _piece_tokens(model, word, labels)
        else:
            of_word = _letter_tokens(word, labels)
            if number and SPACE in labels:
                tokens.append(labels.index(SPACE))
                owners.append(None)
        tokens += of_word
        owners += [number] * len(of_word)
    return tokens, owners


def _letter_tokens(word: str, labels: List[str]) -> List[int]:
    letters = fold_case(word, labels)
    missing = sorted(set(letters) - set(labels))
    if missing and (form := other_form(letters, labels)):
        raise CannotAlign(in_form(form, word))
    if missing:
        raise CannotAlign(f"the model has no letter {missing[0]!r}, as in {word!r}")
    return [labels.index(letter) for letter in letters]


def _piece_tokens(model: EncDecCTCModelBPE, word: str, labels: List[str]) -> List[int]:
    tokens = model.tokenizer.text_to_ids(fold_case(word, pieces_of_text(labels)))
    if not tokens:  # SentencePiece turns a zero-width space into a space
        raise CannotAlign(f"the tokenizer makes no token of the word {word!r}")
    if model.tokenizer.unk_id in tokens:  # the model never emits this token
        raise CannotAlign(f"the tokenizer lacks a letter of {word!r}")
    return tokens


def _word_spans(path: Sequence[int], word_of_token: Sequence[Optional[int]], num_words: int) -> List[Tuple[int, int]]:
    """First frame of each word and the frame after its last; odd states of the path are tokens, even ones blanks."""
    frames: List[List[int]] = [[] for _ in range(num_words)]
    for frame, state in enumerate(path):
        owner = word_of_token[state // 2] if state % 2 else None
        if owner is not None:
            frames[owner].append(frame)
    return [(own[0], own[-1] + 1) for own in frames]


def share_gaps(spans: Sequence[Tuple[int, int]], num_frames: int) -> List[Tuple[int, int]]:
    """Divide short gaps evenly between the words around them. At the ends and beside silence, a word grows by half of
    the longest short gap."""
    margin = MAX_GAP_FRAMES // 2
    starts, ends = [spans[0][0] - margin], []
    for (_, end), (start, _) in zip(spans, spans[1:]):
        half = min((start - end) // 2, margin)
        ends.append(end + half)
        starts.append(start - half if start - end > MAX_GAP_FRAMES else end + half)
    ends.append(spans[-1][1] + margin)
    return [(max(start, 0), min(end, num_frames)) for start, end in zip(starts, ends)]


# --- A manifest ------------------------------------------------------------------------------------------------------


def align_manifest(model: EncDecCTCModel, manifest: PathLike, output: PathLike) -> Dict[str, int]:
    """Write ``{"utt_id", "score", "words": [{"word", "start", "end"}]}`` per line, as `read_alignments` reads it.

    Utterances that cannot be aligned are left out, logged and counted. Lines are first written to
    ``.<output>.<id>.partial``; after an interruption, a call with the same model and manifest continues from there. An
    earlier alignment is replaced.

    Returns:
        numbers of utterances ``aligned`` and ``left_out``.

    Raises:
        FileNotFoundError, ValueError: no manifest, an utterance without "text" or "duration", unreadable audio, NaN in
            an utterance's log-probabilities, no utterance that can be aligned, or an ``output`` that exists and is not
            an earlier alignment.
        RuntimeError: another process is aligning the same manifest into ``output``.
    """
    output = Path(output)
    _check_output(output)
    lines = _checked(manifest)
    identity = hashlib.sha256((weights_fingerprint(model) + file_digest(manifest)).encode()).hexdigest()[:8]
    with locked_partial(output, identity, "is aligning these utterances. Wait for it.") as (partial, stream):
        done = _whole_lines(partial)
        todo = [entry for entry in lines if utterance_id(entry) not in done]
        for first in range(0, len(todo), UTTERANCES_PER_WINDOW):
            window = todo[first : first + UTTERANCES_PER_WINDOW]
            log_probs = manifest_log_probs(model, window, BATCH_SECONDS, progress="aligning")
            for index, entry in enumerate(window):
                stream.write(json.dumps(_aligned(model, entry, log_probs[index]), ensure_ascii=False) + "\n")
            stream.flush()
    made = list(_whole_lines(partial).values())
    aligned = [line for line in made if "reason" not in line]
    if not aligned:  # the reasons may have been logged by an earlier call only
        raise ValueError(
            f"{manifest}: none of {len(lines)} utterances can be aligned; the first, {made[0]['utt_id']}: "
            f"{made[0]['reason']}."
        )
    write_maybe_gzip(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in aligned))
    for finished in output.parent.glob(f".{glob.escape(output.name)}.*.partial"):  # also those of other models
        with open(finished, "a", encoding="utf-8") as stream:
            if try_to_lock(stream, fcntl.flock):  # otherwise another process is writing it
                finished.unlink()
    return {"aligned": len(aligned), "left_out": len(lines) - len(aligned)}


def _check_output(output: Path) -> None:
    """Raise ``ValueError`` if writing would destroy a file that is not an alignment, such as the manifest."""
    if output.is_dir():
        raise ValueError(f"{output}: a folder. Name a file in it as --output.")
    if not output.exists():
        return
    try:
        with open_maybe_gzip(output) as stream:
            is_alignment = {"utt_id", "words"} <= json.loads(stream.readline()).keys()
    except (ValueError, AttributeError):
        is_alignment = False
    if not is_alignment:
        raise ValueError(f"{output}: is there already, and no alignment. Give another --output, or remove the file.")


def _checked(manifest: PathLike) -> List[Dict[str, Any]]:
    entries = []
    for where, entry in not_empty(distinct_utterances(iter_manifest(manifest)), manifest):
        if not isinstance(entry.get("text"), str) or entry.get("duration") is None:
            raise ValueError(
                f'{where}: {utterance_id(entry)} lacks "text" or "duration". Add them or remove the line.'
            )
        entries.append(entry)
    return entries


def _aligned(model: EncDecCTCModel, entry: Dict[str, Any], log_probs_TV: np.ndarray) -> Dict[str, Any]:
    """The output line of an utterance; if it cannot be aligned, a line with the "reason"."""
    utt_id = utterance_id(entry)
    log_probs_TV = checked_log_probs(log_probs_TV, len(model.decoder.vocabulary), utt_id)
    try:
        words, score = align_words(model, log_probs_TV, entry["text"])
    except CannotAlign as reason:
        logger.warning("%s is left out: %s.", utt_id, reason)
        return {"utt_id": utt_id, "reason": str(reason)}
    return {"utt_id": utt_id, "score": round(score, 4), "words": [word._asdict() for word in words]}


def _whole_lines(path: Path) -> Dict[str, Dict[str, Any]]:
    """Lines of an interrupted call, by utterance. A line that was only partly written is removed from the file."""
    lines: Dict[str, Dict[str, Any]] = {}
    size = 0
    with open(path, "r+b") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            size += len(line)
            entry = json.loads(line)
            lines[entry["utt_id"]] = entry
        stream.truncate(size)
    return lines


# --- Comparison ------------------------------------------------------------------------------------------------------


def compare_times(found: Alignments, reference: Alignments) -> Dict[str, Any]:
    """How far word boundaries are from known ones, over utterances whose words are the same in both.

    Returns:
        ``{"words", "utterances", "other_words", "starts": {"mean_ms", "within_20_ms", ...}, "ends": {...}}``: the mean
        of found minus known, and shares of words. ``other_words`` counts utterances whose words differ.

    Raises:
        ValueError: no utterance with the same words in both.
    """
    offsets: List[np.ndarray] = []
    other = 0
    for utt_id in found.intervals:
        if utt_id not in reference.intervals:
            continue
        words, times = _spoken(found, utt_id)
        known_words, known_times = _spoken(reference, utt_id)
        if words == known_words:
            # [2, words] in ms; rounded, as 0.54 - 0.52 is more than 20 ms in floating point
            offsets.append(np.round(1000 * (times - known_times), 3))
        else:
            other += 1
    if not offsets:
        raise ValueError(
            f"no utterance with the same words in both ({other} with other words). Are these its alignments?"
        )
    edges = np.concatenate(offsets, axis=1)
    result: Dict[str, Any] = {"words": edges.shape[1], "utterances": len(offsets), "other_words": other}
    for name, values in zip(("starts", "ends"), edges):
        within = {f"within_{limit}_ms": float((np.abs(values) <= limit).mean()) for limit in TOLERANCES_MS}
        result[name] = {"mean_ms": float(values.mean()), "median_abs_ms": float(np.median(np.abs(values))), **within}
    return result


def _spoken(alignments: Alignments, utt_id: str) -> Tuple[List[str], np.ndarray]:
    """Words of an utterance in lower case, and their starts and ends ``[2, words]``. Pauses, which are intervals in
    TextGrids, are left out."""
    start, end, unit = alignments.intervals[utt_id]
    names = [alignments.names[number].lower() for number in unit]
    spoken = [place for place, name in enumerate(names) if name not in SILENCES]
    return [names[place] for place in spoken], np.stack([start, end])[:, spoken]
