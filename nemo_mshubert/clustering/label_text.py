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

"""Labels as lines of numbers, for programs that take units as text."""

from itertools import groupby
from typing import Iterator, Optional

from nemo_mshubert.clustering.label_maker import LabelMaker
from nemo_mshubert.data.labels import FrameLabels
from nemo_mshubert.data.manifest import iter_manifest, utterance_id
from nemo_mshubert.whole_files import PathLike


def label_lines(
    manifest: PathLike, clusters: Optional[int] = None, maker: Optional[LabelMaker] = None, collapse: bool = False
) -> Iterator[str]:
    """``<utterance id><TAB>12 12 7 ...`` of each line of a labelled manifest: a number for every 20 ms.

    Args:
        clusters: of which set; the finest by default.
        maker: of the labels; gives sets that follow from the finest, which alone is in the manifest.
        collapse: repeats are one number.

    Raises:
        FileNotFoundError, ValueError: a line without labels, with those of another maker, or without such a set.
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
