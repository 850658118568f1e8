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

First iteration (HuBERT's MFCC labels), then second iteration (MS-HuBERT's six sets). Fit on training audio only. Label
training and validation audio with the same k-means file: labels from two different k-means are not comparable.

    python scripts/fit_kmeans.py --manifest train.json --features mfcc --clusters 100 --output km_mfcc.npz
    python scripts/fit_kmeans.py --manifest train.json --features hidden --encoder hubert_iter1.nemo --layer 6 \\
        --output km.npz

With ``--centres``, the finest set already exists and no audio is read. It comes from one of our k-means files or from
a published k-means: a joblib file, which does not say which features it was fitted on. Only the coarser sets are
fitted, on its centres.

    python scripts/fit_kmeans.py --centres hubert_base_ls960_L9_km500.bin --encoder hubert_base_ls960.pt --layer 9 \\
        --clusters 500 250 125 50 25 --output km.npz
"""

import argparse
import logging
from pathlib import Path

from nemo_mshubert.clustering.features import FeatureMaker, MfccFeatures
from nemo_mshubert.clustering.frame_sample import sample_corpus_frames
from nemo_mshubert.clustering.hierarchy import check_cluster_counts
from nemo_mshubert.clustering.kmeans import BACKENDS, choose_backend
from nemo_mshubert.clustering.label_maker import (
    ASSIGNMENTS,
    LabelMaker,
    coarsen_label_maker,
    fit_label_maker,
    is_own,
    is_pickle,
)
from nemo_mshubert.file_lock import alone

PAPERS_LAYER = 6


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    finest = parser.add_mutually_exclusive_group(required=True)
    finest.add_argument("--manifest", nargs="+", help="training manifests")
    finest.add_argument("--centres", help="k-means file (ours or joblib's) that gives the finest set")
    parser.add_argument("--features", choices=("mfcc", "hidden"), help="with --manifest")
    parser.add_argument(
        "--encoder", help=".nemo, Hugging Face folder, .pt or hub id (for hidden, and for --centres from joblib)"
    )
    parser.add_argument(
        "--layer",
        type=int,
        help=f"transformer layer, from 1 (hidden: default {PAPERS_LAYER}, as in the paper; and --centres from joblib)",
    )
    parser.add_argument(
        "--clusters",
        type=int,
        nargs="+",
        default=[1000, 500, 250, 125, 50, 25],
        help="finest first (default: the paper's 1000 500 250 125 50 25)",
    )
    parser.add_argument(
        "--assignment",
        choices=ASSIGNMENTS,
        default="nested",
        help="coarse labels: of the fine centre (nested, the default), or of the nearest coarse one",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="auto: cuML if it is installed and there is a GPU"
    )
    parser.add_argument(
        "--max_frames",
        type=int,
        default=1_000_000,
        help="frames sampled (default: %(default)s; hidden features of base: 3 GB per million)",
    )
    parser.add_argument("--skip_unusable", action="store_true", help="log broken audio and continue without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="of the encoder: cpu, cuda, cuda:1, ...; auto: a GPU if any")
    parser.add_argument("--output", required=True, help="k-means file (.npz)")
    args = parser.parse_args(argv)
    check_features(parser, args)
    try:
        refuse_existing(args.output)
        check_cluster_counts(args.clusters)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    return args


def refuse_existing(output: str) -> None:
    if Path(output).exists():
        raise FileExistsError(f"{output} exists, and labels may depend on it: remove it, or choose another --output")


def check_features(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    named = [args.encoder is not None, args.layer is not None]
    if args.centres:
        if args.features:
            parser.error("--features is for --manifest: --centres were fitted on theirs")
        if is_pickle(args.centres) and not all(named):
            parser.error(
                f"{args.centres} is of joblib and does not say what it was fitted on: give --encoder and --layer"
            )
        if any(named) and is_own(args.centres):
            parser.error(f"--encoder and --layer: {args.centres} itself says what it is of")
        if any(named) and not all(named):
            parser.error("--encoder and --layer: give both, for --centres of joblib")
    elif not args.features:
        parser.error("--manifest needs --features")
    elif args.features == "hidden" and not args.encoder:
        parser.error("--features hidden needs --encoder")
    elif args.features == "mfcc" and any(named):
        parser.error("--encoder and --layer are for --features hidden")


def make_features(args: argparse.Namespace) -> FeatureMaker:
    if args.features == "mfcc":
        return MfccFeatures()
    from nemo_mshubert.models.hidden_features import load_hidden_features  # imports NeMo, which MFCCs do not need

    return load_hidden_features(args.encoder, PAPERS_LAYER if args.layer is None else args.layer, args.device)


def read_centres(args: argparse.Namespace) -> LabelMaker:
    """The k-means of ``--centres``. Its finest set must have as many centres as the first of ``--clusters``."""
    if args.encoder is None:
        maker = LabelMaker.load(args.centres)
    else:
        from nemo_mshubert.convert.joblib_kmeans import label_maker_of_joblib

        maker = label_maker_of_joblib(args.centres, make_features(args).description)
    finest, asked = maker.sets[0], args.clusters[0]
    if asked != finest:
        raise ValueError(
            f"{args.centres}: its finest set has {finest} centres, but --clusters begins with {asked}. Begin with "
            f"{finest}, and fewer behind it."
        )
    return maker


def fit(args: argparse.Namespace, backend: str) -> LabelMaker:
    if args.centres:
        centres = read_centres(args)
        logging.info("fitting %s clusters on %d centres of %s", args.clusters[1:], centres.sets[0], args.centres)
        return coarsen_label_maker(centres, args.clusters[1:], args.assignment, backend, args.seed)
    features = make_features(args)
    frames = sample_corpus_frames(args.manifest, features, args.max_frames, args.seed, args.skip_unusable)
    logging.info("fitting %s clusters on %d frames of %s", args.clusters, len(frames), features.name)
    return fit_label_maker(frames, args.clusters, features.description, args.assignment, backend, args.seed)


def main(argv=None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(args.output)
    lock = output.with_name(f".{output.name}.lock")
    with alone(lock, "is fitting this k-means. Wait for it, or give another --output."):  # first: it may take hours
        refuse_existing(args.output)  # the other process may have made it meanwhile
        maker = fit(args, choose_backend(args.backend))
        maker.save(output)
    logging.info("%s: label maker %s", args.output, maker.id)


if __name__ == "__main__":
    main()
