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

"""The lines of a manifest that cannot be labelled, each with the reason, in a file beside the labelled manifest."""

import json
import logging
from pathlib import Path
from typing import Any, Dict, Set

from nemo_mshubert.data.manifest import absolute_path, iter_manifest, manifest_lines
from nemo_mshubert.whole_files import PathLike

logger = logging.getLogger(__name__)

REASON = "left_out"
RATE_FIELDS = ("sampling_rate", "sample_rate")  # NeMo accepts either


def left_out_path(labelled: PathLike) -> Path:
    return Path(labelled).with_suffix(".left_out.json")


class LeftOut:
    """``train_l.left_out.json`` beside ``train_l.json``: a manifest that can be labelled once it is repaired."""

    def __init__(self, labelled: PathLike):
        self.path = left_out_path(labelled)
        self._keys: Set[str] = set()
        if self.path.is_file():
            self._keys.update(_key(entry) for _, entry in iter_manifest(self.path))

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, entry: Dict[str, Any]) -> bool:
        return bool(self._keys) and _key(entry) in self._keys

    def add(self, entry: Dict[str, Any], reason: str) -> None:
        """Add an entry and write it to the file at once, since another call may label the lines after it."""
        logger.warning("left out: %s", reason)
        if entry in self:
            return
        self._keys.add(_key(entry))
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.writelines(manifest_lines(self.path, [{**entry, REASON: reason}]))

    def clear(self) -> None:
        """Forget all entries and remove the file."""
        self._keys.clear()
        self.path.unlink(missing_ok=True)


def unlabelled(entry: Dict[str, Any], manifest: Path = Path()) -> Dict[str, Any]:
    """The entry without the fields that labelling writes, and with an absolute audio path; the path in ``manifest``
    may be relative."""
    return {
        **{key: value for key, value in entry.items() if key not in ("labels", REASON, *RATE_FIELDS)},
        "audio_filepath": str(absolute_path(manifest.parent / entry["audio_filepath"])),  # as manifest_lines does
    }


def _key(entry: Dict[str, Any]) -> str:
    return json.dumps(unlabelled(entry), sort_keys=True)
