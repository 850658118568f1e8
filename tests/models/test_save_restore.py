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

"""A ``.nemo`` is there whole or not at all."""

import errno
import re
import tarfile
import tempfile

import pytest
import torch

from nemo_mshubert.models.loading import restore_model, save_model
from nemo_mshubert.whole_files import naming

pytestmark = pytest.mark.unit


def half_of_it(self, name, *args, **options):
    """In the place of ``TarFile.add``."""
    self.fileobj.write(b"half")
    raise OSError("No space left on device")


def test_a_save_that_is_cut_short_leaves_the_file_before(make_model, tmp_path, monkeypatch):
    """Half a file would count as a finished stage, and stop all that reads it."""
    path = tmp_path / "model.nemo"
    model = make_model()
    model.save_to(str(path))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "add", half_of_it)
        with pytest.raises(OSError, match="No space"):
            model.save_to(str(path))
        with pytest.raises(OSError, match="No space"):
            model.save_to(str(tmp_path / "other.nemo"))
    assert path.read_bytes() == before and [found.name for found in tmp_path.iterdir()] == ["model.nemo"]
    restore_model(path)


def test_a_stock_model_that_is_cut_short_leaves_nothing(tiny_ctc, tmp_path, monkeypatch):
    """Its own connector packs in place: scripts/ssl_to_ctc.py would leave what looks like a model."""
    monkeypatch.setattr(tarfile.TarFile, "add", half_of_it)
    with pytest.raises(OSError, match="No space"):
        save_model(tiny_ctc(), tmp_path / "model.nemo")
    assert not list(tmp_path.iterdir())


def test_a_full_folder_of_temporary_files_is_named(make_model, tmp_path, monkeypatch):
    """The weights go there first: told of the disk of the run, the user looked at one with room."""

    def full_disk(*_):
        raise RuntimeError("unexpected pos 64 vs 0")  # as PyTorch tells it

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left on device: '.*/model_weights.ckpt'"), naming(tmp_path):
        make_model().save_to(str(tmp_path / "model.nemo"))
    assert not list(tmp_path.iterdir())


def test_a_full_folder_of_temporary_files_is_named_when_a_model_is_read(make_model, tmp_path, monkeypatch):
    """NeMo unpacks the file there; it was the file that looked broken."""
    make_model().save_to(str(tmp_path / "model.nemo"))

    def full_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")  # as tarfile tells it

    monkeypatch.setattr(tarfile, "copyfileobj", full_disk)
    folder = re.escape(tempfile.gettempdir())
    with pytest.raises(ValueError, match=f"model.nemo: cannot be restored .*No space left on device: '{folder}'"):
        restore_model(tmp_path / "model.nemo")
