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

"""Batches for pre-training: crops on the frame grid, with the labels of exactly their frames.

    samples    |--------------------- utterance ----------------------|
    frames      0   1   2   3   4   5   6   7   8   9
    crop                    |-- start * 320 ... (F - 1) * 320 + 400 --|     F frames, labels [start, start + F)

Legend: B utterances, S samples, T frames. A batch holds
    audio       float [B, S], zero after the end of an utterance
    length      long [B], samples
    labels      {clusters: long [B, T]}, -100 after the end of an utterance; `nested` label makers give the finest set
                only
    utterances  list of B utterance ids
"""

import random
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch.nn.utils.rnn import pad_sequence

from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.unreadable import MAX_UNREADABLE, UnreadableCount, reason
from nemo_mshubert.modules.frames import HOP_SAMPLES, IGNORED_LABEL, RECEPTIVE_FIELD_SAMPLES, frame_count

CROPS = ("shortest", "pad")
Example = Tuple[str, np.ndarray, Dict[int, np.ndarray]]  # utterance id, samples [S], labels of each stored set [T]


class PretrainingDataset(torch.utils.data.Dataset):
    """Turn ``(batch number, cuts)`` into a batch.

    Args:
        maker_id: id of the label maker whose labels the model expects; other labels are an error.
        label_sets: numbers of clusters of the label sets that every utterance must have.
        crop: ``"shortest"``: every utterance is cropped to the number of frames of the shortest one in its batch, so
            nothing is padded (fairseq: ``pad_audio: false``); ``"pad"``: shorter utterances are padded.
        seed: determines the crops, together with the batch number, so that a resumed run repeats them.
        max_unreadable: how many unreadable utterances each loader process skips and logs before it raises an error.

    Cuts come from NeMo's loader with ``truncate_offset_type: start``. Their duration is the length of the crop; its
    position is drawn here, on the frame grid.
    """

    def __init__(
        self,
        maker_id: str,
        label_sets: Sequence[int],
        crop: str = "shortest",
        seed: int = 0,
        max_unreadable: int = MAX_UNREADABLE,
    ):
        if crop not in CROPS:
            raise ValueError(f"crop: expected one of {CROPS}, found {crop!r}.")
        self.maker_id = maker_id
        self.label_sets = list(label_sets)
        self.crop = crop
        self.seed = seed
        self.unreadable = UnreadableCount(max_unreadable)

    def __getitem__(self, numbered_cuts: Tuple[int, CutSet]) -> Dict[str, Any]:
        number, cuts = numbered_cuts
        rng = random.Random(f"{self.seed}-{number}")
        labelled = [(cut, self._labels_of(cut)) for cut in cuts]
        # a decoder may return a few samples fewer than were labelled, and so one frame fewer
        available = [min(frame_count(cut.recording.num_samples), labels.num_frames) for cut, labels in labelled]
        frames = [min(frame_count(cut.num_samples), most) for (cut, _), most in zip(labelled, available)]
        if self.crop == "shortest":
            frames = [min(frames)] * len(frames)
        examples = []
        for (cut, labels), num_frames, most in zip(labelled, frames, available):
            start_frame = rng.randint(0, most - num_frames)
            samples = self._read(cut, labels, start_frame, num_frames)
            if samples is not None:
                examples.append((cut.recording.id, samples, labels.crop(start_frame, num_frames)))
        return collate(examples or [self._silence()])

    def _labels_of(self, cut: Cut) -> FrameLabels:
        where = f"utterance {cut.recording.id}"
        labels = FrameLabels.from_manifest((cut.custom or {}).get("labels"), where, self.maker_id, self.label_sets)
        surplus = cut.recording.num_samples - labels.num_samples
        if surplus < -HOP_SAMPLES or (labels.offset is None and surplus > HOP_SAMPLES):
            raise ValueError(
                f"{where}: labelled with {labels.num_samples} samples, but the audio has {cut.recording.num_samples}. "
                "The audio changed after labelling; label the manifest again with scripts/label.py."
            )
        return labels

    def _read(self, cut: Cut, labels: FrameLabels, start_frame: int, num_frames: int) -> Optional[np.ndarray]:
        """Samples ``[S]`` of the crop, or None (logged and counted) if the audio cannot be read."""
        segment_start = 0  # of the labelled segment in the recording; 0 if a tar member holds the segment alone
        surplus = cut.recording.num_samples - labels.num_samples  # outside the segment, or added by a decoder
        if labels.offset and surplus > labels.offset * cut.sampling_rate / 2:
            segment_start = round(labels.offset * cut.sampling_rate)
        start = segment_start + start_frame * HOP_SAMPLES
        num_samples = (num_frames - 1) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
        try:
            audio = cut.recording.load_audio(
                channels=cut.channel, offset=start / cut.sampling_rate, duration=num_samples / cut.sampling_rate
            )
            problem = self._problem_of(audio)
        except Exception as error:  # of the codec: a broken or missing file; of Lhotse: fewer samples than asked for
            problem = reason(error)
        if problem is None:
            self.unreadable.note_readable()
            return audio[0]
        self.unreadable.add(cut.recording.id, problem)
        return None

    @staticmethod
    def _problem_of(audio: np.ndarray) -> Optional[str]:
        if audio.shape[0] != 1:
            return f"{audio.shape[0]} channels, expected 1; mix down or set channel_selector"
        if not np.isfinite(audio).all():
            return "NaN or infinite samples"
        return None

    def _silence(self) -> Example:
        """Replaces a batch without any readable utterance, so that the number of batches stays the same. It has no
        weight: all its labels are ignored."""
        unlabelled = np.full(2, IGNORED_LABEL)
        silence = np.zeros(HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES, dtype=np.float32)
        return "silence", silence, {clusters: unlabelled for clusters in self.label_sets}


def collate(examples: List[Example]) -> Dict[str, Any]:
    """Pad examples into a batch."""
    ids, waves, labels = zip(*examples)
    audio = pad_sequence([torch.from_numpy(wave).float() for wave in waves], batch_first=True)  # [B, S]
    length = torch.tensor([len(wave) for wave in waves])
    padded = {}
    for clusters in labels[0]:
        rows = [torch.from_numpy(sets[clusters]) for sets in labels]
        padded[clusters] = pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL)  # [B, T]
    return {"audio": audio, "length": length, "labels": padded, "utterances": list(ids)}
