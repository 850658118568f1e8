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

"""Check LibriSpeech, Libri-Light's limited sets or any corpus with their layout, and write NeMo manifests.

    <data>[/LibriSpeech]/dev-clean/84/121123/84-121123-0000.flac, 84-121123.trans.txt        -> dev-clean.json
    <data>/librispeech_finetuning/1h/{0..5}/{clean,other}/<speaker>/<chapter>/...            -> 10min.json, 1h.json
    <data>/librispeech_finetuning/9h/{clean,other}/<speaker>/<chapter>/...                   -> 10h.json

Folds of Libri-Light: the 10 minutes are fold 0 of the hour; the 10 hours are 1h and 9h together.
"""

import logging
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tqdm import tqdm

from nemo_mshubert.data.audio_header import read_audio_header
from nemo_mshubert.data.manifest import write_manifest
from nemo_mshubert.data.problems import report_problems
from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)

TRAIN_960 = ("train-clean-100", "train-clean-360", "train-other-500")
LIBRILIGHT = ("10min", "1h", "10h")
LIBRILIGHT_FOLDER = "librispeech_finetuning"
FOLDS = tuple(f"1h/{fold}/{kind}" for fold in range(6) for kind in ("clean", "other"))
SOURCES = {  # manifest -> its folders
    "train-960": TRAIN_960,
    "10min": FOLDS[:2],
    "1h": FOLDS,
    "10h": FOLDS + ("9h/clean", "9h/other"),
}


# ---------------------------------------------------------------------------------------------------- layout
def corpus_roots(data: Path) -> Tuple[Path, Path]:
    return data, data / "LibriSpeech"


def _holds_chapters(folder: Path) -> bool:
    """Whether there are ``<speaker>/<chapter>/`` folders with speech or transcripts below ``folder``."""
    return any(next(folder.glob(f"*/*/{name}"), None) for name in ("*.trans.txt", "*.flac"))


def find_subsets(data: PathLike) -> Dict[str, Path]:
    """Folders with LibriSpeech's layout by name, such as ``dev-clean``, and for Libri-Light ``1h/0/clean``.

    Raises:
        FileNotFoundError: ``data`` is not a folder, or holds no subset.
        ValueError: a subset exists twice.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder. Name the folder of LibriSpeech, or add --download.")
    found: Dict[str, Path] = {}
    for root in corpus_roots(data):
        folders = sorted(root.iterdir()) if root.is_dir() else []
        here = {folder.name: folder for folder in folders if folder.is_dir() and _holds_chapters(folder)}
        for librilight in (root, root / LIBRILIGHT_FOLDER):
            here.update({name: librilight / name for name in SOURCES["10h"] if (librilight / name).is_dir()})
        for name in sorted(set(here) & set(found)):
            raise ValueError(
                f"{name} is there twice, as {found[name]} and {here[name]}. Remove one, or name its folder."
            )
        found.update(here)
    if not found:
        raise FileNotFoundError(
            f"{data}: no subset here. Expected <subset>/<speaker>/<chapter>/*.flac with a *.trans.txt beside, "
            "such as dev-clean/84/121123/84-121123-0000.flac, in this folder or in its LibriSpeech/, or Libri-Light's "
            f"{LIBRILIGHT_FOLDER}/. Name the folder that was unpacked, or add --download."
        )
    return found


def plan_manifests(found: Dict[str, Path], wanted: Optional[Sequence[str]] = None) -> Dict[str, Tuple[str, ...]]:
    """Manifest name -> the subset folders it joins; without ``wanted``, every manifest whose folders all exist.

    Raises:
        ValueError: a wanted manifest lacks a folder.
    """
    plan: Dict[str, Tuple[str, ...]] = {name: (name,) for name in found if "/" not in name}
    plan.update({name: parts for name, parts in SOURCES.items() if set(parts) <= set(found)})
    for name in wanted or ():
        if name not in plan:
            lacking = sorted(set(SOURCES.get(name, (name,))) - set(found))
            raise ValueError(
                f"{name}: cannot be made, there is no {', '.join(lacking)}. Found: {', '.join(plan)}. "
                "Correct --subsets, or add --download."
            )
    return {name: plan[name] for name in wanted or plan}


def _missing_folds(found: Dict[str, Path]) -> List[str]:
    """Complaints about missing folds: Libri-Light's archive holds all of them, so a copy was interrupted."""
    if not set(found) & set(SOURCES["10h"]):
        return []
    missing = [name for name in SOURCES["10h"] if name not in found]
    return [
        f"{LIBRILIGHT_FOLDER}/{name}: no such folder, so not all of 10min, 1h and 10h can be made" for name in missing
    ]


def read_genders(data: PathLike) -> Dict[str, str]:
    """Speaker -> ``F`` or ``M``, from SPEAKERS.TXT; empty if there is no such file."""
    genders = {}
    for root in corpus_roots(Path(data)):
        path = root / "SPEAKERS.TXT"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for line in lines:
            fields = [field.strip() for field in line.split("|")]
            if not line.startswith(";") and len(fields) > 1:
                genders[fields[0]] = fields[1]
    return genders


# ---------------------------------------------------------------------------------------------------- reading
LIGATURES = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "ß": "ss", "ł": "l", "đ": "d", "’": "'", "‘": "'", "ʼ": "'"}
)
DASHES = re.compile(r"[-\u2010-\u2015\u2212/]")
PUNCTUATION = re.compile(r"[.,;:!?\"“”„«»()\[\]{}…_]")


def normalize_text(text: str) -> str:
    """Text in lower-case a to z, apostrophes and single spaces: accents and punctuation are removed, and dashes become
    spaces.

    Raises:
        ValueError: other characters are left, such as digits, which have more than one reading; or nothing is left.
    """
    # Lower case again after NFKD, which turns signs such as the trade mark into capitals
    decomposed = unicodedata.normalize("NFKD", text.lower().translate(LIGATURES)).lower()
    letters = "".join(char for char in decomposed if not unicodedata.combining(char))
    words = PUNCTUATION.sub("", DASHES.sub(" ", letters)).split()
    left_over = sorted(set("".join(words)) - set("abcdefghijklmnopqrstuvwxyz'"))
    if left_over:
        raise ValueError(f"cannot be written in letters: {' '.join(left_over)}; spell it out")
    if not words:
        raise ValueError("no words")
    return " ".join(words)


class Chapter(NamedTuple):
    """The result of one chapter: manifest entries, complaints that name the file, and the texts with letters outside
    English, which the entries hold without accents."""

    entries: List[Dict[str, Any]]
    problems: List[str]
    respelled: List[str]


def _read_transcripts(folder: Path, problems: List[str], respelled: List[str]) -> Dict[str, Optional[str]]:
    """Utterance id -> normalised text, None if the text is unusable (then ``problems`` has a complaint)."""
    texts: Dict[str, Optional[str]] = {}
    for path in sorted(folder.glob("[!.]*.trans.txt")):
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            utt_id, _, text = line.decode("utf-8", errors="replace").strip().partition(" ")
            if utt_id in texts:
                problems.append(f"{path}:{number}: {utt_id} has a second transcript")
                continue
            try:
                texts[utt_id] = normalize_text(text)
            except ValueError as error:
                texts[utt_id] = None
                problems.append(f"{path}:{number}: {utt_id}: transcript {text!r}: {error}")
            if any(unicodedata.category(char)[0] in "LM" for char in text if not char.isascii()):
                respelled.append(text)
    return texts


def read_chapter(folder: Path, subset: str, genders: Dict[str, str]) -> Chapter:
    """Read ``<speaker>/<chapter>/``: every transcript needs its audio, every audio its transcript."""
    speaker = folder.parent.name
    gender = {"gender": genders[speaker]} if speaker in genders else {}
    entries: List[Dict[str, Any]] = []
    problems: List[str] = []
    respelled: List[str] = []
    texts = _read_transcripts(folder, problems, respelled)
    audio = {path.stem: path for path in sorted(folder.glob("[!.]*.flac"))}
    if not texts and not audio:
        problems.append(f"{folder}: neither audio nor transcripts")
    for utt_id in sorted({*texts, *audio}):
        if utt_id not in audio:
            problems.append(f"{folder / utt_id}.flac: no such file, though it has a transcript")
            continue
        path = audio[utt_id]
        if utt_id not in texts:
            problems.append(f"{path}: no transcript")
        try:
            header = read_audio_header(path)
            if header.channels != 1:
                raise ValueError(f"{header.channels} channels, expected 1")
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        text = texts.get(utt_id)
        if text is not None:
            entry = {"audio_filepath": str(path), "duration": header.seconds, "text": text, "utt_id": utt_id}
            # With the rate, NeMo need not open every file before training, and a file that breaks later is skipped.
            entry["sampling_rate"] = header.sampling_rate
            entries.append({**entry, "speaker": speaker, **gender, "subset": subset})
    return Chapter(entries, problems, respelled)


def _chapters(folder: Path) -> Iterator[Path]:
    for speaker in sorted(folder.glob("[!.]*")):
        yield from (path for path in sorted(speaker.glob("[!.]*")) if path.is_dir())


def prepare_librispeech(
    data: PathLike,
    output: PathLike,
    subsets: Optional[Sequence[str]] = None,
    workers: int = 8,
    skip_broken: bool = False,
) -> Dict[str, List[Dict[str, Any]]]:
    """Write one manifest per subset into ``output``, and the joined manifests of `SOURCES` whose folders all exist.

    All problems with the corpus are listed in ``<output>/problems.txt``. ``workers`` threads read the files.

    Returns:
        manifest name -> its entries.

    Raises:
        FileNotFoundError: no subset in ``data``.
        ValueError: a requested subset is missing; or there are problems and ``skip_broken`` is not set. No manifest
            is written then.
    """
    found = find_subsets(data)
    plan = plan_manifests(found, subsets)
    genders = read_genders(data)
    needed = [name for name in found if any(name in parts for parts in plan.values())]
    jobs = [(chapter, subset, genders) for subset in needed for chapter in _chapters(found[subset])]
    entries: Dict[str, List[Dict[str, Any]]] = {subset: [] for subset in needed}
    problems = [] if subsets else _missing_folds(found)
    respelled: List[str] = []
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda job: read_chapter(*job), jobs)
        for (_, subset, _), chapter in zip(jobs, tqdm(results, total=len(jobs), desc="reading", unit="chapter")):
            entries[subset] += chapter.entries
            problems += chapter.problems
            respelled += chapter.respelled
    report_problems(Path(output), problems, skip_broken)
    if respelled:
        logger.warning(
            "%d transcripts have other letters than English ones, which are written without accents, the first %r. "
            "For another language, make the manifests yourself: docs/decoding.md, Your own language.",
            len(respelled),
            respelled[0],
        )

    manifests = {name: [entry for part in parts for entry in entries[part]] for name, parts in plan.items()}
    for name, lines in manifests.items():
        write_manifest(Path(output) / f"{name}.json", lines)
    return manifests
