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

"""Make the frame labels of a manifest, on one or several machines, check them, or write them as text.

    python scripts/label.py make --kmeans km.npz --encoder hubert_iter1.nemo --manifest train.json \\
        --output train_l.json
    python scripts/label.py check --manifest train_l.json --kmeans km.npz

A published k-means (a joblib file, as fairseq's learn_kmeans.py writes) does not say which features it was fitted on:
give its encoder and layer. A copy in our format, train_l.kmeans.npz, is written beside the output; pretrain.py,
`merge` and `check` need it:

    python scripts/label.py make --kmeans hubert_base_ls960_L9_km500.bin --encoder hubert_base_ls960.pt --layer 9 \\
        --manifest train.json --output train_l.json

Several GPUs can share the lines of a manifest: under torchrun, or as separate jobs whose shards are then merged:

    torchrun --nproc_per_node 8 scripts/label.py make ...
    python scripts/label.py make --shard 3/8 --kmeans km.npz --manifest train.json --output train_l.json
    python scripts/label.py merge --shards 8 --kmeans km.npz --manifest train.json --output train_l.json

An interrupted `make` continues where it stopped. It overwrites no file except an earlier result of the same k-means.
`check` reads every line and every audio header. It prints entropy and dead clusters, and reports an error with its
``file:line``. `text` writes the labels as units, one line per utterance:

    python scripts/label.py text --manifest train_l.json --output units.txt --clusters 100 --kmeans km.npz --collapse
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Tuple

from nemo_mshubert.clustering.features import FeatureMaker, HiddenFeatures, MfccFeatures
from nemo_mshubert.clustering.label_maker import LabelMaker, is_own, is_pickle
from nemo_mshubert.clustering.label_text import label_lines
from nemo_mshubert.clustering.labelling import Shard, label_manifest, merge_shards
from nemo_mshubert.clustering.metrics import measure_manifest, warn_of_few_clusters
from nemo_mshubert.data.alignments import check_aligned, read_alignments
from nemo_mshubert.data.labels import check_labelled_manifest
from nemo_mshubert.parallel.launched import launched_ranks
from nemo_mshubert.whole_files import atomic_write

OWN_KMEANS = (
    "k-means file of scripts/fit_kmeans.py; for one of joblib, the .kmeans.npz that make left beside its output"
)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="label a manifest")
    merge = commands.add_parser("merge", help="join the shards of a labelled manifest")
    merge.add_argument("--shards", type=int, required=True, help="number of shards")
    make.add_argument("--kmeans", required=True, help="k-means file of scripts/fit_kmeans.py or joblib")
    merge.add_argument("--kmeans", required=True, help=OWN_KMEANS)
    for command in (make, merge):
        command.add_argument("--manifest", required=True)
        command.add_argument("--output", required=True, help="labelled manifest")
        command.add_argument(
            "--alignments",
            help="JSONL (.gz) of phones or words, or TextGrids (their folder): adds purity and PNMI to the metrics",
        )
        command.add_argument("--metrics_output", help="JSON file for the metrics")
    make.add_argument("--shard", type=parse_shard, help="0/8 to 7/8: a part of the lines; torchrun: by rank")
    make.add_argument("--encoder", help="for a k-means of hidden features: .nemo, Hugging Face folder, .pt or hub id")
    make.add_argument(
        "--skip_unusable",
        action="store_true",
        help="leave out utterances that are broken, or of two seconds or more with one label throughout; they are "
        "listed beside OUTPUT, for train_l.json in train_l.left_out.json",
    )
    make.add_argument("--layer", type=int, help="transformer layer (from 1) of a joblib k-means")
    make.add_argument(
        "--device", default="auto", help="of the encoder: cpu, cuda:1, ...; auto: the GPU of this rank, if any"
    )
    check = commands.add_parser("check", help="check a labelled manifest")
    check.add_argument("--manifest", required=True)
    check.add_argument("--kmeans", help=f"all labels must come from it: {OWN_KMEANS}")
    text = commands.add_parser("text", help="write the labels of a manifest as text: utterance, tab, numbers")
    text.add_argument("--manifest", required=True, help="labelled manifest")
    text.add_argument("--output", required=True, help="text file")
    text.add_argument("--clusters", type=int, help="number of clusters of the label set (default: finest)")
    text.add_argument("--kmeans", help=f"for a set that is not in the manifest: {OWN_KMEANS}")
    text.add_argument("--collapse", action="store_true", help="write repeated labels once")
    args = parser.parse_args(argv)
    if args.command in ("make", "merge") and args.alignments and not Path(args.alignments).exists():
        parser.error(f"{args.alignments}: no such alignments")
    if args.command == "make" and args.shard and (args.alignments or args.metrics_output):
        parser.error("--alignments and --metrics_output of shards are for merge, which has all of the labels")
    if args.command == "make":
        check_features(parser, args)
    return args


def parse_shard(text: str) -> Shard:
    """``"2/8"`` -> part 2 of the parts 0 to 7."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected part/number of parts, the parts counted from 0: of 8 they are 0/8 to 7/8."
        )
    return Shard(int(index), int(count))


def check_features(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    named = args.encoder is not None and args.layer is not None
    if is_pickle(args.kmeans) and not named:
        parser.error(f"{args.kmeans} is of joblib and does not say what it was fitted on: give --encoder and --layer")
    if args.layer is not None and is_own(args.kmeans):
        parser.error(f"--layer: {args.kmeans} itself says of which layer it is")
    if args.layer is not None and args.encoder is None:
        parser.error("--layer: of which --encoder?")


def read_kmeans(args: argparse.Namespace) -> Tuple[LabelMaker, FeatureMaker]:
    """The label maker of ``--kmeans``, and the feature maker it was fitted with."""
    if args.layer is None:
        maker = LabelMaker.load(args.kmeans)
        return maker, make_features(maker, args)
    from nemo_mshubert.convert.joblib_kmeans import label_maker_of_joblib

    features = hidden_features(args, args.layer)
    return label_maker_of_joblib(args.kmeans, features.description), features


def make_features(maker: LabelMaker, args: argparse.Namespace) -> FeatureMaker:
    if maker.features.kind == "mfcc":
        if args.encoder:
            raise ValueError(f"{args.kmeans} is of {maker.features.name}, which need no --encoder. Leave it out.")
        return MfccFeatures()
    if not args.encoder:
        raise ValueError(f"{args.kmeans} is of {maker.features.name}: name its .nemo with --encoder.")
    return hidden_features(args, maker.features.layer)


def hidden_features(args: argparse.Namespace, layer: int) -> HiddenFeatures:
    from nemo_mshubert.models.hidden_features import load_hidden_features  # imports NeMo, which MFCCs do not need

    return load_hidden_features(args.encoder, layer, args.device)


def make_labels(args: argparse.Namespace) -> None:
    if args.alignments:
        check_aligned([args.manifest], read_alignments([args.alignments]))  # now rather than after all is labelled
    with launched_ranks() as ranks:
        if args.shard and ranks.count > 1:
            raise ValueError("--shard under torchrun: its ranks are the shards. Leave out one of the two.")
        maker, features = read_kmeans(args)
        shard = args.shard or Shard(ranks.rank, ranks.count)
        label_manifest(args.manifest, args.output, maker, features, shard, args.skip_unusable)
        if args.layer is not None:  # the k-means is from joblib
            path = Path(args.output).with_suffix(".kmeans.npz")
            maker.save(path)
            logging.info("%s: label maker %s", path, maker.id)
        ranks.wait()
        if args.shard is None and ranks.rank == 0:
            merge_shards(args.manifest, args.output, maker, ranks.count)
            print_metrics(maker, args)


def merge_labels(args: argparse.Namespace) -> None:
    maker = LabelMaker.load(args.kmeans)
    merge_shards(args.manifest, args.output, maker, args.shards)
    print_metrics(maker, args)


def print_metrics(maker: LabelMaker, args: argparse.Namespace) -> None:
    alignments = read_alignments([args.alignments]) if args.alignments else None
    report = measure_manifest(args.output, maker, alignments)
    warn_of_few_clusters(report)
    metrics = json.dumps(report, indent=2)
    print(metrics)
    if args.metrics_output:
        with atomic_write(args.metrics_output) as stream:
            stream.write(metrics + "\n")


def write_text(args: argparse.Namespace) -> None:
    maker = LabelMaker.load(args.kmeans) if args.kmeans else None
    with atomic_write(args.output) as stream:
        stream.writelines(label_lines(args.manifest, args.clusters, maker, args.collapse))


def check_labels(args: argparse.Namespace) -> None:
    maker = LabelMaker.load(args.kmeans).id if args.kmeans else None
    print(json.dumps(check_labelled_manifest(args.manifest, maker), indent=2))


def main(argv=None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = {"make": make_labels, "merge": merge_labels, "check": check_labels, "text": write_text}
    commands[args.command](args)


if __name__ == "__main__":
    main()
