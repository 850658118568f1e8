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

"""Make a word n-gram LM and a lexicon for the lexicon beam search.

From text (plain, .gz, or the "text" of NeMo manifests), normalised to the model's letters:

    python scripts/train_ngram.py --text lm.txt.gz train.jsonl --order 4 --prune 0 0 1 --output lm/4gram

From an ARPA file, such as the official one of LibriSpeech (openslr.org/11), which is only converted to binary:

    python scripts/train_ngram.py --arpa 4-gram.arpa.gz --output lm/librispeech

Writes OUTPUT.bin and OUTPUT.lexicon (and OUTPUT.arpa from text), the `lm` and `lexicon` of conf/decode/*.yaml.
"""

import argparse
from pathlib import Path

from nemo_mshubert.alphabet import ENGLISH_LABELS, SPACE
from nemo_mshubert.decoding.lexicon import require_same_alphabet, write_lexicon
from nemo_mshubert.decoding.ngram import (
    arpa_words,
    binarize,
    lexicon_words,
    listed_words,
    normalized_sentences,
    train_arpa,
)
from nemo_mshubert.file_lock import alone

PAPERS_ORDER = 4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", help="text or NeMo manifests to train on, plain or .gz")
    source.add_argument("--arpa", help="ARPA file (plain or .gz) to use unchanged")
    parser.add_argument("--output", required=True, help="path of the results, without suffix")
    parser.add_argument("--order", type=int, help=f"2 to 6; default {PAPERS_ORDER}, as in the paper")
    parser.add_argument(
        "--prune",
        type=int,
        nargs="+",
        default=[],
        help="counts up to which n-grams are dropped: of order 1 (0), of order 2...; the last also of higher orders",
    )
    parser.add_argument("--words", help="word list for the lexicon; without it, all words of the LM")
    parser.add_argument(
        "--letters",
        default="".join(ENGLISH_LABELS).replace(SPACE, ""),
        help="the model's letters, in one string, without the word delimiter (default: English)",
    )
    parser.add_argument("--kenlm", help="folder of lmplz and build_binary if they are not on the PATH")
    args = parser.parse_args()
    if args.arpa and (args.order is not None or args.prune):
        parser.error("--order and --prune are for --text: an ARPA is taken as it is")
    if args.words and not Path(args.words).is_file():  # otherwise noticed only after training the LM
        parser.error(f"{args.words}: no such word list.")
    return args


def main() -> None:
    args = parse_args()
    lock = Path(f"{args.output}.lock")
    with alone(lock.with_name(f".{lock.name}"), "makes these files. Wait for it, or give another --output."):
        make_lm(args)


def make_lm(args: argparse.Namespace) -> None:
    labels = [SPACE, *args.letters]
    arpa = args.arpa or f"{args.output}.arpa"
    if args.words:
        listed = listed_words(args.words)  # so that its errors are found before the LM is trained
    if args.text:
        train_arpa(
            normalized_sentences(args.text, labels),
            arpa,
            PAPERS_ORDER if args.order is None else args.order,
            args.prune,
            args.kenlm,
        )
    words = lexicon_words(args.words, arpa) if args.words else list(arpa_words(arpa))
    if args.arpa:  # a text's running words were checked: most of its distinct words may be numbers and names
        require_same_alphabet(words, labels, where=args.arpa)
    if args.words:
        print(f"{args.words}: {len(listed) - len(words)} of {len(listed)} words left out, which the LM does not know")
    written, left_out = write_lexicon(f"{args.output}.lexicon", words, labels)
    print(f"{args.output}.lexicon: {written} words; {left_out} left out, with letters that the model lacks")
    binarize(arpa, f"{args.output}.bin", args.kenlm)
    print(f"{args.output}.bin: ready")


if __name__ == "__main__":
    main()
