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

"""Times of words and phones from the events of espeak."""

import pytest

from nemo_mshubert.data.synthetic.espeak import Event
from nemo_mshubert.data.synthetic.word_times import Span, align

pytestmark = pytest.mark.unit


def events(*marks):
    """ "at:sample" announces the word at that character, "phone:sample" a phone."""
    return [
        Event(name.isdigit(), int(name) if name.isdigit() else 0, sample, "" if name.isdigit() else name)
        for name, sample in marks
    ]


def test_align_on_events_with_known_answers():
    """The three oddities of espeak: joined words, words announced too early, pauses."""
    joined = events(("0", 0), ("I", 10), ("n", 100), ("D", 200), ("@", 300), ("7", 400), ("s", 400), ("_:", 500))
    assert align("in the sea", joined)[0] == [Span("in", 0, 200), Span("the", 200, 400), Span("sea", 400, 500)]
    linked = events(("0", 0), ("0", 0), ("n", 100), ("3", 100), ("a#", 160), ("_:", 300))
    assert align("on a", linked)[0] == [Span("on", 0, 160), Span("a", 160, 300)]
    pause = events(("0", 0), ("n", 0), ("oU", 50), ("_:", 100), ("3", 250), ("h", 260), ("_", 400))
    words, phones = align("no ha", pause)
    assert words == [Span("no", 0, 100), Span("ha", 250, 400)]
    assert phones == [Span("n", 0, 50), Span("oU", 50, 100), Span("h", 260, 400)]
    unknown = events(("0", 0), ("h", 10), ("a", 20), ("_:", 90))
    assert align("ha ha", unknown) is None, "words joined in an unknown way must not get invented times"
