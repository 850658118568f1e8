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

"""The tri-stage schedule: fairseq's learning rate at every update, and known to NeMo by its name."""

import importlib
import math

import pytest
import torch
from nemo.core.optim.lr_scheduler import AVAILABLE_SCHEDULERS, prepare_lr_scheduler

from nemo_mshubert.optim import tri_stage
from nemo_mshubert.optim.tri_stage import NAME, TriStageAnnealing

pytestmark = pytest.mark.unit
PEAK = 5e-5


def fairseq_tri_stage(update, warmup, hold, decay, init_scale, final_scale):
    """Learning rate after ``update`` updates: the formulas of fairseq's tri_stage_lr_scheduler.py, stage by stage."""
    if update < warmup:
        return PEAK * init_scale + (PEAK - PEAK * init_scale) / warmup * update
    if update < warmup + hold:
        return PEAK
    if update <= warmup + hold + decay:
        return PEAK * math.exp(math.log(final_scale) / decay * (update - warmup - hold))
    return PEAK * final_scale


def rates(updates, **options):
    """Learning rate of each update, driven as Lightning drives it: after each step of the optimizer."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = TriStageAnnealing(optimizer, **options)
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    "options, stages",
    [
        (dict(warmup_ratio=0.1, hold_ratio=0.4, max_steps=200), (20, 80, 100)),  # conf/finetune
        (dict(warmup_steps=8, hold_steps=0, max_steps=80), (8, 0, 72)),  # HuBERT's 10 h: no hold
        (dict(warmup_steps=0, hold_steps=30, max_steps=60), (0, 30, 30)),
        (dict(warmup_steps=7, max_steps=60), (7, 0, 53)),  # NeMo leaves hold_steps at 0 where nothing is said
        (dict(warmup_ratio=0.1, hold_ratio=0.4, max_steps=33, init_lr_scale=0.2, final_lr_scale=0.5), (3, 13, 17)),
    ],
)
def test_equals_fairseq_at_every_update(options, stages):
    """Otherwise no fine-tuning is the paper's: also beyond the last update, where NeMo's schedules drop to 0."""
    scales = options.get("init_lr_scale", 0.01), options.get("final_lr_scale", 0.05)
    updates = options["max_steps"] + 5
    expected = [fairseq_tri_stage(update, *stages, *scales) for update in range(updates)]
    assert rates(updates, **options) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] == pytest.approx(PEAK * scales[1])


def test_every_group_of_parameters_keeps_its_own_peak():
    """NeMo's ``optim_param_groups`` gives the encoder another rate than the output layer."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 1e-5)]
    optimizer = torch.optim.Adam(groups)
    schedule = TriStageAnnealing(optimizer, warmup_steps=2, hold_steps=2, max_steps=8)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert first == pytest.approx(1e-3 * math.exp(math.log(0.05) / 4 * 2)) and second == pytest.approx(first / 100)


def test_resumed_schedule_goes_on_where_it_was():
    """A checkpoint holds the state of the schedule: the rate after a resume is that of an uninterrupted run."""
    options = dict(warmup_ratio=0.1, hold_ratio=0.4, max_steps=40)
    whole = rates(40, **options)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = TriStageAnnealing(optimizer, **options)
    for _ in range(30):
        optimizer.step()
        schedule.step()
    resumed_optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    resumed = TriStageAnnealing(resumed_optimizer, **options)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for update in range(30, 40):
        assert resumed_optimizer.param_groups[0]["lr"] == pytest.approx(whole[update], rel=1e-9)
        resumed_optimizer.step()
        resumed.step()


def test_nemo_builds_it_by_name():
    """``optim.sched.name: TriStageAnnealing`` in a config, per step and with the options of the config."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    sched = dict(name="TriStageAnnealing", warmup_ratio=0.1, hold_ratio=0.4, final_lr_scale=0.5, max_steps=20)
    built = prepare_lr_scheduler(optimizer, sched)
    assert type(built["scheduler"]) is TriStageAnnealing and built["interval"] == "step"
    assert [built["scheduler"].scale(update) for update in (0, 2, 10, 20)] == pytest.approx([0.01, 1.0, 1.0, 0.5])


def test_registering_twice_is_harmless():
    """NeMo raises on a second registration, as when a notebook loads the module anew."""
    registered = AVAILABLE_SCHEDULERS[NAME]
    importlib.reload(tri_stage)
    assert AVAILABLE_SCHEDULERS[NAME] is registered


def test_the_lowest_rate_of_nemo_is_kept():
    """`min_lr` of NeMo's other schedules had no effect; the warm-up begins below it, as theirs."""
    plain, kept = (rates(24, warmup_steps=4, max_steps=20, **options) for options in ({}, {"min_lr": PEAK / 5}))
    assert kept[:4] == plain[:4] and kept[0] < PEAK / 5
    assert kept[4:] == [max(rate, PEAK / 5) for rate in plain[4:]] and min(plain[4:]) < PEAK / 5


def test_a_hold_to_the_end_needs_no_decay():
    """warmup_ratio 0.1 and hold_ratio 0.9: the last update of the training must not end in a division by zero."""
    assert rates(22, warmup_ratio=0.1, hold_ratio=0.9, max_steps=20)[2:21] == pytest.approx([PEAK] * 19)
