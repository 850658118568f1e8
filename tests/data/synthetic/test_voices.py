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

"""The speakers."""

import pytest

from nemo_mshubert.data.synthetic.voices import SUBSETS, all_voices

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("seed", [0, 1])
def test_every_voice_is_one_person(seed):
    """The same timbre in train and test would be a leak, even under two numbers."""
    voices = all_voices(seed)
    assert len({voice.speaker for voice in voices}) == len({voice.variant for voice in voices}) == len(voices) >= 50
    for subset in SUBSETS:
        assert len({voice.accent for voice in voices if voice.subset == subset}) >= 5
