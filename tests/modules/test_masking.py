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

"""Span masks: fairseq's statistics, and safe on every length."""

import numpy as np
import pytest
import torch
from transformers.models.hubert.modeling_hubert import _compute_mask_indices

from nemo_mshubert.modules.masking import channel_mask, span_mask

FRAMES = 750  # 15 s
ROWS = 400


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run_lengths(mask_BT):
    """Lengths of all runs of masked frames."""
    edges = np.diff(np.pad(np.asarray(mask_BT).astype(int), ((0, 0), (1, 1))))
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


@pytest.mark.unit
@pytest.mark.parametrize("mask_prob, share", [(0.80, 0.566), (0.65, 0.49)])
def test_share_of_masked_frames_is_fairseqs(mask_prob, share):
    """HuBERT's 0.80 and our 0.65 are tuned shares of masked frames; another share is another task."""
    mask_BT = span_mask([FRAMES] * ROWS, mask_prob, 10, same_count=False, generator=generator())
    assert mask_BT.float().mean().item() == pytest.approx(share, abs=0.006)


@pytest.mark.unit
def test_trimming_to_equal_counts_costs_what_it_costs_in_fairseq():
    """Rows are un-masked at random down to the fewest: 0.65 leaves 45.7 % in batches of 8, not the 49 % of one row."""
    ours = torch.cat([span_mask([FRAMES] * 8, 0.65, 10, generator=generator(seed)) for seed in range(100)]).numpy()
    np.random.seed(0)
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(100):
        rows = [_compute_mask_indices((1, FRAMES), 0.65, 10, min_masks=2)[0] for _ in range(8)]
        fewest = min(row.sum() for row in rows)
        for row in rows:
            kept = rng.choice(np.flatnonzero(row), fewest, replace=False)
            batches.append(np.isin(np.arange(FRAMES), kept))
    assert ours.mean() == pytest.approx(np.mean(batches), abs=0.004)
    assert run_lengths(ours).mean() == pytest.approx(run_lengths(np.array(batches)).mean(), rel=0.03)


@pytest.mark.unit
@pytest.mark.parametrize("mask_prob", [0.3, 0.65, 0.80])
def test_spans_are_distributed_as_in_transformers(mask_prob):
    """An independent implementation: same share, same spread of it, same lengths of runs."""
    ours = span_mask([FRAMES] * ROWS, mask_prob, 10, same_count=False, generator=generator()).numpy()
    np.random.seed(0)
    theirs = np.concatenate([_compute_mask_indices((1, FRAMES), mask_prob, 10, min_masks=2) for _ in range(ROWS)])
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.005)
    assert ours.mean(axis=1).std() == pytest.approx(theirs.mean(axis=1).std(), rel=0.2)
    our_runs, their_runs = run_lengths(ours), run_lengths(theirs)
    assert our_runs.min() == their_runs.min() == 10
    assert our_runs.mean() == pytest.approx(their_runs.mean(), rel=0.04)
    assert np.quantile(our_runs, 0.9) == pytest.approx(np.quantile(their_runs, 0.9), rel=0.1)
    other = span_mask([FRAMES] * ROWS, mask_prob, 7, same_count=False, generator=generator()).numpy()
    assert run_lengths(other).mean() != pytest.approx(their_runs.mean(), rel=0.04)


@pytest.mark.unit
@pytest.mark.parametrize("mask_prob, channels", [(0.1, 768), (0.25, 768), (0.5, 768), (0.1, 192)])
def test_channels_are_masked_as_in_transformers(mask_prob, channels):
    """Fine-tuning on 960 h masks a tenth of the channels, mostly in one span; the two spans that frames have at least
    would be a sixth. Narrow models mask none at all in most batches."""
    np.random.seed(0)
    ours, theirs = [], []
    for seed in range(300):
        torch.manual_seed(seed)
        mask_BD = channel_mask(8, channels, mask_prob, 64)
        assert mask_BD.shape == (8, channels) and len(set(mask_BD.sum(dim=1).tolist())) == 1
        ours.append(mask_BD[0].sum().item())
        rows = _compute_mask_indices((8, channels), mask_prob, 64, min_masks=0)  # one number of spans, as in fairseq
        theirs.append(rows.sum(axis=1).min())
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.1, abs=3)
    assert np.mean(np.equal(ours, 0)) == pytest.approx(np.mean(np.equal(theirs, 0)), abs=0.08)
    assert np.mean(np.less_equal(ours, 64)) == pytest.approx(np.mean(np.less_equal(theirs, 64)), abs=0.08)


@pytest.mark.unit
@pytest.mark.parametrize("channels", [2, 24, 64])
def test_models_narrower_than_a_span_of_channels_keep_some(channels):
    """The default span of 64 channels must neither stop a small model nor blank its features."""
    torch.manual_seed(0)
    masks = [channel_mask(3, channels, 0.9, 64) for _ in range(20)]
    counts = torch.stack(masks).sum(dim=2)
    assert counts.max() == channels - 1 and (counts == counts[:, :1]).all()


@pytest.mark.unit
def test_starts_are_uniform():
    """Frames in the middle are masked alike; only the edges, with fewer spans over them, less."""
    share_T = span_mask([100] * 4000, 0.5, 10, same_count=False, generator=generator()).float().mean(dim=0)
    middle = share_T[9:-9]
    assert (middle - middle.mean()).abs().max() < 0.04
    assert share_T[0] < 0.25 * middle.mean() and share_T[-1] < 0.25 * middle.mean()


@pytest.mark.unit
def test_rows_have_equal_counts_within_their_lengths():
    """Rows of one batch weigh alike, and padding is never masked: it has no label."""
    lengths = [750, 300, 40, 12, 5]
    mask_BT = span_mask(lengths, 0.65, 10, num_positions=800, generator=generator())
    assert mask_BT.shape == (5, 800)
    assert len(set(mask_BT.sum(dim=1).tolist())) == 1
    for row, length in zip(mask_BT, lengths):
        assert not row[length:].any()


@pytest.mark.unit
@pytest.mark.parametrize("same_count", [False, True])
@pytest.mark.parametrize("mask_prob", [0.01, 0.65, 1.0])
def test_every_length_is_masked_in_part(mask_prob, same_count):
    """A short utterance must neither crash the run nor be fully masked or fully visible."""
    for seed in range(5):
        for length in range(2, 51):
            row = span_mask([length], mask_prob, 10, same_count=same_count, generator=generator(seed))[0]
            assert len(row) == length
            assert 0 < row.sum() < length, length
            if length > 11:  # two spans at least, as in fairseq
                assert row.sum() > 10, length
    for length in (0, 1):
        assert not span_mask([length], mask_prob, 10, generator=generator()).any()


@pytest.mark.unit
def test_the_frame_that_short_rows_show_is_any():
    """Always the last one, and of short words the end alone would be heard and the beginning alone predicted."""
    shown = torch.cat([~span_mask([3], 1.0, 10, generator=generator(seed)) for seed in range(30)])
    assert shown.any(dim=0).all() and shown.sum(dim=1).tolist() == [1] * 30


@pytest.mark.unit
def test_rows_too_short_to_mask_do_not_unmask_the_others():
    """One empty utterance in a batch must not take the task from the rest."""
    mask_BT = span_mask([0, 1, 300, 400], 0.65, 10, generator=generator())
    counts = mask_BT.sum(dim=1).tolist()
    assert counts[:2] == [0, 0] and counts[2] == counts[3] > 90


@pytest.mark.unit
def test_generator_alone_decides():
    """Otherwise a resumed run draws other masks: numbers of spans, places, and the frame that a short row shows."""
    lengths = [200, 100, *range(2, 40)]
    first = span_mask(lengths, 0.65, 10, same_count=False, generator=generator(7))
    trimmed = span_mask(lengths, 0.65, 10, generator=generator(7))
    torch.manual_seed(99)
    assert torch.equal(first, span_mask(lengths, 0.65, 10, same_count=False, generator=generator(7)))
    assert torch.equal(trimmed, span_mask(lengths, 0.65, 10, generator=generator(7)))
    assert not torch.equal(first, span_mask(lengths, 0.65, 10, same_count=False, generator=generator(8)))


@pytest.mark.unit
def test_nothing_is_masked_at_probability_zero():
    """mask_prob 0 switches the masks off."""
    assert not span_mask([200, 3], 0.0, 10, generator=generator()).any()
