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

"""Make NeMo manifests from a folder of recordings for pre-training: the first command for your own audio.

    python scripts/prepare_folder.py --data recordings --output train.json --dev_output dev.json
    python scripts/prepare_folder.py --data recordings --output train.json --mono recordings_mono --skip_broken

Takes every file that libsndfile reads (.wav, .flac, .mp3, .ogg, .opus and others), at any depth, except hidden files.
Only the header and the last samples of a file are read, except for multi-channel files, which --mono mixes down.
"""

import argparse
import logging
import sys

from nemo_mshubert.data.audio_folder import DEV_SHARE, SEGMENT_SECONDS, prepare_folder
from nemo_mshubert.data.hours_table import hours_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the recordings")
    parser.add_argument("--output", required=True, help="manifest to be written, such as train.json")
    parser.add_argument("--dev_output", help="a second manifest, with --dev_share of the files, such as dev.json")
    parser.add_argument(
        "--dev_share", type=float, default=DEV_SHARE, help="chosen by a hash of the paths (default: %(default)s)"
    )
    segments = (
        "longer files are split into equal pieces, one per line (default: %(default)s), since an epoch of "
        "pre-training uses 15.6 s of each line; 0: whole files"
    )
    parser.add_argument("--segment_seconds", type=float, default=SEGMENT_SECONDS, help=segments)
    parser.add_argument("--mono", help="folder for mono mixes of multi-channel files, which otherwise are refused")
    parser.add_argument("--workers", type=int, default=8, help="threads that read audio")
    parser.add_argument("--skip_broken", action="store_true", help="leave broken files out instead of failing")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        manifests = prepare_folder(**vars(args))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(hours_table(manifests, "files", "audio_filepath", "lines"))


if __name__ == "__main__":
    main()
