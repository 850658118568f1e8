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

"""espeak-ng as a library, through ctypes: from a text it makes samples and the start times of words and phones."""

import ctypes
import os
from typing import List, NamedTuple, Tuple

import numpy as np

from nemo_mshubert.data.synthetic.voices import Voice

# Names and numbers of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_RETRIEVAL, AUDIO_OUTPUT_SYNCHRONOUS = 1, 2
INITIALIZE_PHONEME_EVENTS, INITIALIZE_DONT_EXIT = 0x0001, 0x8000
EVENT_LIST_TERMINATED, EVENT_WORD, EVENT_PHONEME = 0, 1, 7
RATE, PITCH, RANGE = 1, 3, 4
POS_CHARACTER, CHARS_UTF8 = 1, 1


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_void_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Event(NamedTuple):
    """A word (``text`` is empty) or phone (``text`` is its mnemonic) begins at ``sample``; ``character`` counts from
    0."""

    is_word: bool
    character: int
    sample: int
    text: str


def open_library(output: int, options: int) -> Tuple[ctypes.CDLL, int]:
    """The shared library of the wheel espeakng-loader, initialised, and the sample rate of its speech.

    Raises:
        ImportError: espeakng-loader, an optional package, is not installed.
        RuntimeError: it cannot load its data.
    """
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path()
    sample_rate = library.espeak_Initialize(output, 0, os.fsencode(data), options | INITIALIZE_DONT_EXIT)
    if sample_rate <= 0:
        raise RuntimeError(
            f"espeak-ng cannot load its data from {data}. Reinstall espeakng-loader; where that path is longer than "
            "150 characters, install it into a shorter one."
        )
    return library, sample_rate


class Espeak:
    """The speech engine. The library has global state: one engine per process; earlier speech affects later speech."""

    def __init__(self):
        self._library, self.sample_rate = open_library(AUDIO_OUTPUT_SYNCHRONOUS, INITIALIZE_PHONEME_EVENTS)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the breath noise; espeak's default is the clock
        self._callback = _CALLBACK(self._receive)  # kept alive here; espeak keeps only the pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave, num_samples, events) -> int:
        if wave and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (num_samples,)).copy())
        index = 0
        while events[index].type != EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type in (EVENT_WORD, EVENT_PHONEME):
                text = event.id.string.decode() if event.type == EVENT_PHONEME else ""
                self._events.append(Event(event.type == EVENT_WORD, event.text_position - 1, event.sample, text))
            index += 1
        return 0  # continue

    def speak(self, text: str, voice: Voice, rate: int) -> Tuple[np.ndarray, List[Event]]:
        """``text`` as int16 samples ``[S]`` at ``self.sample_rate``, and the starts of its words and phones."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.name!r}. Install espeakng-loader 0.2.4 or newer.")
        for parameter, value in ((RATE, rate), (PITCH, voice.pitch), (RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks, self._events = [], []
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, len(encoded), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        if not self._chunks:
            raise RuntimeError(f"espeak-ng said nothing for {text!r} with voice {voice.name}.")
        return np.concatenate(self._chunks), self._events
