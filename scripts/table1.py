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

"""The paper's Table 1: fine-tune, tune and decode every model on every split, and print the WERs beside the paper's.

    python scripts/table1.py                                        # conf/table1/librispeech.yaml
    python scripts/table1.py --spec mine.yaml --models MS-HuBERT --splits 1h 10h

Runs the public scripts and prints their command lines. Run again, it skips finished steps and continues an interrupted
one. Writes table1.md, .csv and .tex to the output folder and updates them after every step. Several machines with a
common file system can share the work with --models and --splits.
"""

import argparse
import signal
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = REPOSITORY / "conf" / "table1" / "librispeech.yaml"
    parser.add_argument("--spec", default=default, help="YAML of models, splits, sets and LM")
    parser.add_argument("--models", nargs="+", help="names of the models to run; by default all")
    parser.add_argument("--splits", nargs="+", help="names of the splits to run; by default all")
    args = parser.parse_args()
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.decoding.table1.report import write_tables
    from nemo_mshubert.decoding.table1.run import run_table1
    from nemo_mshubert.decoding.table1.spec import read_spec

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the step ends first and can be resumed
    try:
        spec = read_spec(args.spec)
        run_table1(spec, REPOSITORY, args.models, args.splits)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"\n{write_tables(spec, REPOSITORY / 'conf')}")


if __name__ == "__main__":
    main()
