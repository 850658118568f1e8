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

"""Compute word times for a corpus that has none, by CTC forced alignment with a fine-tuned model.

    python scripts/align.py --model finetuned.nemo --manifest dev.json --output dev_words.jsonl
    python scripts/align.py --model ctc.nemo --manifest dev.json --output w.jsonl --reference known_words.jsonl.gz

analyze_cca.py and label.py take the output as --alignments. With --reference, the script prints how far the word
boundaries are from known ones. After an interruption, the same command continues.
"""

import argparse
import json
import logging


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="CTC .nemo, letters or BPE")
    parser.add_argument("--manifest", required=True, help="NeMo manifest with text")
    parser.add_argument("--output", required=True, help="JSONL file, compressed where its name ends in .gz")
    parser.add_argument("--reference", help="known word times of these utterances: JSONL (.gz) or TextGrids")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: a GPU if any")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.analysis.alignment import align_manifest, compare_times
    from nemo_mshubert.data.alignments import read_alignments
    from nemo_mshubert.decoding.evaluation import load_ctc_model

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    known = read_alignments([args.reference], "word") if args.reference else None  # first, as aligning takes long
    report = align_manifest(load_ctc_model(args.model, args.device), args.manifest, args.output)
    if known is not None:
        report["against_reference"] = compare_times(read_alignments([args.output], "word"), known)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
