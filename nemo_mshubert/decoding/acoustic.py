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

"""Log-probabilities of a CTC model for the utterances of a manifest: in batches, and for long files in overlapping
chunks."""

import itertools
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from nemo.collections.asr.models import EncDecCTCModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.batching import batches_by_length
from nemo_mshubert.data.manifest import utterance_id
from nemo_mshubert.data.read_ahead import read_ahead
from nemo_mshubert.modules.frames import FRAME_RATE, HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, frame_count
from nemo_mshubert.modules.unit_variance import to_unit_variance

# The cost of attention grows with the square of the length. HuBERT's training crops are 15.6 s, so a minute gives more
# context than the model has ever seen. Five seconds on either side of a cut are computed as context and not kept.
MAX_CHUNK_SECONDS = 60
CONTEXT_SECONDS = 5


def is_long(num_samples: int) -> bool:
    """Whether audio of ``num_samples`` has more frames than a chunk."""
    return frame_count(num_samples) > MAX_CHUNK_SECONDS * FRAME_RATE


def chunk_frames(num_frames: int) -> Iterator[Tuple[int, int, int, int]]:
    """Cut a long utterance: ``(first frame computed, end, first frame kept, end)`` for each chunk.

        computed   |-- context --|---------- kept ----------|-- context --|
        next                     ...          |-- context --|---------- kept ----------|

    The kept parts cover the utterance without overlap; only the first and last chunk lack context on one side.
    """
    kept = (MAX_CHUNK_SECONDS - 2 * CONTEXT_SECONDS) * FRAME_RATE
    context = CONTEXT_SECONDS * FRAME_RATE
    for start in range(0, num_frames, kept):
        end = min(start + kept, num_frames)
        yield max(start - context, 0), min(end + context, num_frames), start, end


@torch.inference_mode()
def model_log_probs(model: EncDecCTCModel, waves: Sequence[np.ndarray]) -> List[np.ndarray]:
    """Log-probabilities ``[T, V + 1]`` (blank last) of 16 kHz waveforms, run as one batch."""
    length = torch.tensor([len(wave) for wave in waves])
    audio = pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)  # [B, S]
    log_probs, frames, _ = model.forward(
        input_signal=audio.to(model.device), input_signal_length=length.to(model.device)
    )
    return [row[:count].copy() for row, count in zip(log_probs.float().cpu().numpy(), frames.tolist())]


def long_log_probs(model: EncDecCTCModel, wave: np.ndarray) -> np.ndarray:
    """`model_log_probs` of one long waveform in chunks of a minute, so that memory does not grow with the square of
    its length.

    Raises:
        ValueError: the model does not make HuBERT's frames, at which the waveform is cut.
    """
    if not is_long(len(wave)):
        return model_log_probs(model, [wave])[0]
    parts = []
    with _scaled_as_a_whole(model.preprocessor, wave) as wave:
        for first, end, keep_first, keep_end in chunk_frames(frame_count(len(wave))):
            samples = wave[first * HOP_SAMPLES : (end - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES]
            log_probs = model_log_probs(model, [samples])[0]
            if len(log_probs) != end - first:
                raise ValueError(
                    f"The model makes {len(log_probs)} frames of {len(samples)} samples, HuBERT {end - first}, at "
                    f"which files of more than {MAX_CHUNK_SECONDS} s are cut. Cut them into shorter ones for this "
                    "model."
                )
            parts.append(log_probs[keep_first - first : keep_end - first])
    return np.concatenate(parts)


@contextmanager
def _scaled_as_a_whole(preprocessor: nn.Module, wave: np.ndarray) -> Iterator[np.ndarray]:
    """If the preprocessor scales its input, scale the whole wave instead of each chunk, so that a quiet minute stays
    quiet."""
    if not getattr(preprocessor, "normalized", False):
        yield wave
        return
    preprocessor.normalized = False
    try:
        yield to_unit_variance(wave)
    finally:
        preprocessor.normalized = True


def use_chunks(model: EncDecCTCModel) -> None:
    """Make ``model.transcribe()`` process files longer than a minute as in `long_log_probs`; training does not change.

    This applies to this object and to all its forward passes in evaluation mode. It is neither saved nor exported with
    the model.
    """
    model.forward = MethodType(_chunked_forward, model)
    model.export = MethodType(_export_stock_forward, model)


def _export_stock_forward(model: EncDecCTCModel, *args: Any, **kwargs: Any) -> Any:
    """``model.export()`` of the unchanged network: NeMo replaces ``forward`` in the class, which our ``forward`` would
    hide."""
    chunked = model.forward
    del model.forward
    try:
        return type(model).export(model, *args, **kwargs)
    finally:
        model.forward = chunked


def _chunked_forward(
    model: EncDecCTCModel,
    input_signal: Optional[Tensor] = None,
    input_signal_length: Optional[Tensor] = None,
    **processed: Any,
) -> Tuple[Tensor, Tensor, Tensor]:
    """`EncDecCTCModel.forward`: log-probabilities ``[B, T, V + 1]``, frames ``[B]`` and best labels ``[B, T]``."""
    stock = partial(type(model).forward, model)
    if input_signal is None or model.training or not is_long(input_signal.shape[1]):
        return stock(input_signal=input_signal, input_signal_length=input_signal_length, **processed)
    lengths = input_signal_length.tolist()
    rows = [long_log_probs(model, wave[:length].cpu().numpy()) for wave, length in zip(input_signal, lengths)]
    log_probs = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True).to(model.device)
    frames = torch.tensor([len(row) for row in rows], device=model.device)
    return log_probs, frames, log_probs.argmax(dim=-1)


def audio_batches(
    entries: Sequence[Dict[str, Any]], batch_seconds: float
) -> Iterator[Tuple[List[int], List[np.ndarray]]]:
    """Batches of similar duration, longest first: indices into ``entries``, and their samples ``[S]``, read ahead."""
    durations = [entry["duration"] for entry in entries]
    batches = list(batches_by_length(durations, batch_seconds))
    audio = read_ahead(
        itertools.chain.from_iterable(batches),
        lambda index: load_audio(entries[index], utterance_id(entries[index])),
        lambda index: durations[index],
    )
    for batch in batches:
        yield batch, list(itertools.islice(audio, len(batch)))


def manifest_log_probs(
    model: EncDecCTCModel, entries: Sequence[Dict[str, Any]], batch_seconds: float, progress: str
) -> Dict[int, np.ndarray]:
    """Log-probabilities of all utterances: index into ``entries`` -> ``[T, V + 1]``, with T = 0 for an utterance that
    is shorter than a frame.

    Raises:
        FileNotFoundError, ValueError: audio cannot be read; names the utterance.
    """
    model.eval()
    results: Dict[int, np.ndarray] = {}
    with tqdm(total=len(entries), desc=progress, unit="utt") as bar:
        for batch, waves in audio_batches(entries, batch_seconds):
            if is_long(len(waves[0])):  # the first is the longest
                results.update(zip(batch, (long_log_probs(model, wave) for wave in waves)))
            else:
                results.update(zip(batch, model_log_probs(model, waves)))
            bar.update(len(batch))
    return results
