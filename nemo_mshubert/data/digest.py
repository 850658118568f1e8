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

"""Digests of a file's content and of settings, to tell whether they have changed."""

import hashlib
import json
from typing import Any

from nemo_mshubert.whole_files import PathLike

CHUNK_BYTES = 1 << 20


def file_digest(path: PathLike, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file of any size; ``algorithm`` is a name of `hashlib`."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def short_digest(settings: Any) -> str:
    """Eight hexadecimal digits for JSON values, for the name of a file that depends on them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
