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

"""Estimate what a pre-training needs before you rent machines: memory per GPU, days, loader cores, storage.

    python scripts/plan.py --experiment mshubert_large --hours 60000 --gpus 128 --parallel fsdp2 \\
        --benchmarks pretrain.json loader.json labelling.json

The files come from scripts/benchmark.py. A value that they do not hold is shown as "not measured", with the command
that measures it.
"""

import argparse
import math
from pathlib import Path

SHAPE = ("conv_layers", "d_model", "num_layers", "num_heads", "d_inner")  # they determine the cost of a step
CONFIGS = Path(__file__).resolve().parents[1] / "conf" / "pretrain"


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    experiment = dict(choices=sorted(path.stem for path in CONFIGS.glob("[!_]*.yaml")), metavar="NAME")
    parser.add_argument(
        "--experiment", default="mshubert_base", help="of conf/pretrain (default: %(default)s)", **experiment
    )
    parser.add_argument("--hours", type=float, required=True, help="of audio in the corpus")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--gpus_per_node", type=int, default=8, help="default: 8")
    parallel = dict(choices=sorted(path.stem for path in CONFIGS.glob("parallel/*.yaml")))
    parser.add_argument("--parallel", help="from conf/pretrain/parallel; default: plain data parallelism", **parallel)
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="of the experiment, such as model.train_ds.batch_duration=350"
    )
    parser.add_argument("--benchmarks", nargs="*", default=[], help="JSON files of scripts/benchmark.py")
    args = parser.parse_args(argv)
    for option in ("hours", "gpus", "gpus_per_node"):
        if not 0 < getattr(args, option) < math.inf:
            parser.error(f"--{option} {getattr(args, option)}: expected more than 0")
    return args


def main(argv=None) -> None:
    args = parse_args(argv)
    # after the options, so that --help need not wait for these imports
    from hydra import compose, initialize_config_dir

    from nemo_mshubert.benchmarks.planning import Cluster, plan, plan_table, read_reports

    with initialize_config_dir(str(CONFIGS), version_base=None):
        parallel = [f"parallel={args.parallel}"] if args.parallel else []
        config = compose(args.experiment, overrides=[*parallel, *args.overrides], return_hydra_config=True)
        size = config.hydra.runtime.choices["size"]
        as_measured = compose(args.experiment, overrides=[f"size={size}"]).model.encoder
    changed = [name for name in SHAPE if config.model.encoder[name] != as_measured[name]]
    if args.benchmarks and changed:
        raise SystemExit(
            f"plan.py: the measured steps of size {size} are of another {', '.join(changed)}. Leave out --benchmarks."
        )
    try:
        cluster = Cluster(args.gpus, args.gpus_per_node, config.trainer.strategy)
    except ValueError as error:
        raise SystemExit(f"plan.py: {error}")
    print(plan_table(plan(config, size, args.hours, cluster, read_reports(args.benchmarks))))


if __name__ == "__main__":
    main()
