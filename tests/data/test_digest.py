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

"""Digests of files: another file must not pass for the one of another time."""

import hashlib

import numpy as np
import pytest

from nemo_mshubert.data.digest import CHUNK_BYTES, file_digest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
@pytest.mark.parametrize("surplus", [-1, 0, 1])
def test_every_byte_counts(tmp_path, algorithm, surplus):
    """An archive that is damaged behind its first megabyte, or an LM that was made anew, would pass for the old
    one."""
    content = np.random.default_rng(0).bytes(2 * CHUNK_BYTES + surplus)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file", algorithm) == hashlib.new(algorithm, content).hexdigest()


def test_the_algorithm_is_sha256_unless_said_otherwise(tmp_path):
    """Records of other runs hold it: with another one every step would count as one of other files."""
    (tmp_path / "file").write_bytes(b"abc")
    # FIPS 180-4, example of one block
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
