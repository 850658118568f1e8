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

"""Pack a NeMo manifest and its audio into NeMo's tarred layout. Run again, it makes only the missing files.

    python scripts/make_tarred.py --manifest train_labelled.json --output tarred --num_shards 8

Use it with ``manifest_filepath: tarred/sharded_manifests/manifest__OP_0..7_CL_.json`` and
``tarred_audio_filepaths: tarred/audio__OP_0..7_CL_.tar``.
"""

import argparse

from nemo_mshubert.data.tarred import make_tarred


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True, help="NeMo manifest, with or without labels")
    parser.add_argument("--output", required=True, help="folder of the tarred dataset")
    num_shards = (
        "at least GPUs x loader processes of each (model.train_ds.num_workers): every process reads a shard of its "
        "own at a time; with fewer, several read the same one, and an update sees its utterances more than once"
    )
    parser.add_argument("--num_shards", type=int, required=True, help=num_shards)
    parser.add_argument("--seed", type=int, default=0, help="for shuffling the utterances over the shards")
    parser.add_argument("--num_workers", type=int, default=2, help="shards written in parallel (default: 2)")
    arguments = parser.parse_args()
    path = make_tarred(**vars(arguments))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
