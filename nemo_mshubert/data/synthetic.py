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

"""A small multi-voice English corpus, spoken by espeak-ng, on disk as LibriSpeech is, with exact word and phone times.

    <root>/LibriSpeech/SPEAKERS.TXT
    <root>/LibriSpeech/train-clean/1003/100300/1003-100300-0000.flac    16 kHz, mono, 16 bit
    <root>/LibriSpeech/train-clean/1003/100300/1003-100300.trans.txt
    <root>/align_words.jsonl.gz     {"utt_id", "words": [{"word", "start", "end"}]}, seconds
    <root>/align_phones.jsonl.gz    {"utt_id", "complete", "phones": [{"phone", "start", "end"}]}, espeak's mnemonics
    <root>/corpus.json              what was asked for
    <root>/speakers/1003.jsonl      one finished speaker: texts, durations, times

From top to bottom: sentences, voices, the engine, its events as times, one speaker, the corpus.
"""

import ctypes
import gzip
import importlib.metadata
import json
import logging
import multiprocessing
import os
import random
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from nemo_mshubert.data.manifest import SAMPLE_RATE, PathLike, atomic_write

logger = logging.getLogger(__name__)

SUBSETS = ("train-clean", "dev-clean", "test-clean")
MIN_SECONDS, MAX_SECONDS = 2.0, 8.0  # of an utterance
UTTERANCES_PER_CHAPTER = 25
FORMAT_VERSION = 1  # raise it when the same settings no longer give the same files

# ---------------------------------------------------------------------------------------------------- sentences
# Upper case names a rule; alternatives are separated by "|", and those further left are drawn more often, as the
# common words of a language are.
GRAMMAR = {
    "SENTENCE": "CLAUSE | TIME CLAUSE | CLAUSE TIME | CLAUSE and THEN CLAUSE | CLAUSE but CLAUSE | SAYING "
    "| when CLAUSE CLAUSE | CLAUSE because CLAUSE | PLURAL PLURALDID WHERE | there was NP WHERE | THOUGHT "
    "| WISH | there were NUMBER THINGS WHERE | it was ADJ to DO OBJECT | QUESTION | ADVICE | CONDITION",
    "CLAUSE": "HUMAN PREDICATE | PRONOUN PREDICATE | HUMAN PREDICATE | the ADJ PERSON PREDICATE | ANIMALNP MOVED "
    "WHERE "
    "| the THING was ADJ | the WEATHER was ADJ",
    "PREDICATE": "DID OBJECT | DID OBJECT WHERE | MOVED WHERE | MOVED WHERE and DID OBJECT | was FEELING "
    "| had never DONE OBJECT | COULD DO OBJECT | MOVED MANNER WHERE | COULD DO OBJECT WHERE | was FEELING and MOVED "
    "WHERE "
    "| MANNER DID OBJECT | began to DO OBJECT | had already DONE OBJECT | TRIED to DO OBJECT",
    "SAYING": "HUMAN SAID that CLAUSE | PRONOUN SAID that PLURAL PLURALDID WHERE | HUMAN asked PRONOUN2 to DO OBJECT "
    "| the PERSON told PRONOUN2 about POSSESSIVE THING",
    "THOUGHT": "i THINK that CLAUSE | we KNOW that the PERSON PREDICATE | you may THINK that CLAUSE | nobody knew "
    "why CLAUSE",
    "WISH": "i SHOULD DO OBJECT TIME | we SHOULD DO OBJECT WHERE | they SHOULD DO POSSESSIVE THING | you SHOULD DO "
    "OBJECT",
    "QUESTION": "did you DO OBJECT TIME | where did HUMAN DO OBJECT | why was the PERSON so FEELING | who DID "
    "OBJECT WHERE "
    "| what did you DO WHERE | how many THINGS did they DO",
    "ADVICE": "always DO OBJECT before you DO OBJECT | never DO OBJECT WHERE | please DO OBJECT | let us DO OBJECT "
    "TIME",
    "CONDITION": "if you DO OBJECT you will DO OBJECT | unless PLURAL DO OBJECT we shall DO OBJECT",
    "HUMAN": "the PERSON | NAME | POSSESSIVE PERSON | the PERSON of the PLACE | a ADJ PERSON | NAME and NAME's friend",
    "ANIMALNP": "the ANIMAL | a ADJ ANIMAL | the ADJ ANIMAL | POSSESSIVE ANIMAL",
    "PLURAL": "they | we | the PERSON and the PERSON | the ADJ THINGS | NUMBER THINGS | the THINGS of the PLACE | "
    "NAME and NAME",
    "PLURALDID": "were ADJ | stood | were lost | lay MANNER | were found | had been left | remained",
    "NP": "a THING | a ADJ THING | a PERSON | a ADJ ANIMAL | a ADJ ADJ THING | a THING of IDEA",
    "OBJECT": "the THING | a THING | the ADJ THING | POSSESSIVE THING | a ADJ THING | the PERSON | the THINGS | the "
    "ANIMAL "
    "| NUMBER THINGS | POSSESSIVE ADJ THING | the THING of the PERSON | the PERSON's THING | a THING of IDEA | it all "
    "| something ADJ | the IDEA of the PERSON",
    "WHERE": "PREP the PLACE | PREP the ADJ PLACE | PREP POSSESSIVE PLACE | NEAR the THING | PREP a ADJ PLACE | FAR",
    "WEATHER": "weather | wind | night | sky | rain | morning | sun | moon | storm | sea | air | evening | winter",
    "PRONOUN": "he | she | he | she | it | nobody | everyone",
    "PRONOUN2": "him | her | them | me | us | you",
    "POSSESSIVE": "his | her | my | their | our | your",
    "SAID": "said | thought | knew | believed | told us | felt | answered | hoped | cried | replied | declared | "
    "wrote",
    "THINK": "think | know | believe | hope | suppose | fear | remember",
    "KNOW": "know | knew | saw | heard | thought | understood",
    "SHOULD": "should | would | must | will | shall | can | could | might | want to | ought to | won't | can't | "
    "don't "
    "| shouldn't | wouldn't",
    "COULD": "could | would | didn't | couldn't | had to | wanted to | must | might | wouldn't | used to | wasn't "
    "able to",
    "TRIED": "tried | wished | hoped | promised | meant | agreed | failed | learned | refused | pretended",
    "THEN": "then | so | yet | still | therefore | soon",
    "PREP": "in | near | behind | beside | through | from | outside | inside | across | beyond | around | towards | "
    "past "
    "| over | under | into | along | above | against",
    "NEAR": "with | near | beside | without | behind | by | under | before | after",
    "FAR": "at home | far away | at last | once more | all alone | on foot | out there | together | again and again "
    "| at sea",
    "TIME": "at night | in the morning | one day | that evening | long ago | in the end | every day | last summer "
    "| after dinner | before breakfast | in the winter | on monday | at noon | all day long | at eight o'clock "
    "| early in the spring | late in the afternoon | on a cold day | from time to time | years ago | as usual "
    "| for an hour | during the war | on sunday | next week | by the light of the moon | at midnight | this month",
    "MANNER": "slowly | quickly | quietly | suddenly | gently | often | nearly | always | carefully | never | easily "
    "| bravely | hardly | gladly | silently | sometimes | sadly | warmly | almost | proudly | softly | boldly | "
    "wisely "
    "| at once | eagerly | calmly | rarely | kindly | secretly | usually | simply | firmly | politely | nervously",
    "FEELING": "happy | tired | afraid | glad | angry | hungry | alone | sorry | ready | sick | asleep | proud | "
    "thirsty "
    "| ashamed | pleased | surprised | lonely | anxious | silent | jealous | grateful | curious",
    "NUMBER": "two | three | four | five | ten | a hundred | six | seven | many | twenty | several | a thousand | "
    "eight | few "
    "| nine | twelve | some | forty | eleven | fifty | thirty",
    "MOVED": "went | came | walked | ran | stood | sat | lived | looked | waited | stayed | fell | turned | slept | "
    "travelled "
    "| hurried | wandered | rested | worked | danced | climbed | rode | returned | jumped | sailed | played | laughed "
    "| hid | swam | rushed | marched | crept | vanished | whispered | shouted | smiled | stumbled | escaped | sang",
    "NAME": "john | mary | tom | anna | henry | alice | george | jane | peter | emma | david | lucy | james | ellen "
    "| robert | martha | edward | grace | arthur | helen | william | rose | oliver | julia",
}

# Nouns take a plural, verbs come as base/past/participle.
PEOPLE = (
    "man woman boy girl king child friend mother father doctor captain teacher brother sister soldier queen farmer "
    "son daughter sailor lady servant stranger neighbour priest judge prince uncle aunt cook hunter fisherman painter "
    "writer poet guard thief baker driver lawyer student master widow princess nurse officer merchant traveller "
    "grandmother carpenter musician shepherd gardener prisoner"
)
ANIMALS = (
    "dog horse cat bird fish cow sheep wolf fox bear lion mouse rabbit duck goose hen pig goat deer snake frog bee "
    "spider owl eagle monkey elephant tiger donkey whale crow butterfly puppy kitten squirrel"
)
THINGS = (
    "book letter door house table fire water bread box hand key ship chair lamp picture clock stone flower boat knife "
    "hat coat basket cup window ring sword bell coin bottle map glass plate rope candle apple wheel mirror shirt shoe "
    "blanket pen paper story song name word question answer gun machine engine train wagon tent flag drum violin "
    "piano "
    "pipe bag trunk dress ribbon needle hammer axe bucket ladder chain wall roof bed pillow curtain carpet shelf "
    "drawer "
    "newspaper telegram ticket parcel stick branch leaf seed tree rock shell feather egg cake meal supper breakfast "
    "orange potato onion cheese spoon kettle oven stove watch purse jewel crown necklace button pocket glove boot "
    "umbrella cloak mask statue portrait poem speech promise secret plan dream lesson game reason mistake present "
    "treasure message sign signal weapon shield arrow bullet cannon anchor sail oar net hook lantern"
)
IDEAS = (
    "love time gold life hope peace death joy truth silver wood power honour courage pride sorrow wisdom beauty "
    "freedom "
    "anger duty fear patience justice kindness glory luck iron ice silence trouble danger"
)
PLACES = (
    "house garden river forest town road city field kitchen room church school mountain village hill street sea "
    "market bridge castle valley farm harbour island lake shore station library tower palace cave desert hall "
    "stable yard cellar meadow inn shop mill hospital prison office theatre museum factory corner gate path wood "
    "beach coast country orchard barn attic chamber square camp temple"
)
ADJECTIVES = (
    "old little good great long young new small big black white dark large beautiful poor strange cold red deep heavy "
    "warm blue quiet green rich tall strong broken empty golden bright high soft hard wild clean sweet brown kind "
    "brave clever dry early narrow wide yellow silver thin thick ancient wooden lonely dangerous gentle famous simple "
    "wet noisy silent sharp sour round square grey loud lovely curious foolish honest proud rough smooth plain pretty "
    "ugly useful secret enormous tiny pale distant terrible wonderful pleasant modern foreign royal hollow splendid"
)
VERBS = (
    "see/saw/seen take/took/taken find/found/found make/made/made hear/heard/heard give/gave/given know/knew/known "
    "bring/brought/brought keep/kept/kept leave/left/left want/wanted/wanted hold/held/held lose/lost/lost "
    "buy/bought/bought carry/carried/carried open/opened/opened close/closed/closed follow/followed/followed "
    "remember/remembered/remembered forget/forgot/forgotten like/liked/liked love/loved/loved hide/hid/hidden "
    "break/broke/broken sell/sold/sold send/sent/sent paint/painted/painted clean/cleaned/cleaned "
    "catch/caught/caught steal/stole/stolen choose/chose/chosen draw/drew/drawn drop/dropped/dropped "
    "describe/described/described examine/examined/examined admire/admired/admired offer/offered/offered "
    "burn/burned/burned cover/covered/covered build/built/built move/moved/moved touch/touched/touched "
    "watch/watched/watched notice/noticed/noticed discover/discovered/discovered visit/visited/visited "
    "protect/protected/protected destroy/destroyed/destroyed repair/repaired/repaired need/needed/needed "
    "mention/mentioned/mentioned borrow/borrowed/borrowed return/returned/returned show/showed/shown "
    "lift/lifted/lifted push/pushed/pushed pull/pulled/pulled throw/threw/thrown wash/washed/washed "
    "study/studied/studied fear/feared/feared hate/hated/hated miss/missed/missed save/saved/saved "
    "share/shared/shared measure/measured/measured imagine/imagined/imagined enjoy/enjoyed/enjoyed "
    "recognize/recognized/recognized understand/understood/understood collect/collected/collected"
)
IRREGULAR_PLURALS = {"knife": "knives", "leaf": "leaves", "shelf": "shelves"}


def _plural(noun: str) -> str:
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search(r"(s|x|ch|sh|potato)$", noun) else "s")


@lru_cache(maxsize=None)
def _rules() -> Dict[str, List[List[str]]]:
    """Rule name -> alternatives, each a list of words and rule names."""
    rules = {name: [option.split() for option in text.split("|")] for name, text in GRAMMAR.items()}
    words = {"PERSON": PEOPLE, "ANIMAL": ANIMALS, "THING": THINGS, "IDEA": IDEAS, "PLACE": PLACES, "ADJ": ADJECTIVES}
    rules.update({name: [[word] for word in text.split()] for name, text in words.items()})
    rules["THINGS"] = [[_plural(thing)] for thing in THINGS.split()]
    forms = [verb.split("/") for verb in VERBS.split()]
    for position, name in enumerate(("DO", "DID", "DONE")):
        rules[name] = [[form[position]] for form in forms]
    return rules


def make_sentence(rng: random.Random) -> str:
    """One lower-case sentence of letters, spaces and apostrophes."""

    def expand(symbol: str) -> str:
        name, possessive = (symbol[:-2], "'s") if symbol.endswith("'s") else (symbol, "")
        if not name.isupper():
            return symbol
        options = _rules()[name]
        chosen = options[int(len(options) * rng.random() ** 1.7)]  # > 1: common words are common
        return " ".join(expand(part) for part in chosen) + possessive

    return re.sub(r"\ba (?=[aeio]|u[gmn]|hon|hour)", "an ", expand("SENTENCE"))


def sentence_subset(sentence: str) -> str:
    """The one subset a sentence may be spoken in: 8 of 10 sentences are train, 1 dev, 1 test, whatever the seed."""
    return {8: "dev-clean", 9: "test-clean"}.get(zlib.crc32(sentence.encode()) % 10, "train-clean")


# ---------------------------------------------------------------------------------------------------- voices
ACCENTS = (
    "en-us en en-gb-x-rp en-us-nyc en-gb-scotland en-029 en-gb-x-gbclan en-gb-x-gbcwmd".split()
)  # "en" is espeak's British English
# espeak's voice variants that sound like a person; each is one speaker, so no timbre is heard in two subsets.
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
    """Every voice there is, the two sexes taking turns within a subset; accent, pitch and rate are drawn by the "
    "seed."""
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


# ---------------------------------------------------------------------------------------------------- the engine
# Names and numbers of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
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
    """A word (``text`` empty) or a phone (``text`` its mnemonic) begins at ``sample``; ``character`` counts from 0."""

    is_word: bool
    character: int
    sample: int
    text: str


class Espeak:
    """The speech engine. It is a library of global state: one per process, and what it says depends on what it "
    "said."""

    def __init__(self):
        import espeakng_loader  # optional: only this corpus needs it

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        options = INITIALIZE_PHONEME_EVENTS | INITIALIZE_DONT_EXIT
        self.sample_rate = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), options)
        if self.sample_rate <= 0:
            raise RuntimeError(
                f"espeak-ng cannot load its data from {data}. Reinstall espeakng-loader; where that path is longer "
                "than 150 characters, install it into a shorter one."
            )
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the breath noise; espeak takes the clock
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
        return 0  # go on

    def speak(self, text: str, voice: Voice, rate: int) -> Tuple[np.ndarray, List[Event]]:
        """``text`` as int16 samples ``[S]`` at ``self.sample_rate``, and the beginnings of its words and phones."""
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


# ---------------------------------------------------------------------------------------------------- times
# espeak speaks some pairs of short words as one and announces only the first. The second begins with one of these.
JOINED_ONSETS = {
    "the": ("D", "d"),
    "was": ("w",),
    "were": ("w",),
    "shall": ("S",),
    "to": ("t",),
    "been": ("b",),
    "it": ("I",),
    "once": ("w",),
    "a": ("@", "a", "V"),
    "an": ("@", "a"),
}


class Span(NamedTuple):
    """A word or a phone from sample ``start`` up to sample ``end``, at the engine's rate."""

    text: str
    start: int
    end: int


class _Group(NamedTuple):
    words: List[str]  # two where espeak joined them
    start: int
    phones: List[Tuple[str, int]]  # mnemonic, first sample


def _groups(text: str, events: List[Event]) -> Iterator[_Group]:
    """The phones of each announced word; a pause is a group without words."""
    announced = {event.character for event in events if event.is_word}
    words: Dict[int, List[str]] = {}
    for match in re.finditer(r"\S+", text):
        first = match.start() if match.start() in announced else max(words)
        words.setdefault(first, []).append(match.group())
    group = None
    last_phone = -1
    for event in events:
        if event.is_word:
            if group:
                yield group
            group = _Group(words[event.character], event.sample if event.sample > last_phone else -1, [])
        elif event.text.startswith("_"):
            if group:
                yield group
            group = _Group([], event.sample, [])
        elif group is not None:
            group.phones.append((event.text.lstrip("',%"), event.sample))
            if group.start < 0:
                # The word was announced with the last phone of the word before it, to which it is linked ("o|n a").
                group = group._replace(start=event.sample)
        if not event.is_word:
            last_phone = event.sample
    yield group


def align(text: str, events: List[Event]) -> Optional[Tuple[List[Span], List[Span]]]:
    """Words and phones of a spoken text, without the pauses; None where words are joined in a way unknown here.

    A word ends where the next word or a pause begins. Stops begin with their closure as words, with their burst as
    phones: espeak announces them so.
    """
    word_marks, phone_marks = [], []  # (text, start), with "" for a pause
    for group in _groups(text, events):
        phone_marks += group.phones or [("", group.start)]
        word_marks.append((" ".join(group.words[:1]), group.start))
        if len(group.words) > 1:
            onsets = JOINED_ONSETS.get(group.words[1], ())
            candidates = [start for phone, start in group.phones[1:] if phone.startswith(onsets)]
            if not candidates or len(group.words) > 2:
                return None
            word_marks.append((group.words[1], candidates[-1]))

    def spans(marks):
        return [Span(text, start, end) for (text, start), (_, end) in zip(marks, marks[1:]) if text and end > start]

    words = spans(word_marks)
    return (words, spans(phone_marks)) if len(words) == len(text.split()) else None


# ---------------------------------------------------------------------------------------------------- one speaker
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
    """Put int16 ``speech`` into a quiet room: its own level, some silence around it, low-pass noise 25 to 40 dB below.

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
    """Utterances of one voice until ``seconds`` are filled, at least one, with their samples.

    The same arguments give the same samples only in a process in which espeak has not spoken before: the flutter of
    a voice goes on from one utterance to the next, and nothing sets it back.
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
    """Write 16-bit FLAC unless a whole file is there already."""
    try:
        if soundfile.info(path).frames == len(samples):
            return
    except soundfile.LibsndfileError:
        pass  # absent or broken
    with atomic_write(path, "wb") as stream:
        soundfile.write(stream, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _record_of(root: Path, voice: Voice) -> Path:
    return root / "speakers" / f"{voice.speaker}.jsonl"


def _synthesize_speaker(voice: Voice, root: Path, seconds: float, seed: int) -> None:
    """Write one speaker's audio, transcripts, and last of all the record that says it is finished."""
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


def _finished(root: Path, voice: Voice) -> List[Utterance]:
    """A speaker's utterances where all their files are there, else nothing."""
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


# ---------------------------------------------------------------------------------------------------- the corpus
def cast(minutes: Dict[str, float], seed: int) -> List[Voice]:
    """The voices of a corpus: in each subset one for every half minute, at least two, at most as many as there are."""
    chosen = []
    for subset in SUBSETS:
        voices = [voice for voice in all_voices(seed) if voice.subset == subset]
        chosen += voices[: max(2, round(2 * minutes[subset]))]
    return chosen


def _claim(root: Path, settings: Dict[str, Any]) -> None:
    """Note the settings in the folder, or compare them with those noted there."""
    path = root / "corpus.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            different = [
                f"{key} {found.get(key)!r} (now {settings[key]!r})"
                for key in settings
                if found.get(key) != settings[key]
            ]
            raise ValueError(
                f"{path}: this folder holds another corpus, with {', '.join(different)}. Name another folder, or "
                "delete this one."
            )
        return
    with atomic_write(path) as stream:
        json.dump(settings, stream, indent=1)


def _write_speakers(root: Path, voices: List[Voice], spoken: Dict[Voice, List[Utterance]]) -> None:
    """LibriSpeech's SPEAKERS.TXT."""
    with atomic_write(root / "LibriSpeech" / "SPEAKERS.TXT") as stream:
        stream.write(";ID  |SEX| SUBSET           |MINUTES| NAME\n")
        for voice in voices:
            minutes = sum(utterance.seconds for utterance in spoken[voice]) / 60
            name = f"espeak-ng {voice.name}, pitch {voice.pitch}, range {voice.pitch_range}, {voice.rate} words/min"
            stream.write(f"{voice.speaker:<4} | {voice.gender} | {voice.subset:<16} | {minutes:<5.2f} | {name}\n")


def _write_times(path: Path, entries: Iterator[Dict[str, Any]]) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    with atomic_write(path, "wb") as stream:
        stream.write(gzip.compress(text.encode(), mtime=0))  # no time stamp: the same corpus is the same bytes


def _synthesize_speakers(root: Path, voices: List[Voice], seconds: Dict[str, float], seed: int) -> None:
    """One process per speaker, so that what espeak says depends on nothing said before."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["__main__", __name__])
    jobs = [(voice, root, seconds[voice.subset], seed) for voice in voices]
    with context.Pool(min(os.cpu_count() or 1, len(voices)), maxtasksperchild=1) as pool:
        results = [pool.apply_async(_synthesize_speaker, job) for job in jobs]
        for result in tqdm(results, desc="speaking", unit="speaker"):
            result.get()  # raises what was raised in the process


def synthesize_corpus(
    root: PathLike, train_minutes: float, dev_minutes: float, test_minutes: float, seed: int = 0
) -> None:
    """Write the corpus into ``root``; see the head of this file. Finished speakers and whole files are kept.

    Each subset has its own voices and its own sentences. Its length is met within about two seconds per speaker.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: a subset without minutes, or ``root`` holds a corpus of other settings.
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
    unfinished = [voice for voice in voices if not _finished(root, voice)]
    joint = [root / "align_words.jsonl.gz", root / "align_phones.jsonl.gz", root / "LibriSpeech" / "SPEAKERS.TXT"]
    if not unfinished and all(path.is_file() for path in joint):
        logger.info("%s: complete, nothing to do", root)
        return
    if unfinished:
        _synthesize_speakers(root, unfinished, seconds, seed)

    spoken = {voice: _finished(root, voice) for voice in voices}
    utterances = [utterance for voice in voices for utterance in spoken[voice]]
    _write_times(joint[0], ({"utt_id": each.utt_id, "words": each.words} for each in utterances))
    _write_times(joint[1], ({"utt_id": each.utt_id, "complete": True, "phones": each.phones} for each in utterances))
    _write_speakers(root, voices, spoken)
