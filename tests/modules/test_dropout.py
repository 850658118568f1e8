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

"""Dropout from sixteen random bits, against PyTorch's own dropout."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nemo_mshubert.modules import reference
from nemo_mshubert.modules.dropout import LEVELS, Draws, Dropout, dropout


@pytest.fixture
def dropped_by_pytorch(monkeypatch):
    """Calls of ``F.dropout``, by the rate."""
    rates, original = [], F.dropout
    monkeypatch.setattr(F, "dropout", lambda x, p, training: rates.append(p) or original(x, p, training))
    return rates


@pytest.mark.unit
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_and_scale(rate, dropped_by_pytorch):
    """Another rate than the recipe's is another regularisation; another scale shifts every activation in training."""
    torch.manual_seed(0)
    x = torch.rand(1000, 999) + 1
    y = dropout(x, rate, True)
    zero = y == 0
    assert zero.float().mean().item() == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / x.numel()))
    torch.testing.assert_close(y[~zero], (x / (1 - rate))[~zero], rtol=2e-4, atol=0)  # the rate is a multiple of 2^-16
    assert y.mean().item() == pytest.approx(x.mean().item(), rel=0.01)
    assert not dropped_by_pytorch


@pytest.mark.unit
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_every_level_is_kept_or_falls_as_the_scale_says(rate):
    """Of each random number once, the share that is kept times the scale is 1: the mean of activations stays."""
    draws, levels = Draws(rate), np.arange(LEVELS, dtype=np.uint16).view(np.uint64)
    draws._stream = SimpleNamespace(random_raw=lambda words: levels[:words])
    kept = draws.keep(torch.empty(1, LEVELS, dtype=torch.uint8)).sum().item()
    assert LEVELS - kept == int(rate * LEVELS)
    assert kept / LEVELS * draws.scale == pytest.approx(1, rel=1e-12)


@pytest.mark.unit
def test_numbers_are_independent():
    """Neighbours that fall together, as numbers out of one draw might, are another, stronger dropout."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(1 << 20), 0.5, True) > 0).double() * 2 - 1  # +1 and -1
    for distance in (1, 2, 3, 4, 5, 8, 64):
        correlation = (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(correlation) < 5 / math.sqrt(1 << 20), distance
    by_place = kept.view(-1, 4).mean(dim=0)  # of a number in its draw
    assert by_place.abs().max() < 5 / math.sqrt(1 << 18)


@pytest.mark.unit
@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 31])
def test_any_number_of_elements(size):
    """Four numbers come out of one draw; utterances have any number of frames."""
    assert dropout(torch.ones(size, 1), 0.5, True).shape == (size, 1)


@pytest.mark.unit
def test_gradient_passes_where_numbers_were_kept():
    """A gradient through other numbers than the forward pass kept trains noise."""
    x = torch.randn(40, 30, requires_grad=True)
    y = dropout(x.transpose(0, 1), 0.3, True)
    gradient = torch.randn(30, 40)
    y.backward(gradient)
    expected = torch.where(y == 0, 0.0, gradient * (y / x.T).max())
    torch.testing.assert_close(x.grad, expected.T)


@pytest.mark.unit
def test_same_seed_same_numbers():
    """A resumed training must go on as the uninterrupted one would have."""
    x = torch.ones(50, 50)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.5, True))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.unit
def test_what_pytorch_is_left(dropped_by_pytorch, monkeypatch):
    """Rates of 0 and 1, inference and the reference path are its own."""
    x = torch.randn(5, 5)
    assert torch.equal(dropout(x, 0.0, True), x)
    assert torch.equal(dropout(x, 0.5, False), x)
    assert not dropout(x, 1.0, True).any()
    module_of_encoder = Dropout(0.5)
    assert torch.equal(module_of_encoder.eval()(x), x)
    assert dropped_by_pytorch == [0.0, 0.5, 1.0, 0.5]
    assert (module_of_encoder.train()(torch.ones(99, 99)) == 0).any() and len(dropped_by_pytorch) == 4
    monkeypatch.setattr(reference, "forced", True)
    module_of_encoder(x)
    assert len(dropped_by_pytorch) == 5


@pytest.mark.unit
def test_bf16_under_autocast():
    """Hidden states are bf16 under autocast, and stay so."""
    with torch.autocast("cpu", torch.bfloat16):
        assert dropout(torch.randn(6, 7, dtype=torch.bfloat16), 0.5, True).dtype == torch.bfloat16
