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

"""Compare our speed with other implementations, as ratios of times measured in the same run.

    python scripts/benchmark.py pretrain --sizes tiny base --output pretrain.json
    python scripts/benchmark.py decoding --log_probs dev-other.log_probs.safetensors --decode tuned.yaml

Prints a Markdown table and writes JSON (`pretrain` writes it after each size and batch). nemo_mshubert/benchmarks/
explains the rows of each subcommand. Subcommands that run a model use the GPU if there is one.
"""

import argparse
import importlib
from pathlib import Path

import torch

from nemo_mshubert.benchmarks.measurement import publish
from nemo_mshubert.device import choose_device
from nemo_mshubert.whole_files import make_place

CONFIGS = Path(__file__).resolve().parents[1] / "conf" / "pretrain"


def parse_args() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    sizes = sorted(path.stem for path in CONFIGS.glob("size/*.yaml"))
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    common.add_argument("--output", help="JSON file")
    confs = argparse.ArgumentParser(add_help=False, parents=[common])
    confs.set_defaults(configs=CONFIGS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    pretrain = commands.add_parser("pretrain", parents=[confs], help="the pre-training step")
    pretrain.add_argument("--sizes", nargs="+", choices=sizes, default=["base"] if on_gpu else ["tiny"])
    pretrain.add_argument("--batch_seconds", type=float, nargs="+", default=[87.5, 350] if on_gpu else [32])
    pretrain.add_argument("--utterance_seconds", type=float, default=12.5 if on_gpu else 4)
    pretrain.add_argument("--repeats", type=int, default=20 if on_gpu else 5)

    traffic = commands.add_parser("traffic", parents=[confs], help="GPU memory traffic of the step, without a GPU")
    traffic.add_argument("--sizes", nargs="+", choices=sizes, default=["base"])
    traffic.add_argument("--batch_seconds", type=float, nargs="+", default=[87.5, 350])
    traffic.add_argument("--utterance_seconds", type=float, default=12.5)
    traffic.add_argument(
        "--teraflops", type=float, default=680, help="bf16 matrix products, TFLOP/s; an H200 reaches 680"
    )
    traffic.add_argument("--terabytes", type=float, default=4.8, help="memory bandwidth, TB/s; an H200 has 4.8")

    host = commands.add_parser("host", parents=[confs], help="the host's part of the step, without the arithmetic")
    host.add_argument("--sizes", nargs="+", choices=sizes, default=["base"])
    host.add_argument("--repeats", type=int, default=50)

    loader = commands.add_parser("loader", parents=[confs], help="the training loader, from tarred FLAC")
    loader.add_argument("--manifest", required=True, help="labelled, FLAC files; packed into shards for the run")
    loader.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    loader.add_argument("--seconds", type=float, default=20, help="measuring time of each row")
    loader.add_argument("--shards", type=int, default=8)

    labelling = commands.add_parser("labelling", parents=[confs], help="features, labels and k-means")
    labelling.add_argument("--size", choices=sizes, default="base", help="model size, with random weights")
    labelling.add_argument("--manifest", required=True)
    labelling.add_argument("--seconds", type=float, default=3600 if on_gpu else 120, help="of audio")
    labelling.add_argument("--clusters", type=int, default=1000 if on_gpu else 100)
    labelling.add_argument("--frames", type=int, default=100_000 if on_gpu else 20_000, help="frames for k-means")
    labelling.add_argument("--repeats", type=int, default=3)

    inference = commands.add_parser("inference", parents=[confs], help="greedy CTC, from audio to text")
    inference.add_argument("--model", help=".nemo of a letter CTC model; random weights without it")
    inference.add_argument("--size", choices=sizes, default="base", help="for random weights")
    inference.add_argument("--manifest", required=True)
    inference.add_argument("--seconds", type=float, default=3600 if on_gpu else 120, help="of audio")
    inference.add_argument("--batch_seconds", type=float, default=120)
    inference.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of both sides")
    inference.add_argument("--repeats", type=int, default=3)

    decoding = commands.add_parser("decoding", parents=[common], help="the lexicon beam search")
    decoding.add_argument("--log_probs", required=True, help="file of scripts/evaluate.py")
    decoding.add_argument("--decode", required=True, help="YAML of scripts/tune_decoding.py, or of conf/decode")
    decoding.add_argument("--lm", help="KenLM file, where the YAML does not name it")
    decoding.add_argument("--lexicon", help="lexicon, where the YAML does not name it")
    decoding.add_argument("--beams", type=int, nargs="+", default=[50, 500, 1500])
    decoding.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    decoding.add_argument("--utterances", type=int, default=40, help="use the first N of the file")
    decoding.add_argument("--repeats", type=int, default=3, help="the fastest of them counts")
    arguments = parser.parse_args()
    for name, given in vars(arguments).items():
        numbers = [
            value for value in (given if isinstance(given, list) else [given]) if isinstance(value, (int, float))
        ]
        if name != "workers" and not all(number > 0 for number in numbers):  # with 0 workers the process itself loads
            parser.error(f"--{name} {' '.join(map(str, numbers))}: expected more than 0")
    return arguments


def main() -> None:
    arguments = vars(parse_args())
    command, threads, output = (arguments.pop(name) for name in ("command", "threads", "output"))
    if output:
        make_place(Path(output))  # before the measurement: the GPU may be rented
    if threads:
        torch.set_num_threads(threads)
    device = torch.device(choose_device("auto"))
    name = "pretraining_step" if command == "pretrain" else command
    module = importlib.import_module(f"nemo_mshubert.benchmarks.{name}")  # has COLUMNS and benchmark(...)
    rows = module.benchmark(**arguments, device=device)
    publish(command, arguments, rows, module.COLUMNS, device, output)


if __name__ == "__main__":
    main()
