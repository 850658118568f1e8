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

"""Diagnostics of pre-trained models: predictions per label set, the two views, and clusters per layer, with a plot.

    python scripts/diagnose.py --model MS-HuBERT=ms.nemo "- Swap"=noswap.nemo --manifest dev_labelled.json \\
        --alignments dev_phones.jsonl.gz --output diagnostics

The manifest must be labelled by the models' label maker. Writes diagnostics.json and diagnostics.png. Finished models
are not measured again. docs/analysis.md explains the values logged during training (val_* in TensorBoard).
"""

import argparse
import logging

from nemo_mshubert.analysis.model_names import named_model
from nemo_mshubert.device import choose_device


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = dict(nargs="+", action="extend", type=named_model, metavar="NAME=FILE.nemo")
    parser.add_argument("--model", required=True, **models)
    parser.add_argument("--manifest", required=True, help="labelled by scripts/label.py make")
    parser.add_argument(
        "--alignments", nargs="+", help="phones of the manifest, for the PNMI: JSONL (.gz) or TextGrids"
    )
    parser.add_argument(
        "--clusters", type=int, default=100, help="of the k-means of each layer (default: %(default)s)"
    )
    parser.add_argument(
        "--max_frames",
        type=int,
        default=20_000,
        help="aligned, half to fit and half to measure (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if any")
    parser.add_argument("--output", required=True, help="folder")
    args = parser.parse_args(argv)
    args.device = choose_device(args.device)
    return args


def main(argv=None) -> None:
    args = parse_args(argv)
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.analysis.diagnostics import diagnose_models, diagnosis_table
    from nemo_mshubert.data.alignments import read_alignments

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    alignments = read_alignments(args.alignments, "phone") if args.alignments else None
    options = (args.clusters, args.max_frames, args.device)
    print(diagnosis_table(diagnose_models(args.model, args.manifest, args.output, alignments, *options)))


if __name__ == "__main__":
    main()
