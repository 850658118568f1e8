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

"""Make a folder to publish a model: the ``.nemo``, the same weights for transformers, and a model card in both.

    python scripts/evaluate.py --model finetuned.nemo --manifest dev-other.json test-other.json --output results
    python scripts/publish.py --model finetuned.nemo --output ms-hubert-base-100h --licence cc-by-4.0 \\
        --data "Pre-training: LibriSpeech, 960 h, without transcripts" "Fine-tuning: train-clean-100" \\
        --results results/results.json
    hf upload ORGANISATION/ms-hubert-base-100h ms-hubert-base-100h         # needs an account

Then ``ASRModel.from_pretrained("ORGANISATION/ms-hubert-base-100h")`` loads the model. Every script that takes a
``.nemo`` takes this name, too, and before the upload the folder.
"""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=".nemo, or anything else that scripts take instead of one")
    parser.add_argument("--output", required=True, help="new folder; its name becomes the model's name")
    parser.add_argument("--licence", required=True, help="as the hub names it: apache-2.0, cc-by-4.0, ...")
    parser.add_argument("--data", nargs="+", required=True, help="one sentence per corpus")
    parser.add_argument("--results", help="results.json of scripts/evaluate.py, of this model")
    parser.add_argument("--language", default="en", help="code, as de (default: en)")
    arguments = parser.parse_args()
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.convert.model_card import Facts
    from nemo_mshubert.convert.publishing import publish
    from nemo_mshubert.decoding.results import read_results

    facts = Facts(arguments.licence, arguments.data, arguments.language)
    if arguments.results:
        stored = read_results(arguments.results)
        facts.results, facts.evaluated = stored.results, stored.weights
    print(f"wrote {arguments.output}: {', '.join(publish(arguments.model, arguments.output, facts))}")


if __name__ == "__main__":
    main()
