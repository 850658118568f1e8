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

r"""Tune LM weight, word score and silence score on dev sets with Ax (the paper: 32 trials with beam 500).

    python scripts/tune_decoding.py --log_probs dev_clean.safetensors dev_other.safetensors \
        --lm lm/4gram.bin --lexicon lm/4gram.lexicon --output tuned/10h.yaml

The log-probabilities come from scripts/evaluate.py. Writes tuned/10h.yaml (for evaluate.py), tuned/10h.png, and
tuned/10h.trials.jsonl, from which the same command resumes.
"""

import argparse
from pathlib import Path

from nemo_mshubert.decoding.config import read_config
from nemo_mshubert.decoding.tuning import tune
from nemo_mshubert.device import available_cores

DEFAULTS = Path(__file__).resolve().parents[1] / "conf" / "decode" / "lexicon_beam.yaml"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--log_probs", nargs="+", required=True, help="files of log-probabilities; their errors are added up"
    )
    parser.add_argument("--output", required=True, help="YAML file for the chosen values")
    parser.add_argument(
        "--config",
        default=DEFAULTS,
        help="beams, and the weights of the first trial (default: conf/decode/lexicon_beam.yaml)",
    )
    parser.add_argument("--lm", help="KenLM binary or ARPA, where the config does not name it")
    parser.add_argument("--lexicon", help="lexicon, where the config does not name it")
    parser.add_argument("--trials", type=int, default=32, help="default: the paper's %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes; by default one per core")
    args = parser.parse_args()
    if args.trials < 1:
        parser.error(f"--trials {args.trials}: at least 1")
    if Path(args.config).resolve() == Path(args.output).resolve():  # and the next call would start elsewhere
        parser.error(f"--config and --output are both {args.output}, which would be lost")
    return args


def main() -> None:
    args = parse_args()
    config = read_config(args.config, lm=args.lm, lexicon=args.lexicon)
    best = tune(config, args.log_probs, args.output, args.trials, args.seed, args.workers).best
    print(f"{args.output}: WER {100 * best.wer:.2f} % with {best.weights}")


if __name__ == "__main__":
    main()
