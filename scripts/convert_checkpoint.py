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

"""Convert HuBERT, wav2vec 2.0, WavLM, data2vec-audio and MS-HuBERT checkpoints between ecosystems.

    python scripts/convert_checkpoint.py --input hubert-base-ls960 --output hubert.nemo         # a Hugging Face folder
    python scripts/convert_checkpoint.py --input wav2vec_small.pt --output wav2vec2.nemo        # fairseq, s3prl
    python scripts/convert_checkpoint.py --input ctc.nemo --output ctc_for_transformers         # a folder
    python scripts/convert_checkpoint.py --input mshubert.nemo --output mshubert.pt             # fairseq's layout

A ``.nemo`` output is a stock CTC model over letters. ssl_to_ctc.py, finetune_ctc.py, fit_kmeans.py and label.py accept
it like our own models. Its output layer is random unless the source had one. The script prints what it assumed or
dropped.
"""

import argparse
import os

OTHER_SUFFIXES = (".bin", ".safetensors", ".pth", ".th", ".ckpt")  # not names of folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="file, Hugging Face folder, or hub id")
    parser.add_argument("--output", required=True, help=".nemo, .pt (fairseq), or a new folder (Hugging Face)")
    sources, targets = ("auto", "huggingface", "fairseq", "torchaudio", "nemo"), ("nemo", "huggingface", "fairseq")
    parser.add_argument("--from", dest="source", choices=sources, default="auto", help="auto: detect the format")
    parser.add_argument("--to", dest="target", choices=targets, help="default: from the output's name")
    arguments = parser.parse_args()
    if os.path.abspath(arguments.input) == os.path.abspath(arguments.output):
        parser.error(f"--input and --output are both {arguments.output}, which would be lost")
    suffix = os.path.splitext(arguments.output)[1]
    if not arguments.target and suffix in OTHER_SUFFIXES:
        parser.error(f"--output {arguments.output}: nothing is written as {suffix}. Take .nemo, .pt or a new folder.")
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.convert.conversion import read_checkpoint, write_checkpoint
    from nemo_mshubert.models.loading import local_path

    # A published folder also holds a .nemo, which local_path would choose.
    is_chosen = arguments.source == "huggingface" and os.path.isdir(arguments.input)
    checkpoint = read_checkpoint(arguments.input if is_chosen else local_path(arguments.input), arguments.source)
    for note in checkpoint.notes:
        print(f"note: {note}")
    print(f"wrote {arguments.output}: {write_checkpoint(checkpoint, arguments.output, arguments.target)}")


if __name__ == "__main__":
    main()
