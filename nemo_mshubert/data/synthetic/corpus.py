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

"""A small multi-voice English corpus, spoken by espeak-ng, in LibriSpeech's layout, with exact word and phone times.

    <root>/LibriSpeech/SPEAKERS.TXT
    <root>/LibriSpeech/train-clean/1003/100300/1003-100300-0000.flac    16 kHz, mono, 16 bit
    <root>/LibriSpeech/train-clean/1003/100300/1003-100300.trans.txt
    <root>/align_words.jsonl.gz     {"utt_id", "words": [{"word", "start", "end"}]}, seconds
    <root>/align_phones.jsonl.gz    {"utt_id", "complete", "phones": [{"phone", "start", "end"}]}, espeak's mnemonics
    <root>/corpus.json              the settings
    <root>/speakers/1003.jsonl      one finished speaker: texts, durations, times

An interrupted call can be continued: finished speakers and whole files are kept.
"""

import importlib.metadata
import json
import logging
import multiprocessing
import multiprocessing.connection
from pathlib import Path
from typing import Any, Dict, Iterator, List

from tqdm import tqdm

from nemo_mshubert.data.maybe_gzip import write_maybe_gzip
from nemo_mshubert.data.synthetic.speakers import Utterance, finished, synthesize_speaker
from nemo_mshubert.data.synthetic.voices import SUBSETS, Voice, all_voices
from nemo_mshubert.device import available_cores
from nemo_mshubert.whole_files import PathLike, atomic_write, claim_json

logger = logging.getLogger(__name__)
FORMAT_VERSION = 1  # raise it when the same settings no longer give the same files


def cast(minutes: Dict[str, float], seed: int) -> List[Voice]:
    """The voices of a corpus: each subset has one for every half minute, at least two, at most as many as exist."""
    chosen = []
    for subset in SUBSETS:
        voices = [voice for voice in all_voices(seed) if voice.subset == subset]
        chosen += voices[: max(2, round(2 * minutes[subset]))]
    return chosen


def _claim(root: Path, settings: Dict[str, Any]) -> None:
    """Write the settings to the folder, or compare them with those written there."""
    path = root / "corpus.json"
    found = claim_json(path, settings)
    if found != settings:
        different = [
            f"{key} {found.get(key)!r} (now {settings[key]!r})" for key in settings if found.get(key) != settings[key]
        ]
        raise ValueError(
            f"{path}: this folder holds another corpus, with {', '.join(different)}. Name another folder, or delete "
            "this one."
        )


def _write_speakers(root: Path, voices: List[Voice], spoken: Dict[Voice, List[Utterance]]) -> None:
    """LibriSpeech's SPEAKERS.TXT."""
    with atomic_write(root / "LibriSpeech" / "SPEAKERS.TXT") as stream:
        stream.write(";ID  |SEX| SUBSET           |MINUTES| NAME\n")
        for voice in voices:
            minutes = sum(utterance.seconds for utterance in spoken[voice]) / 60
            name = f"espeak-ng {voice.name}, pitch {voice.pitch}, range {voice.pitch_range}, {voice.rate} words/min"
            stream.write(f"{voice.speaker:<4} | {voice.gender} | {voice.subset:<16} | {minutes:<5.2f} | {name}\n")


def _write_times(path: Path, entries: Iterator[Dict[str, Any]]) -> None:
    write_maybe_gzip(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def _synthesize_speakers(root: Path, voices: List[Voice], seconds: Dict[str, float], seed: int) -> None:
    """Run one process per speaker, so that espeak's output does not depend on earlier speech."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["__main__", __name__])
    waiting, running = list(voices), {}
    with tqdm(total=len(voices), desc="speaking", unit="speaker") as progress:
        try:
            while waiting or running:
                while waiting and len(running) < available_cores():
                    voice = waiting.pop(0)
                    job = (voice, root, seconds[voice.subset], seed)
                    process = context.Process(target=synthesize_speaker, args=job)
                    process.start()
                    running[process.sentinel] = voice, process
                for ended in multiprocessing.connection.wait(list(running)):  # a pool would wait for a dead process
                    _check_ended(*running.pop(ended))
                    progress.update()
        finally:
            for _, process in running.values():
                process.join()


def _check_ended(voice: Voice, process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(
            f"speaker {voice.speaker} ({voice.name}): the process of espeak-ng ended with {process.exitcode} (its "
            "messages are above). Run the same command again; finished speakers are kept."
        )


def synthesize_corpus(
    root: PathLike, train_minutes: float, dev_minutes: float, test_minutes: float, seed: int = 0
) -> None:
    """Write the corpus into ``root``; see the head of this file. Finished speakers and whole files are kept.

    Each subset has its own voices and its own sentences. Its length is met within about two seconds per speaker.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: a subset has no minutes, or ``root`` holds a corpus with other settings.
    """
    root = Path(root)
    minutes = dict(zip(SUBSETS, (train_minutes, dev_minutes, test_minutes)))
    for subset, length in minutes.items():
        if length <= 0:
            raise ValueError(f"{subset}: {length} minutes asked for; each subset needs more than 0.")
    try:
        engine = f"espeakng-loader {importlib.metadata.version('espeakng-loader')}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("Synthetic speech needs espeak-ng: pip install espeakng-loader") from error
    _claim(root, {"format": FORMAT_VERSION, "engine": engine, "seed": seed, "minutes": minutes})

    voices = cast(minutes, seed)
    speakers = {subset: sum(voice.subset == subset for voice in voices) for subset in SUBSETS}
    seconds = {subset: 60 * minutes[subset] / speakers[subset] for subset in SUBSETS}
    unfinished = [voice for voice in voices if not finished(root, voice)]
    joint = [root / "align_words.jsonl.gz", root / "align_phones.jsonl.gz", root / "LibriSpeech" / "SPEAKERS.TXT"]
    if not unfinished and all(path.is_file() for path in joint):
        logger.info("%s: complete, nothing to do", root)
        return
    if unfinished:
        _synthesize_speakers(root, unfinished, seconds, seed)

    spoken = {voice: finished(root, voice) for voice in voices}
    utterances = [utterance for voice in voices for utterance in spoken[voice]]
    _write_times(joint[0], ({"utt_id": each.utt_id, "words": each.words} for each in utterances))
    _write_times(joint[1], ({"utt_id": each.utt_id, "complete": True, "phones": each.phones} for each in utterances))
    _write_speakers(root, voices, spoken)
