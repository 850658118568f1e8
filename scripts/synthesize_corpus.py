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

"""Synthesise a small multi-voice English corpus in LibriSpeech's layout, with exact word and phone times.

python scripts/synthesize_corpus.py --output data/synthetic --train_minutes 20
python scripts/prepare_librispeech.py --data data/synthetic --output data/synthetic/manifests
"""

import argparse
import logging
import sys

from nemo_mshubert.data.synthetic.corpus import synthesize_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder of the corpus; run again to complete or repair it")
    parser.add_argument("--train_minutes", type=float, default=20, help="default: %(default)s")
    parser.add_argument("--dev_minutes", type=float, default=1.5, help="default: %(default)s")
    parser.add_argument("--test_minutes", type=float, default=2, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="for accents, manners of speaking and sentences")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        synthesize_corpus(args.output, args.train_minutes, args.dev_minutes, args.test_minutes, args.seed)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
