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

"""Put a pre-trained encoder into a stock NeMo CTC model, ready for finetune_ctc.py or any NeMo fine-tuning script.

python scripts/ssl_to_ctc.py --ssl mshubert_base.nemo --output ctc.nemo                       # letters
python scripts/ssl_to_ctc.py --ssl mshubert_base.nemo --tokenizer_dir tokenizer --output bpe.nemo
"""

import argparse
import os


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ssl", required=True, help="pre-trained .nemo, Hugging Face folder, .pt or hub id")
    parser.add_argument("--output", required=True, help=".nemo of the CTC model")
    parser.add_argument(
        "--tokenizer_dir", help="folder with tokenizer.model and vocab.txt: EncDecCTCModelBPE instead of letters"
    )
    parser.add_argument("--letters", help="letters of another language, in one string, without the space")
    parser.add_argument(
        "--from_scratch", action="store_true", help="random weights: the baseline without pre-training"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    arguments = parser.parse_args()
    if os.path.abspath(arguments.ssl) == os.path.abspath(arguments.output):
        parser.error(f"--ssl and --output are both {arguments.output}, which would be lost")
    if not arguments.output.endswith(".nemo"):  # the other scripts recognise the format by it
        parser.error(f"--output {arguments.output}: expected a name that ends in .nemo")
    # after the options, so that --help need not wait for these imports
    import lightning.pytorch as pl

    from nemo_mshubert.models.ctc import ssl_to_ctc
    from nemo_mshubert.models.loading import save_model

    pl.seed_everything(arguments.seed)
    model = ssl_to_ctc(arguments.ssl, arguments.tokenizer_dir, arguments.from_scratch, arguments.letters)
    save_model(model, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
