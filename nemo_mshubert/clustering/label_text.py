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

"""Labels as lines of numbers, for programs that read units as text."""

from itertools import groupby
from typing import Iterator, Optional

from nemo_mshubert.clustering.label_maker import LabelMaker
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import iter_manifest, utterance_id
from nemo_mshubert.whole_files import PathLike


def label_lines(
    manifest: PathLike, clusters: Optional[int] = None, maker: Optional[LabelMaker] = None, collapse: bool = False
) -> Iterator[str]:
    """``<utterance id><TAB>12 12 7 ...`` for each line of a labelled manifest: one number for every 20 ms.

    Args:
        clusters: size of the label set to write; the finest by default.
        maker: the label maker of the labels. Its tables give the coarser sets, if the manifest holds the finest alone.
        collapse: write repeated labels as one number.

    Raises:
        FileNotFoundError, ValueError: a line has no labels, labels of another maker, or no such set.
    """
    for where, entry in iter_manifest(manifest):
        sets = FrameLabels.from_manifest(entry.get("labels"), where, maker and maker.id).sets
        if maker is not None:
            sets = {**maker.expand(sets[max(sets)]), **sets}
        wanted = clusters or max(sets)
        if wanted not in sets:
            remedy = "Name one of these." if maker else "Give --kmeans, whose tables give those that follow from them."
            raise ValueError(f"{where}: no set of {wanted} clusters, but of {sorted(sets)}. {remedy}")
        numbers = sets[wanted].tolist()
        if collapse:
            numbers = [number for number, _ in groupby(numbers)]
        yield f"{utterance_id(entry)}\t{' '.join(map(str, numbers))}\n"
