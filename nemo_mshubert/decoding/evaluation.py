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

"""Word and character error rates of a CTC model on manifests, with predictions and cached log-probabilities."""

import os
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Sequence, Set

import numpy as np
import torch
from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
from nemo.utils import logging

from nemo_mshubert.alphabet import pieces_of_text
from nemo_mshubert.data.batching import batches_by_length
from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.data.manifest import utterance_id, write_manifest
from nemo_mshubert.decoding.acoustic import manifest_log_probs
from nemo_mshubert.decoding.config import LexiconBeamConfig
from nemo_mshubert.decoding.error_rates import character_errors, word_errors
from nemo_mshubert.decoding.greedy import greedy_ids, greedy_text
from nemo_mshubert.decoding.log_probs import checked_log_probs, write_log_probs
from nemo_mshubert.decoding.references import read_references, require_writing
from nemo_mshubert.decoding.results import (
    Results,
    earlier_results,
    require_same_set,
    source_of,
    with_new,
    write_results,
)
from nemo_mshubert.decoding.unfinished import Unfinished, Window
from nemo_mshubert.device import available_cores, choose_device
from nemo_mshubert.models.loading import restore_model
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.parallel.launched import ALONE, LaunchedRanks
from nemo_mshubert.whole_files import PathLike

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of weights and activations
WINDOW_SECONDS = 1800  # of audio, lost at most if an evaluation is interrupted; of similar lengths, as in a batch


class Decoder(NamedTuple):
    """A way from log-probabilities to texts.

    Attributes:
        decode: utterance ids, log-probabilities ``[T, V + 1]`` of each -> texts.
        setup: JSON values on which the texts depend besides the log-probabilities.
        processes: entered while ``decode`` is in use.
    """

    decode: Callable[[List[str], List[np.ndarray]], List[str]]
    setup: Dict[str, Any] = {}
    processes: ContextManager = nullcontext()


def load_ctc_model(path: str, device: str = "auto", precision: str = "fp32") -> EncDecCTCModel:
    """Restore a CTC ``.nemo`` for inference; raises ``ValueError`` for another kind of model."""
    model = restore_model(path)
    if not isinstance(model, EncDecCTCModel):
        raise ValueError(
            f"{path}: a {type(model).__name__}, expected a CTC model. Make one with scripts/ssl_to_ctc.py."
        )
    if getattr(model, "output_layer_is_random", False):
        raise ValueError(
            f"{path}: has no output layer over letters. Fine-tune it (scripts/ssl_to_ctc.py, scripts/finetune_ctc.py) "
            "and evaluate the result."
        )
    return model.to(device=choose_device(device), dtype=PRECISIONS[precision]).eval()


def letters_of(model: EncDecCTCModel) -> Optional[List[str]]:
    """The labels of a letter model; None for a model with BPE tokens."""
    return None if isinstance(model, EncDecCTCModelBPE) else list(model.decoder.vocabulary)


def characters_of(model: EncDecCTCModel) -> Set[str]:
    """The characters of the model's texts: those of its letters or, without the space, of its word pieces."""
    letters = letters_of(model)
    return set(letters if letters else "".join(pieces_of_text(model.decoder.vocabulary)))


def greedy_decoder(model: EncDecCTCModel) -> Decoder:
    """Greedy decoding of letters or BPE tokens, whatever strategy the model was saved with.

    NeMo's own greedy decoding removes the space before an apostrophe, which it regards as punctuation: "give me'em"
    for "give me 'em".
    """
    letters = letters_of(model)

    def text_of(log_probs_TV: np.ndarray) -> str:
        if letters is None:
            return model.tokenizer.ids_to_text(greedy_ids(log_probs_TV))
        return greedy_text(log_probs_TV, letters)

    return Decoder(lambda utterances, log_probs: [text_of(log_probs_TV) for log_probs_TV in log_probs])


def lexicon_decoder(model: EncDecCTCModel, config: LexiconBeamConfig, workers: Optional[int] = None) -> Decoder:
    """Beam search over the words of a lexicon with an n-gram LM, by default in one process per core of this rank.
    Raises ``ValueError`` for a model without letters."""
    if letters_of(model) is None:
        raise ValueError(
            "the lexicon beam search spells words in letters, but this model has BPE tokens. Evaluate it greedily: "
            "leave out --decode; or fine-tune a letter model, which ssl_to_ctc.py makes without --tokenizer_dir."
        )
    # Imported here: greedy evaluation does not need the extra [decoding].
    from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
    from nemo_mshubert.decoding.parallel import ParallelDecoder

    decoder = LexiconBeamSearchDecoder(list(model.decoder.vocabulary), config)
    pool = ParallelDecoder(decoder, workers or cores_per_rank())

    def decode(utterances: List[str], log_probs: List[np.ndarray]) -> List[str]:
        hypotheses = pool.decode_all(zip(utterances, log_probs), progress=f"beam {config.beam_size}")
        return [hypothesis.text for hypothesis in hypotheses]

    contents = [file_digest(path) for path in (config.lm, config.lexicon)]
    return Decoder(decode, {**asdict(config), "contents": contents}, pool)


def cores_per_rank() -> int:
    """This process's share of the cores, which other processes of torchrun on this machine use, too."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def evaluate_manifests(
    model: EncDecCTCModel,
    name: str,
    manifests: Sequence[PathLike],
    output: PathLike,
    decoders: Dict[str, Decoder],
    batch_seconds: float = 120,
    ranks: LaunchedRanks = ALONE,
) -> Optional[Results]:
    """Run the model once over each manifest, decode with each of ``decoders``, and write the results to ``output``.

    Writes ``<manifest>.log_probs.safetensors`` (for letter models; used by scripts/tune_decoding.py) and, per decoder,
    ``<manifest>.<decoder>.json``: the manifest with ``pred_text`` and the word errors of each line. After each
    manifest, its results are added to ``results.json``, which keeps those of this model for other manifests and other
    decodings. If there are several ``ranks``, they share the utterances for both model and decoding; rank 0 writes.

    If it is interrupted, the same call on the same number of ranks goes on where it was (`unfinished`).

    Args:
        name: name of the model, for ``results.json``.

    Returns:
        per manifest and decoder: number of utterances, WER, CER (as fractions) and their error counts; None on ranks
        other than 0.

    Raises:
        FileNotFoundError, ValueError: before the model runs: `read_references` rejects a manifest, texts are in
            another case or Unicode form than the model's letters, or ``output`` holds results of another model or of
            another manifest with the same file name. Later: audio is unreadable, or log-probabilities are NaN.
    """
    sets = {manifest: _read(manifest, characters_of(model)) for manifest in manifests}
    path, new, weights = Path(output) / "results.json", {}, weights_fingerprint(model)
    stored = earlier_results(path, name, weights)
    sources = {manifest: source_of(manifest) for manifest in manifests}
    for manifest, source in sources.items():
        require_same_set(path, stored, Path(manifest).stem, source)
    setups = {decoder_name: decoder.setup for decoder_name, decoder in decoders.items()}
    unfinished = []
    with ExitStack() as stack:
        for decoder in decoders.values():
            stack.enter_context(decoder.processes)
        for manifest, entries in sets.items():
            manifest_name, source = Path(manifest).stem, sources[manifest]
            setup = {"weights": weights, "manifest": source.sha256, "decoders": setups}
            unfinished.append(Unfinished(output, manifest_name, setup, ranks))
            share = entries[ranks.rank :: ranks.count]
            parts = ranks.gather(_decoded(model, manifest_name, share, unfinished[-1], decoders, batch_seconds))
            if parts is not None:
                new[manifest_name] = _write_set(Path(output), manifest_name, entries, letters_of(model), parts)
                stored = with_new(stored, manifest_name, source, new[manifest_name])
                write_results(path, stored)
    ranks.wait()  # until rank 0 has written the last results
    for own in unfinished:
        own.remove()
    return new or None


def _read(manifest: PathLike, characters: Set[str]) -> List[Dict[str, Any]]:
    lines = read_references(manifest)
    for where, entry in lines:
        require_writing(entry["text"], characters, where)
    return [entry for _, entry in lines]


def _decoded(
    model: EncDecCTCModel,
    name: str,
    entries: Sequence[Dict[str, Any]],
    unfinished: Unfinished,
    decoders: Dict[str, Decoder],
    batch_seconds: float,
) -> Window:
    """Log-probabilities and texts of this rank's utterances, window by window; those of finished windows are read."""
    if unfinished.has(0):
        logging.info(f"{name}: goes on behind what an interrupted evaluation has finished in {unfinished.folder}")
    windows = batches_by_length([entry["duration"] for entry in entries], WINDOW_SECONDS)
    log_probs, texts = {}, {decoder_name: {} for decoder_name in decoders}  # by index into entries
    for number, window in enumerate(map(sorted, windows)):
        if unfinished.has(number):
            found = unfinished.read(number)
        else:
            found = _decoded_window(model, name, [entries[index] for index in window], decoders, batch_seconds)
            unfinished.write(number, model.decoder.vocabulary, found)
        log_probs.update(zip(window, found.log_probs))
        for decoder_name, some in found.texts.items():
            texts[decoder_name].update(zip(window, some))
    in_order = {decoder_name: _in_order(found) for decoder_name, found in texts.items()}
    return Window(_in_order(log_probs), in_order)


def _in_order(by_index: Dict[int, Any]) -> List[Any]:
    return [by_index[index] for index in sorted(by_index)]


def _decoded_window(
    model: EncDecCTCModel,
    name: str,
    entries: Sequence[Dict[str, Any]],
    decoders: Dict[str, Decoder],
    batch_seconds: float,
) -> Window:
    ids, labels = [utterance_id(entry) for entry in entries], len(model.decoder.vocabulary)
    by_index = manifest_log_probs(model, entries, batch_seconds, progress=name)
    log_probs = [checked_log_probs(by_index[index], labels, utterance) for index, utterance in enumerate(ids)]
    texts = {decoder_name: decoder.decode(ids, log_probs) for decoder_name, decoder in decoders.items()}
    return Window(log_probs if letters_of(model) else [], texts)


def _write_set(
    output: Path, name: str, entries: Sequence[Dict[str, Any]], letters: Optional[List[str]], parts: List[Window]
) -> Dict[str, Dict[str, Any]]:
    """Write what all ranks have found for the manifest of this name.

    Returns:
        per decoder: number of utterances, WER, CER (as fractions) and their error counts.
    """
    ids = [utterance_id(entry) for entry in entries]
    if letters:
        log_probs = _interleave([part.log_probs for part in parts])
        references = [entry["text"] for entry in entries]
        write_log_probs(output / f"{name}.log_probs.safetensors", letters, zip(ids, references, log_probs))
    texts = {
        decoder_name: _interleave([part.texts[decoder_name] for part in parts]) for decoder_name in parts[0].texts
    }
    results = {decoder_name: error_summary(entries, found) for decoder_name, found in texts.items()}
    predictions = {decoder_name: _predictions(entries, found) for decoder_name, found in texts.items()}
    for decoder_name, lines in predictions.items():  # last: results.json follows at once
        write_manifest(output / f"{name}.{decoder_name}.json", lines)
    return results


def _interleave(parts: Sequence[Sequence[Any]]) -> List[Any]:
    """The whole sequence, of which part i of n holds the items i, i + n, i + 2n ..."""
    whole: List[Any] = [None] * sum(map(len, parts))
    for index, part in enumerate(parts):
        whole[index :: len(parts)] = part
    return whole


def error_summary(entries: Sequence[Dict[str, Any]], texts: Sequence[str]) -> Dict[str, Any]:
    """WER and CER of a set, and their error counts."""
    pairs = [(entry["text"], text) for entry, text in zip(entries, texts)]
    words, characters = word_errors(pairs), character_errors(pairs)
    return {
        "utterances": len(pairs),
        "wer": words.rate,
        "cer": characters.rate,
        "words": words._asdict(),
        "characters": characters._asdict(),
    }


def _predictions(entries: Sequence[Dict[str, Any]], texts: Sequence[str]) -> List[Dict[str, Any]]:
    lines = []
    for entry, text in zip(entries, texts):
        counts = word_errors([(entry["text"], text)])._asdict()
        del counts["reference_length"]
        lines.append({**entry, "pred_text": text, "word_errors": counts})
    return lines
