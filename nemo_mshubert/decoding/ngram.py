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

``lmplz`` estimates the model (modified Kneser-Ney), and ``build_binary`` makes the memory-mapped file. If they are not
on the PATH, ``scripts/build_kenlm.sh`` builds them.
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
MEMORY = "25%"  # of the machine's, for sorting; KenLM's default, 80 %, starves other jobs, and it sorts on disk anyway
SENTENCES_PEEKED = 1000


def find_kenlm_tool(name: str, folder: Optional[PathLike] = None) -> str:
    """Path of ``lmplz`` or ``build_binary``: in ``folder`` if given, else on the PATH or where our script builds them.
    Raises ``FileNotFoundError`` if there is none."""
    searched = [str(folder)] if folder else [os.environ.get("PATH", os.defpath), str(KENLM_FOLDER)]
    found = shutil.which(name, path=os.pathsep.join(searched))
    if found is None:
        raise FileNotFoundError(
            f"KenLM's {name} is not in {folder or f'the PATH nor in {KENLM_FOLDER}'}. Build it with "
            "scripts/build_kenlm.sh."
        )
    return found


def text_lines(path: PathLike) -> Iterator[str]:
    """Lines of UTF-8 text, plain or ``.gz``, without the byte order mark that Windows writes at the beginning.

    Raises:
        ValueError: the text is not UTF-8 (names file and line), or the ``.gz`` is damaged.
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
    """Words as the acoustic model writes them: in its case, with ' for typographic apostrophes, and with spaces for
    punctuation.

    Words with digits or foreign letters are kept: they separate their neighbours in the LM, and the lexicon omits
    them.
    """
    words = _spaced_words(fold_case(text, labels), labels)
    # Words in the model's letters are not changed: NFKC would split a Thai vowel, and join Korean letters.
    words = [word if set(word) <= set(labels) else _compatible(word, labels) for word in words]
    return SPACE.join(word for word in " ".join(words).split() if word.strip("'"))


def _compatible(word: str, labels: Sequence[str]) -> str:
    """The word in NFKC, which replaces ligatures and wide letters by plain ones, and joins letters with their
    accents."""
    return " ".join(_spaced_words(fold_case(unicodedata.normalize("NFKC", word), labels), labels))


def _spaced_words(text: str, labels: Sequence[str]) -> List[str]:
    if "\u2019" not in labels:  # some Ukrainian models have it as a letter
        text = text.replace("\u2019", "'").replace("\u2018", "'")
    kept = (letter if letter in labels or unicodedata.category(letter)[0] in "LNM" else " " for letter in text)
    return "".join(kept).split()


def normalized_sentences(paths: Sequence[PathLike], labels: Sequence[str]) -> Iterator[str]:
    """Normalised lines of text files and ``text`` fields of NeMo manifests, plain or ``.gz``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: there are no words, the first lines show another alphabet, a file is not UTF-8, or a manifest line
            has no text.
    """
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such text. Give plain text or a NeMo manifest, or either as .gz.")
    for path in paths:  # read all once, so that an error in the last is found before lmplz has read the others
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
    """Whether it is a manifest: by its name, or by a JSON object in its first line. Manifests may have any name, and
    their keys would become words of the LM."""
    if str(path).removesuffix(".gz").endswith((".json", ".jsonl")):
        return True
    with open_maybe_gzip(path) as stream:
        first = next((line for line in stream if not line.isspace()), b"")
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except ValueError:  # not JSON, or not UTF-8, which is reported with its line when the text is read
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
        sentences: normalised; they are read one at a time and never held in memory together.
        prune: one count per order, from order 1 on; n-grams seen at most so often are dropped. The last count also
            holds for all higher orders.

    Raises:
        ValueError: the order is not within 2 to 6, or KenLM does not accept the pruning.
        FileNotFoundError: no ``lmplz``.
        RuntimeError: ``lmplz`` failed; its message is on the terminal.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order}: n-grams of order {ORDERS[0]} to {ORDERS[-1]} are supported.")
    if len(prune) > order or list(prune) != sorted(prune) or any(prune[:1]):
        raise ValueError(
            f"pruning {list(prune)}: give at most {order} counts that do not decrease and start with 0 (words stay), "
            "such as 0 0 1."
        )
    sentences = iter(sentences)
    first = next(sentences, None)  # raises errors of the text before lmplz is searched or started
    if first is None:
        raise ValueError(f"{arpa}: no sentences to train on.")
    # On tiny texts the Kneser-Ney discounts cannot be estimated; only then does KenLM use the fallback.
    command = [find_kenlm_tool("lmplz", kenlm_folder), "-o", str(order), "-S", MEMORY, "--discount_fallback"]
    command += ["-T", str(Path(arpa).resolve().parent) + "/"] + (["--prune", *map(str, prune)] if prune else [])
    with atomic_write(arpa, "wb") as stream:
        _run(command, chain([first], sentences), stdout=stream)


def binarize(arpa: PathLike, binary: PathLike, kenlm_folder: Optional[PathLike] = None) -> None:
    """Convert an ARPA (plain or ``.gz``) to KenLM's memory-mapped trie, the smallest of its binary formats.

    Raises:
        FileNotFoundError: no such ARPA, or no ``build_binary``.
        RuntimeError: ``build_binary`` failed; its message is on the terminal.
    """
    if not Path(arpa).is_file():
        raise FileNotFoundError(f"{arpa}: no such ARPA. Train one, or get 4-gram.arpa.gz from openslr.org/11.")
    tool = find_kenlm_tool("build_binary", kenlm_folder)
    with atomic_write(binary, "wb") as stream:
        _run([tool, "-S", MEMORY, "trie", str(arpa), stream.name])


def _run(command: List[str], lines: Iterable[str] = (), stdout: Union[int, IO] = subprocess.DEVNULL) -> None:
    """Run a KenLM tool on ``lines``; its messages go to the terminal."""
    with (
        suppress(BrokenPipeError),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, text=True, encoding="utf-8") as process,
    ):
        for line in lines:
            process.stdin.write(line + "\n")
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}; its messages are above.")


def arpa_words(path: PathLike) -> Iterator[str]:
    """Words of an ARPA (plain or ``.gz``), without ``<s>``, ``</s>`` and ``<unk>``, in the case of the ARPA.

    They may contain white space at which KenLM does not split, such as U+00A0. `can_spell` rejects such words for a
    lexicon.

    Raises:
        FileNotFoundError: no such ARPA.
        ValueError: there is no unigram section (names the file), or a line in it is not a unigram (names the line).
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such ARPA. Train one, or get 4-gram.arpa.gz from openslr.org/11.")
    inside = False
    for number, line in enumerate(text_lines(path), start=1):
        if inside and line.startswith("\\"):
            return  # the bigrams begin: the rest, most of the file, need not be read
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
        FileNotFoundError, ValueError: there is no such file, or it is not UTF-8, or it holds no words.
    """
    words = list(dict.fromkeys(line.split()[0] for line in text_lines(words_file) if line.strip()))
    if not words:
        raise ValueError(f"{words_file}: no words. Give one a line, or leave it out to take all words of the LM.")
    return words


def lexicon_words(words_file: PathLike, arpa: PathLike) -> List[str]:
    """The `listed_words` that the ARPA knows.

    Raises:
        ValueError: the ARPA knows none of them, so the two differ in case or language.
    """
    wanted = listed_words(words_file)
    known = set(wanted) & set(arpa_words(arpa))
    if not known:
        raise ValueError(
            f"{words_file}: {arpa} knows none of its {len(wanted)} words (the first is {wanted[0]!r}). Write the list "
            "in the case of the ARPA, or leave it out to take all words of the ARPA."
        )
    return [word for word in wanted if word in known]
