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

"""How much does each layer know of word identity? PWCCA of pooled hidden states and words (the paper's Figure 2).

    python scripts/analyze_cca.py --model MS-HuBERT=ms.nemo "- Swap"=noswap.nemo HuBERT=hubert.nemo \\
        --manifest dev-clean.json --alignments dev_words.jsonl.gz --train_alignments train_words.jsonl.gz --output cca
    python scripts/analyze_cca.py --units phones --model MS-HuBERT=ms.nemo --manifest dev-clean.json \\
        --alignments textgrids/dev-clean --train_alignments textgrids/train-clean-100 --output cca_phones

Models are pre-trained or CTC .nemo files. If one NAME has several files, the plot shows their mean and range.
Alignments are JSONL (.gz), TextGrids of the Montreal Forced Aligner, or folders of TextGrids. Writes cca.png,
cca.csv, cca.json and summary.md (mean and spread where a name has several files). After an interruption, the same
command continues; finished models are not computed again.
"""

import argparse
import logging
from functools import partial

from nemo_mshubert.analysis.cca import WEIGHTS, CcaSettings
from nemo_mshubert.analysis.model_names import named_model
from nemo_mshubert.device import choose_device

# Words: as Pasad et al. Phones: all of them, with about as many instances in total as for words (our assumption).
DEFAULT_TOP = {"words": 500, "phones": None}
DEFAULT_INSTANCES = {"words": 15, "phones": 200}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = dict(nargs="+", action="extend", type=named_model, metavar="NAME=FILE.nemo")
    parser.add_argument("--model", required=True, **models)
    parser.add_argument("--manifest", nargs="+", required=True, help="speech to take instances from (the paper: dev)")
    parser.add_argument("--alignments", nargs="+", required=True, help="of the manifest: JSONL (.gz) or TextGrids")
    parser.add_argument("--train_alignments", nargs="+", help="used to count units (default: --alignments)")
    parser.add_argument("--units", choices=("words", "phones"), default="words")
    parser.add_argument("--top", type=int, help="number of most frequent units (default: 500 words, all phones)")
    parser.add_argument("--instances", type=int, help="maximum per unit (default: 15 of a word, 200 of a phone)")
    parser.add_argument("--weights", choices=WEIGHTS, default="published", help="PWCCA weights, see analysis/cca.py")
    parser.add_argument("--seed", type=int, default=0, help="for instances, splits and epsilons")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if any")
    parser.add_argument("--output", required=True, help="folder")
    args = parser.parse_args(argv)
    for name, value in (("top", args.top), ("instances", args.instances)):
        if value is not None and value < 1:  # -1 would take all but one, and 0 the default number
            parser.error(f"--{name} {value}: at least 1")
    args.top = args.top or DEFAULT_TOP[args.units]
    args.instances = args.instances or DEFAULT_INSTANCES[args.units]
    args.device = choose_device(args.device)
    return args


def main(argv=None) -> None:
    args = parse_args(argv)
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.analysis.cca_report import analyze_models, load_hidden_states, results_table, summary_table
    from nemo_mshubert.analysis.word_segments import commonest_units, sample_instances
    from nemo_mshubert.data.alignments import read_alignments

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    kind = args.units[:-1]
    alignments = read_alignments(args.alignments, kind)
    counted = read_alignments(args.train_alignments, kind) if args.train_alignments else alignments
    units = commonest_units(counted, args.top)
    sample = sample_instances(args.manifest, alignments, units, args.instances, args.seed)
    settings = CcaSettings(weights=args.weights, seed=args.seed)
    load = partial(load_hidden_states, device=args.device)
    runs = analyze_models(args.model, sample, args.output, settings, load)
    print(f"{results_table(runs)}\n\n{summary_table(runs)}")


if __name__ == "__main__":
    main()
