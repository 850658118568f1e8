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

"""A sample of the frames of manifests, to fit k-means on.

Audio is streamed in windows of ten minutes, which threads read ahead. Of each window only the sample is kept.
"""

import logging
from typing import Any, Dict, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from nemo_mshubert.clustering.audio_windows import audio_windows, window_features
from nemo_mshubert.clustering.features import FeatureMaker
from nemo_mshubert.clustering.kmeans import sample_frames
from nemo_mshubert.data.manifest import count_lines, iter_manifest
from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)


def sample_corpus_frames(
    manifests: Sequence[PathLike], features: FeatureMaker, max_frames: int, seed: int, skip_unusable: bool = False
) -> np.ndarray:
    """Uniform sample of the frames of all manifests, float32 ``[N <= max_frames, D]``; fit on training data only.

    Raises:
        FileNotFoundError, ValueError: the audio of a line is missing or unusable (the first such line). With
            ``skip_unusable`` such lines are logged instead.
    """
    total = sum(count_lines(manifest) for manifest in manifests)
    lines = (line for manifest in manifests for line in iter_manifest(manifest))
    with tqdm(total=total, desc="sampling frames", unit=" utterances", disable=None) as progress:

        def stream() -> Iterator[np.ndarray]:
            for window in audio_windows(lines, _log_unusable if skip_unusable else None):
                yield from window_features(window, features)
                progress.update(len(window))

        return sample_frames(stream(), max_frames, seed)


def _log_unusable(entry: Dict[str, Any], reason: str) -> None:
    logger.warning("left out: %s", reason)
