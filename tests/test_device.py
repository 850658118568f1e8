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

"""Fails if a command leaves a GPU idle, or if all ranks of a machine crowd on its first one."""

import lightning.pytorch as pl
import pytest
import torch

from nemo_mshubert.device import choose_device, one_device


@pytest.mark.parametrize("local_rank, device", [(None, "cuda"), ("0", "cuda:0"), ("3", "cuda:3")])
def test_auto_is_the_gpu_of_this_rank(monkeypatch, local_rank, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert choose_device("auto") == device


def test_auto_without_a_gpu_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == "cpu"


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_given_device_is_taken_as_it_is(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(name) == name


@pytest.mark.parametrize(
    "name, device", [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:3", "cuda:3")]
)
def test_lightning_trains_on_a_given_device(monkeypatch, name, device):
    """It takes no "cuda:1" for an accelerator: superb.py ended there, after hours of caching hidden states."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    trainer = pl.Trainer(**one_device(name), logger=False, barebones=True)
    assert trainer.strategy.root_device == torch.device(device) and trainer.num_devices == 1
