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

"""Write the features of a manifest's utterances to NumPy files: hidden states of a layer, or MFCCs.

    python scripts/extract_features.py --encoder mshubert_base.nemo --layer 9 --manifest dev.json --output features/
    python scripts/extract_features.py --mfcc --manifest dev.json --output mfcc/

``<output>/<utterance id>.npy`` is float32 [T, D], 50 frames per second. These are the features that
scripts/fit_kmeans.py and scripts/label.py use: unmasked, in fp32. Existing files are kept, so the same command
continues after an interruption.
"""

import argparse
import logging


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--encoder", help=".nemo, Hugging Face folder, .pt or hub id")
    kind.add_argument("--mfcc", action="store_true", help="MFCCs with deltas, 39 dimensions")
    parser.add_argument("--layer", type=int, help="transformer layer, from 1")
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--device", default="auto", help="of the encoder: cpu, cuda:1, ...; auto: a GPU if any")
    args = parser.parse_args(argv)
    if (args.encoder is None) != (args.layer is None):
        parser.error("--layer and --encoder go together")
    return args


def main(argv=None) -> None:
    args = parse_args(argv)
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.clustering.feature_files import write_features
    from nemo_mshubert.clustering.features import MfccFeatures

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.mfcc:
        features = MfccFeatures()
    else:
        from nemo_mshubert.models.hidden_features import load_hidden_features  # imports NeMo, which MFCCs do not need

        features = load_hidden_features(args.encoder, args.layer, args.device)
    written = write_features(args.manifest, args.output, features)
    print(f"wrote {written} files to {args.output}")


if __name__ == "__main__":
    main()
