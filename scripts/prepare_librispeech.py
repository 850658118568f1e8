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

"""Make NeMo manifests from LibriSpeech, Libri-Light's limited sets, or any corpus in LibriSpeech's layout.

python scripts/prepare_librispeech.py --data data --output data/manifests --download --subsets dev-clean 10h
python scripts/prepare_librispeech.py --data data/synthetic --output data/synthetic/manifests
"""

import argparse
import logging
import sys

from nemo_mshubert.data.hours_table import hours_table
from nemo_mshubert.data.librispeech import prepare_librispeech
from nemo_mshubert.data.librispeech_download import download_corpora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the subsets, or with LibriSpeech/ around them")
    parser.add_argument("--output", required=True, help="folder of the manifests")
    parser.add_argument(
        "--subsets", nargs="+", help="such as dev-clean, train-960, 10min, 1h, 10h; default: all that are there"
    )
    parser.add_argument("--download", action="store_true", help="first fetch what is missing (all: 62 GB of archives)")
    parser.add_argument("--workers", type=int, default=8, help="threads that read audio headers")
    parser.add_argument("--skip_broken", action="store_true", help="leave broken utterances out instead of failing")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.download:
            download_corpora(args.data, args.subsets)
        manifests = prepare_librispeech(args.data, args.output, args.subsets, args.workers, args.skip_broken)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(hours_table(manifests, "speakers", "speaker", "utterances"))


if __name__ == "__main__":
    main()
