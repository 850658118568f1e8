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

"""Word error rates in the paper's Table 1, in percent: with a 4-gram LM, beam 500 on dev and 1500 on test sets.

The rows of other methods are those that the paper cites; it has no row for HuBERT and "- Swap" at 960 hours.
"""

from typing import Dict, Optional, Tuple

SETS = ("dev-clean", "dev-other", "test-clean", "test-other")

# split -> method -> WER on SETS, in the order of the paper; None if the paper has a dash.
REPORTED: Dict[str, Dict[str, Tuple[Optional[float], ...]]] = {
    "1h": {
        "wav2vec 2.0": (5.0, 10.8, 5.5, 11.3),
        "HuBERT": (5.6, 10.9, 6.1, 11.3),
        "WavLM": (None, None, 5.7, 10.8),
        "data2vec": (4.0, 8.5, 4.6, 9.1),
        "MS-HuBERT": (5.6, 10.9, 5.9, 11.3),
        "- Swap": (5.9, 11.6, 6.2, 12.3),
    },
    "10h": {
        "wav2vec 2.0": (3.8, 9.1, 4.3, 9.5),
        "HuBERT": (3.9, 9.0, 4.3, 9.4),
        "WavLM": (None, None, 4.3, 9.2),
        "data2vec": (3.3, 7.5, 3.9, 8.1),
        "MS-HuBERT": (3.6, 8.5, 4.1, 8.8),
        "- Swap": (3.8, 8.6, 4.1, 9.2),
    },
    "100h": {
        "wav2vec 2.0": (2.7, 7.9, 3.4, 8.0),
        "HuBERT": (2.7, 7.8, 3.4, 8.1),
        "WavLM": (None, None, 3.4, 7.7),
        "data2vec": (2.2, 6.4, 2.8, 6.8),
        "MS-HuBERT": (2.4, 7.1, 3.0, 7.2),
        "- Swap": (2.6, 6.9, 3.1, 7.4),
    },
    "960h": {
        "wav2vec 2.0": (2.0, 5.9, 2.6, 6.1),
        "data2vec": (None, None, None, 5.5),
        "MS-HuBERT": (1.8, 5.1, 2.4, 5.5),
    },
}
