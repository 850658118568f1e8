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

"""Word n-gram language models with KenLM: text -> ARPA -> binary, and the words of an ARPA.

``lmplz`` estimates (modified Kneser-Ney) and ``build_binary`` makes the memory-mapped file; where they are not on the
PATH, ``scripts/build_kenlm.sh`` builds them.
"""

import json
import os
import re
import shutil
import subprocess
import unicodedata
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, Iterable, Iterator, List, Optional, Sequence, Union

from nemo_mshubert.alphabet import SPACE
from nemo_mshubert.data.manifest import parse_lines
from nemo_mshubert.data.maybe_gzip import open_maybe_gzip
from nemo_mshubert.decoding.lexicon import fold_case, require_same_alphabet
from nemo_mshubert.whole_files import PathLike, atomic_write

ORDERS = range(2, 7)  # KenLM is compiled for at most 6
MARKERS = {"<s>", "</s>", "<unk>", "<UNK>"}
ARPA_SPACES = re.compile(r"[ \t\r\n\0]+")  # kenlm: lm/read_arpa.cc; other white space may be part of a word
KENLM_FOLDER = Path.home() / ".cache" / "nemo_mshubert" / "kenlm" / "bin"  # default of scripts/build_kenlm.sh
MEMORY = "25%"  # of the machine, for sorting; KenLM's default of 80 % kills neighbours, and it sorts on disk anyway
SENTENCES_PEEKED = 1000


def find_kenlm_tool(name: str, folder: Optional[PathLike] = None) -> str:
    """Path of ``lmplz`` or ``build_binary``: in ``folder`` if given, else on the PATH or where our script builds them;
    raises ``FileNotFoundError``."""
    searched = [str(folder)] if folder else [os.environ.get("PATH", os.defpath), str(KENLM_FOLDER)]
    found = shutil.which(name, path=os.pathsep.join(searched))
    if found is None:
        raise FileNotFoundError(
            f"KenLM's {name} is not in {folder or f'the PATH nor in {KENLM_FOLDER}'}. Build it with "
            "scripts/build_kenlm.sh."
        )
    return found


def text_lines(path: PathLike) -> Iterator[str]:
    """Lines of UTF-8 text, plain or ``.gz``, without the byte order mark that Windows writes before the first.

    Raises:
        ValueError: not UTF-8, or a damaged ``.gz``; names file and line.
    """
    with open_maybe_gzip(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}). "
                    "Convert the file, for instance from Latin-1: iconv -f latin1 -t utf-8 OLD > NEW."
                ) from error
            yield text.removeprefix("\ufeff") if number == 1 else text


def normalize_text(text: str, labels: Sequence[str]) -> str:
    """Words as the acoustic model writes them: its case, typographic apostrophes as ', punctuation as spaces.

    Words with digits or foreign letters stay: they keep their neighbours apart in the LM, and no lexicon holds them.
    """
    words = _spaced_words(fold_case(text, labels), labels)
    # Not where all letters are the model's: NFKC takes a vowel of Thai apart, and joins the letters of Korean.
    words = [word if set(word) <= set(labels) else _compatible(word, labels) for word in words]
    return SPACE.join(word for word in " ".join(words).split() if word.strip("'"))


def _compatible(word: str, labels: Sequence[str]) -> str:
    """By NFKC, which makes ligatures and wide letters plain ones and joins letters and their accents."""
    return " ".join(_spaced_words(fold_case(unicodedata.normalize("NFKC", word), labels), labels))


def _spaced_words(text: str, labels: Sequence[str]) -> List[str]:
    if "\u2019" not in labels:  # a letter of some Ukrainian models
        text = text.replace("\u2019", "'").replace("\u2018", "'")
    kept = (letter if letter in labels or unicodedata.category(letter)[0] in "LNM" else " " for letter in text)
    return "".join(kept).split()


def normalized_sentences(paths: Sequence[PathLike], labels: Sequence[str]) -> Iterator[str]:
    """Normalised lines of text files and ``text`` fields of NeMo manifests, plain or ``.gz``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no words, or a text in another alphabet, seen in the first lines; what is not UTF-8; a manifest
            line without text.
    """
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such text. Give plain text or a NeMo manifest, or either as .gz.")
    for path in paths:  # once to the end: what is wrong in the last should not be found when lmplz has read the others
        _checked_sentences(path, labels)
        for _ in _lines(path):
            pass
    return chain.from_iterable(_checked_sentences(path, labels) for path in paths)


def _checked_sentences(path: PathLike, labels: Sequence[str]) -> Iterator[str]:
    sentences = filter(None, (normalize_text(line, labels) for line in _lines(path)))
    first = list(islice(sentences, SENTENCES_PEEKED))
    require_same_alphabet(" ".join(first).split(), labels, where=str(path))
    return chain(first, sentences)


def _lines(path: PathLike) -> Iterator[str]:
    if not _is_manifest(path):
        yield from text_lines(path)
        return
    with open_maybe_gzip(path) as stream:
        for where, entry in parse_lines(stream, str(path)):
            if not isinstance(entry.get("text"), str):
                raise ValueError(f'{where}: no "text". Give a manifest with transcripts, or remove the line.')
            yield entry["text"]


def _is_manifest(path: PathLike) -> bool:
    """By its name, or by a JSON object in its first line: names are free, and keys would be words of the LM."""
    if str(path).removesuffix(".gz").endswith((".json", ".jsonl")):
        return True
    with open_maybe_gzip(path) as stream:
        first = next((line for line in stream if not line.isspace()), b"")
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except ValueError:  # not JSON, or not UTF-8, which is said with its line when it is read
        return False


def train_arpa(
    sentences: Iterable[str],
    arpa: PathLike,
    order: int,
    prune: Sequence[int] = (),
    kenlm_folder: Optional[PathLike] = None,
) -> None:
    """Estimate an n-gram LM of ``order`` with ``lmplz`` and write it to ``arpa``.

    Args:
        sentences: normalised, one at a time; never held in memory together.
        prune: n-grams seen at most so often are dropped, one number per order from 1 on, the last for all above.

    Raises:
        ValueError: order outside 2 to 6, or a pruning that KenLM does not take.
        FileNotFoundError: no ``lmplz``.
        RuntimeError: ``lmplz`` failed; it says why on the terminal.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order}: n-grams of order {ORDERS[0]} to {ORDERS[-1]} are supported.")
    if len(prune) > order or list(prune) != sorted(prune) or any(prune[:1]):
        raise ValueError(
            f"pruning {list(prune)}: give at most {order} counts that do not decrease and start with 0 (words stay), "
            "such as 0 0 1."
        )
    sentences = iter(sentences)
    first = next(sentences, None)  # errors of the text come before lmplz is looked for, or starts
    if first is None:
        raise ValueError(f"{arpa}: no sentences to train on.")
    # On tiny texts the Kneser-Ney discounts cannot be estimated; the fallback is used then, and only then.
    command = [find_kenlm_tool("lmplz", kenlm_folder), "-o", str(order), "-S", MEMORY, "--discount_fallback"]
    command += ["-T", str(Path(arpa).resolve().parent) + "/"] + (["--prune", *map(str, prune)] if prune else [])
    with atomic_write(arpa, "wb") as stream:
        _run(command, chain([first], sentences), stdout=stream)


def binarize(arpa: PathLike, binary: PathLike, kenlm_folder: Optional[PathLike] = None) -> None:
    """Turn an ARPA (plain or ``.gz``) into KenLM's memory-mapped trie, the smallest of its forms.

    Raises:
        FileNotFoundError: no such ARPA, or no ``build_binary``.
        RuntimeError: ``build_binary`` failed; it says why on the terminal.
    """
    if not Path(arpa).is_file():
        raise FileNotFoundError(f"{arpa}: no such ARPA. Train one, or get 4-gram.arpa.gz from openslr.org/11.")
    tool = find_kenlm_tool("build_binary", kenlm_folder)
    with atomic_write(binary, "wb") as stream:
        _run([tool, "-S", MEMORY, "trie", str(arpa), stream.name])


def _run(command: List[str], lines: Iterable[str] = (), stdout: Union[int, IO] = subprocess.DEVNULL) -> None:
    """Run a KenLM tool on ``lines``; what it says goes to the terminal."""
    with (
        suppress(BrokenPipeError),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, text=True, encoding="utf-8") as process,
    ):
        for line in lines:
            process.stdin.write(line + "\n")
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}; its messages are above.")


def arpa_words(path: PathLike) -> Iterator[str]:
    """Words of an ARPA (plain or ``.gz``), without ``<s>``, ``</s>`` and ``<unk>``, in its own case.

    They may hold other white space than KenLM splits at, such as U+00A0; `can_spell` tells whether a lexicon may.

    Raises:
        FileNotFoundError: no such ARPA.
        ValueError: no unigram section; names the file, or the line that is no unigram.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such ARPA. Train one, or get 4-gram.arpa.gz from openslr.org/11.")
    inside = False
    for number, line in enumerate(text_lines(path), start=1):
        if inside and line.startswith("\\"):
            return  # the bigrams: the rest of the file, most of it, is not read
        if line.strip() == "\\1-grams:":
            inside = True
        elif inside and (fields := [field for field in ARPA_SPACES.split(line) if field]):
            if len(fields) not in (2, 3):
                raise ValueError(f"{path}:{number}: expected log10 probability, word, back-off; found {line!r}.")
            if fields[1] not in MARKERS:
                yield fields[1]
    if not inside:
        raise ValueError(f"{path}: no \\1-grams: section, so this is no ARPA. Binary LMs do not list their words.")


def listed_words(words_file: PathLike) -> List[str]:
    """The first field of each line of a word list (plain or ``.gz``), each word once.

    Raises:
        FileNotFoundError, ValueError: no such file, it is not UTF-8, or holds no words.
    """
    words = list(dict.fromkeys(line.split()[0] for line in text_lines(words_file) if line.strip()))
    if not words:
        raise ValueError(f"{words_file}: no words. Give one a line, or leave it out to take all words of the LM.")
    return words


def lexicon_words(words_file: PathLike, arpa: PathLike) -> List[str]:
    """The `listed_words` that the ARPA knows.

    Raises:
        ValueError: it knows none, so one of the two is in another case or language.
    """
    wanted = listed_words(words_file)
    known = set(wanted) & set(arpa_words(arpa))
    if not known:
        raise ValueError(
            f"{words_file}: {arpa} knows none of its {len(wanted)} words (the first is {wanted[0]!r}). Write the list "
            "in the case of the ARPA, or leave it out to take all words of the ARPA."
        )
    return [word for word in wanted if word in known]
