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

"""WER and CER of a CTC model, with greedy decoding and, with --decode, lexicon beam search with an n-gram LM.

    python scripts/evaluate.py --model finetuned.nemo --manifest dev.json test.json --output results
    python scripts/evaluate.py --model finetuned.nemo --manifest test.json --output results --decode tuned.yaml \\
        --beam_size 1500

Prints a table. Writes results.json (it keeps this model's results for other manifests and decodings), a manifest with
predictions per decoding, and the log-probabilities for scripts/tune_decoding.py. Files longer than a minute are
processed in overlapping chunks. Under torchrun, the ranks share the utterances:
`torchrun --nproc_per_node 8 scripts/evaluate.py ... --workers 4` (beam search processes per rank). If it is
interrupted, the same command goes on where it was.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import ContextManager

from nemo_mshubert.decoding.config import read_config
from nemo_mshubert.decoding.references import read_references
from nemo_mshubert.file_lock import alone
from nemo_mshubert.whole_files import make_folder


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=".nemo of a CTC model")
    parser.add_argument("--manifest", nargs="+", required=True, help="NeMo manifests with text")
    parser.add_argument("--output", required=True, help="folder for results, predictions and log-probabilities")
    parser.add_argument("--decode", help="YAML of scripts/tune_decoding.py, or conf/decode/lexicon_beam.yaml")
    parser.add_argument("--lm", help="KenLM file, where the YAML does not name it")
    parser.add_argument("--lexicon", help="lexicon, where the YAML does not name it")
    parser.add_argument(
        "--beam_size", type=int, help="replaces the YAML's value; the paper: 500 on dev, 1500 on test sets"
    )
    parser.add_argument(
        "--batch_seconds", type=float, default=120, help="padded audio per batch (default: %(default)s)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if any")
    parser.add_argument(
        "--workers", type=int, help="beam search processes per rank (default: the cores, divided among the ranks)"
    )
    args = parser.parse_args()
    if len({Path(manifest).stem for manifest in args.manifest}) < len(args.manifest):
        parser.error("two manifests have one file name, by which their results are told apart; rename one.")
    if not args.decode and (args.lm or args.lexicon or args.beam_size is not None):
        parser.error(
            "--lm, --lexicon and --beam_size are of the beam search: add --decode conf/decode/lexicon_beam.yaml."
        )
    for name in ("beam_size", "batch_seconds", "workers"):
        number = getattr(args, name)
        if number is not None and not number > 0:
            parser.error(f"--{name} {number}: expected more than 0")
    return args


def alone_in(output: str, ranks) -> ContextManager:
    """Lock the folder: two processes would each write the results that they read at the start, without the other's."""
    lock = Path(output) / ".lock"
    return nullcontext() if ranks.rank else alone(lock, "evaluates here. Wait for it, or give another --output.")


def main() -> None:
    args = parse_args()
    for manifest in args.manifest:  # read all first: an error in the last must not waste the passes over the others
        read_references(manifest)
    beam_config = None
    if args.decode:
        beam_config = read_config(args.decode, lm=args.lm, lexicon=args.lexicon, beam_size=args.beam_size)
    make_folder(args.output)  # for the same reason
    # after these checks, so that they and --help need not wait for these imports
    from nemo_mshubert.decoding.evaluation import evaluate_manifests, greedy_decoder, lexicon_decoder, load_ctc_model
    from nemo_mshubert.decoding.results import results_table
    from nemo_mshubert.parallel.launched import launched_ranks

    with launched_ranks() as ranks, alone_in(args.output, ranks):
        model = load_ctc_model(args.model, args.device, args.precision)
        decoders = {"greedy": greedy_decoder(model)}
        if beam_config:
            decoders["lexicon_beam"] = lexicon_decoder(model, beam_config, args.workers)
        results = evaluate_manifests(
            model, args.model, args.manifest, args.output, decoders, args.batch_seconds, ranks
        )
        if results:
            print(results_table(results))


if __name__ == "__main__":
    main()
