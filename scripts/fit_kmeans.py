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

"""Fit the k-means hierarchy that makes pseudo-labels, on MFCCs or on a layer of a pre-trained encoder.

First iteration (HuBERT's MFCC labels), then second iteration (MS-HuBERT's six sets). Fit on training audio only, and
label training and validation audio with the one file this makes: labels of two k-means have nothing in common.

    python scripts/fit_kmeans.py --manifest train.json --features mfcc --clusters 100 --output km_mfcc.npz
    python scripts/fit_kmeans.py --manifest train.json --features hidden --encoder hubert_iter1.nemo --layer 6 \\
        --output km.npz
"""

import argparse
import logging
from pathlib import Path

from nemo_mshubert.clustering.features import FeatureMaker, HiddenFeatures, MfccFeatures
from nemo_mshubert.clustering.hierarchy import check_cluster_counts
from nemo_mshubert.clustering.kmeans import BACKENDS, choose_backend
from nemo_mshubert.clustering.label_maker import ASSIGNMENTS, fit_label_maker
from nemo_mshubert.clustering.labelling import sample_corpus_frames
from nemo_mshubert.device import choose_device

PAPERS_LAYER = 6


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", nargs="+", required=True, help="training manifests")
    parser.add_argument("--features", choices=("mfcc", "hidden"), required=True)
    parser.add_argument("--encoder", help=".nemo, Hugging Face folder, .pt or hub id (hidden)")
    parser.add_argument(
        "--layer", type=int, help=f"transformer layer, from 1 (hidden); default {PAPERS_LAYER}, as in the paper"
    )
    parser.add_argument("--clusters", type=int, nargs="+", default=[1000, 500, 250, 125, 50, 25], help="finest first")
    parser.add_argument("--assignment", choices=ASSIGNMENTS, default="nested", help="how coarse labels are assigned")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="auto: cuML if installed and there is a GPU"
    )
    parser.add_argument("--max_frames", type=int, default=1_000_000, help="frames sampled (hidden: 3 GB per million)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="of the encoder: cpu, cuda, cuda:1, ...; auto: a GPU if any")
    parser.add_argument("--output", required=True, help="k-means file (.npz)")
    args = parser.parse_args(argv)
    if args.features == "hidden" and not args.encoder:
        parser.error("--features hidden needs --encoder")
    if args.features == "mfcc" and (args.encoder or args.layer is not None):
        parser.error("--encoder and --layer are for --features hidden")
    if Path(args.output).exists():
        parser.error(f"{args.output} exists, and labels may depend on it: remove it, or choose another --output")
    try:
        check_cluster_counts(args.clusters)
    except ValueError as error:
        parser.error(str(error))
    return args


def make_features(args: argparse.Namespace) -> FeatureMaker:
    if args.features == "mfcc":
        return MfccFeatures()
    from nemo_mshubert.models.loading import load_encoder  # imports NeMo, which MFCCs do without

    return HiddenFeatures(
        load_encoder(args.encoder), PAPERS_LAYER if args.layer is None else args.layer, choose_device(args.device)
    )


def main(argv=None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)  # first: the fit may take hours
    backend = choose_backend(args.backend)
    features = make_features(args)
    frames = sample_corpus_frames(args.manifest, features, args.max_frames, args.seed)
    logging.info("fitting %s clusters on %d frames of %s", args.clusters, len(frames), features.name)
    maker = fit_label_maker(frames, args.clusters, features.description, args.assignment, backend, args.seed)
    maker.save(args.output)
    logging.info("%s: label maker %s", args.output, maker.id)


if __name__ == "__main__":
    main()
