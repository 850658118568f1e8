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

"""The speakers of the corpus: accents, timbres and manners of speaking of espeak-ng."""

import random
from typing import List, NamedTuple

SUBSETS = ("train-clean", "dev-clean", "test-clean")
# "en" is espeak's British English
ACCENTS = "en-us en en-gb-x-rp en-us-nyc en-gb-scotland en-029 en-gb-x-gbclan en-gb-x-gbcwmd".split()
# espeak's voice variants that sound like a person. Each is one speaker, so no timbre occurs in two subsets.
FEMALE = {
    "train-clean": "f1 f2 f4 Andrea Annie belinda linda steph steph3 aunty".split(),
    "dev-clean": "f3 anika steph2".split(),
    "test-clean": "f5 Alicia grandma".split(),
}
MALE = {
    "train-clean": "m1 m2 m4 m5 m7 Andy Denis Diogo Gene Hugo Lee Marco Mario adam antonio benjamin boris ian".split()
    + "john michel miguel norbert paul pedro quincy robert sandro travis victor".split(),
    "dev-clean": "m3 Henrique Michael caleb edward".split(),
    "test-clean": "m6 m8 Jacky max pablo".split(),
}


class Voice(NamedTuple):
    """A numbered speaker: an English accent, a timbre, and how this person uses them."""

    speaker: str
    subset: str
    gender: str  # F or M, as in SPEAKERS.TXT
    accent: str
    variant: str
    pitch: int  # espeak: 0 to 99, 50 is the variant's own
    pitch_range: int  # espeak: 0 to 99, 50 is normal
    rate: int  # words per minute

    @property
    def name(self) -> str:
        return f"{self.accent}+{self.variant}"


def all_voices(seed: int) -> List[Voice]:
    """All voices; the sexes alternate within a subset. The seed determines accent, pitch and rate."""
    voices = []
    for subset in SUBSETS:
        females, males = list(FEMALE[subset]), list(MALE[subset])
        rng = random.Random(f"voices {seed} {subset}")
        accents = rng.sample(ACCENTS, len(ACCENTS))
        while females or males:
            for gender, variants in (("F", females), ("M", males)):
                if variants:
                    accent = accents[len(voices) % len(accents)]
                    manner = (rng.randint(35, 65), rng.randint(35, 70), rng.randint(140, 180))
                    voices.append(Voice(str(1001 + len(voices)), subset, gender, accent, variants.pop(0), *manner))
    return voices
