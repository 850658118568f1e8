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

"""One speaker of the corpus reads sentences aloud in a quiet room; the recordings are written to disk."""

import io
import json
import random
import signal
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import soundfile
import soxr

from nemo_mshubert.data.manifest import SAMPLE_RATE
from nemo_mshubert.data.synthetic.espeak import Espeak
from nemo_mshubert.data.synthetic.sentences import make_sentence, sentence_subset
from nemo_mshubert.data.synthetic.voices import Voice
from nemo_mshubert.data.synthetic.word_times import Span, align
from nemo_mshubert.whole_files import atomic_write

MIN_SECONDS, MAX_SECONDS = 2.0, 8.0  # of an utterance
UTTERANCES_PER_CHAPTER = 25


class Utterance(NamedTuple):
    """Words and phones are those of align_words.jsonl.gz and align_phones.jsonl.gz; times in seconds."""

    utt_id: str
    text: str
    seconds: float
    words: List[Dict[str, Any]]
    phones: List[Dict[str, Any]]

    def folder(self, root: Path, subset: str) -> Path:
        speaker, chapter, _ = self.utt_id.split("-")
        return root / "LibriSpeech" / subset / speaker / chapter

    def audio(self, root: Path, subset: str) -> Path:
        return self.folder(root, subset) / f"{self.utt_id}.flac"

    def transcripts(self, root: Path, subset: str) -> Path:
        return self.folder(root, subset) / f"{self.utt_id.rpartition('-')[0]}.trans.txt"


def record(speech: np.ndarray, speech_rate: int, rng: np.random.Generator) -> Tuple[np.ndarray, float]:
    """Put int16 ``speech`` into a quiet room: with its own level, silence around it, and low-pass noise 25 to 40 dB
    below it.

    Returns float32 samples ``[S]`` at 16 kHz within -1 and 1, and the seconds before the speech begins.
    """
    speech = soxr.resample(speech.astype(np.float32) / 32768, speech_rate, SAMPLE_RATE)
    speech *= 10 ** (rng.uniform(-30, -22) / 20) / np.sqrt(np.mean(speech**2))
    lead, tail = rng.integers(SAMPLE_RATE // 8, SAMPLE_RATE // 2, size=2)
    samples = np.pad(speech, (lead, tail))
    noise = np.convolve(rng.standard_normal(len(samples) + 31), np.geomspace(1, 0.05, 32), mode="valid")
    noise *= np.sqrt(np.mean(speech**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(25, 40) / 20)
    samples = samples + noise
    return (samples * min(1, 0.95 / np.abs(samples).max())).astype(np.float32), lead / SAMPLE_RATE


def _seconds(spans: List[Span], kind: str, speech_rate: int, offset: float) -> List[Dict[str, Any]]:
    return [
        {kind: text, "start": round(offset + start / speech_rate, 4), "end": round(offset + end / speech_rate, 4)}
        for text, start, end in spans
    ]


def read_aloud(voice: Voice, seconds: float, seed: int) -> Iterator[Tuple[Utterance, np.ndarray]]:
    """Utterances of one voice with their samples, until ``seconds`` are filled, but at least one.

    The same arguments give the same samples only in a process in which espeak has not spoken before: the flutter of
    a voice continues from one utterance to the next, and cannot be reset.
    """
    engine = Espeak()
    rng = random.Random(f"text {seed} {voice.speaker}")
    filled, count = 0.0, 0
    while True:
        text = make_sentence(rng)
        if sentence_subset(text) != voice.subset:
            continue
        speech, events = engine.speak(text, voice, round(voice.rate * rng.uniform(0.95, 1.05)))
        samples, lead = record(speech, engine.sample_rate, np.random.default_rng([seed, int(voice.speaker), count]))
        length = len(samples) / SAMPLE_RATE
        spans = align(text, events)
        if spans is None or not MIN_SECONDS <= length <= MAX_SECONDS:
            continue
        if count and filled + length / 2 > seconds:
            return
        chapter, number = divmod(count, UTTERANCES_PER_CHAPTER)
        utt_id = f"{voice.speaker}-{voice.speaker}{chapter:02d}-{number:04d}"
        words, phones = (
            _seconds(spans_of_kind, kind, engine.sample_rate, lead)
            for kind, spans_of_kind in zip(("word", "phone"), spans)
        )
        yield Utterance(utt_id, text, length, words, phones), samples
        filled, count = filled + length, count + 1


def _write_audio(path: Path, samples: np.ndarray) -> None:
    """Write 16-bit FLAC, unless the whole file exists already."""
    try:
        if soundfile.info(path).frames == len(samples):
            return
    except soundfile.LibsndfileError:
        pass  # absent or broken
    flac = io.BytesIO()  # if soundfile itself wrote to the disk, an error of one write could leave a broken file
    soundfile.write(flac, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    with atomic_write(path, "wb") as stream:
        stream.write(flac.getvalue())


def _record_of(root: Path, voice: Voice) -> Path:
    return root / "speakers" / f"{voice.speaker}.jsonl"


def synthesize_speaker(voice: Voice, root: Path, seconds: float, seed: int) -> None:
    """Write one speaker's audio and transcripts, and then the record that marks the speaker as finished.

    Ctrl-C, which a terminal sends to this process, too, waits until then: as an exception in a callback of espeak-ng
    or libsndfile it would be dropped, with a piece of the speech or its times.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        _write_speaker(voice, root, seconds, seed)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write_speaker(voice: Voice, root: Path, seconds: float, seed: int) -> None:
    utterances = []
    transcripts: Dict[Path, List[str]] = {}
    for utterance, samples in read_aloud(voice, seconds, seed):
        _write_audio(utterance.audio(root, voice.subset), samples)
        lines = transcripts.setdefault(utterance.transcripts(root, voice.subset), [])
        lines.append(f"{utterance.utt_id} {utterance.text.upper()}\n")
        utterances.append(utterance)
    for path, lines in transcripts.items():
        with atomic_write(path) as stream:
            stream.writelines(lines)
    with atomic_write(_record_of(root, voice)) as stream:
        stream.writelines(json.dumps(utterance._asdict()) + "\n" for utterance in utterances)


def finished(root: Path, voice: Voice) -> List[Utterance]:
    """A speaker's utterances if all their files exist, else an empty list."""
    path = _record_of(root, voice)
    if not path.is_file():
        return []
    with open(path, encoding="utf-8") as stream:
        utterances = [Utterance(**json.loads(line)) for line in stream]
    files = [
        file
        for utterance in utterances
        for file in (utterance.audio(root, voice.subset), utterance.transcripts(root, voice.subset))
    ]
    return utterances if all(file.is_file() and file.stat().st_size for file in files) else []
