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

"""Batches of plain manifests over several ranks, against the utterances of the manifest."""

import itertools
import json
import random
from collections import Counter
from dataclasses import asdict

import pytest
import torch
from lhotse import CutSet
from lhotse.testing.dummies import dummy_cut
from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config
from omegaconf import OmegaConf

from nemo_mshubert.data.resumable_loader import training_loader
from nemo_mshubert.data.shared_batches import Place, last_before, shared_out
from nemo_mshubert.models.data_position import DataPosition

pytestmark = pytest.mark.unit
UTTERANCES = 400


class Names(torch.utils.data.Dataset):
    def __getitem__(self, numbered_cuts):
        number, cuts = numbered_cuts
        return number, [cut.recording.id for cut in cuts]


@pytest.fixture(params=[True, False], ids=["buckets", "no buckets"])
def config(request, tmp_path):
    """Options as those of the recipes."""
    rng = random.Random(0)
    with open(tmp_path / "train.json", "w") as stream:
        for number in range(UTTERANCES):
            line = {"audio_filepath": f"{number}.wav", "duration": rng.uniform(2, 17), "sampling_rate": 16000}
            stream.write(json.dumps(line) + "\n")
    return OmegaConf.create(
        dict(
            manifest_filepath=str(tmp_path / "train.json"),
            tarred_audio_filepaths=None,
            sample_rate=16000,
            seed=1337,
            batch_size=None,
            batch_duration=60,
            use_bucketing=request.param,
            num_buckets=10,
            shuffle=True,
            truncate_duration=15.0,
            min_duration=2.0,
            num_workers=0,
            pin_memory=False,
        )
    )


class Run:
    """A training that goes on with other numbers of ranks, and what it has heard: ``[(epoch, ids), ...]``."""

    def __init__(self, config):
        self.config = config
        self.checkpoint = None
        self.own_batches = 0
        self.heard = []

    def go_on(self, ranks, batches):
        for rank in range(ranks):
            position = DataPosition()
            if self.checkpoint:
                position.resume(*self.checkpoint, ranks)
            first = position.first_batch(self.own_batches, ranks)
            loader = training_loader(self.config, Names(), rank, ranks, first, position.places)
            for expected, (number, ids) in zip(range(first, first + batches), loader):
                assert number == expected
                self.heard.append((last_before(position.places.values(), number).epoch, ids))
        own = self.own_batches + batches
        self.checkpoint = position.batches_of_all(own, ranks), own, asdict(position.place(own, ranks))
        self.own_batches = own

    def times_heard(self, epoch):
        return Counter(itertools.chain.from_iterable(ids for found, ids in self.heard if found == epoch))


@pytest.mark.parametrize("ranks", [(4, 2, 3), (1, 2, 1), (2, 8, 2), (3, 1, 4)], ids=str)
def test_other_numbers_of_ranks_hear_each_utterance_once_in_an_epoch(config, ranks):
    """Batches are drawn bucket by bucket for the number of ranks: a run that went on with another one, in an order of
    its own, left out a sixth of the epoch and heard as much twice."""
    run = Run(config)
    third = 3600 // 60 // 3  # of the batches of an epoch, about
    for count in ranks:
        run.go_on(count, third // count)
    run.go_on(ranks[-1], 3 * third // ranks[-1])
    run.go_on(2, 4 * third)
    for epoch in (0, 1):
        times = run.times_heard(epoch)
        assert len(times) == UTTERANCES
        assert sum(times.values()) < UTTERANCES + max(ranks)  # the last batches are shared out among all ranks
    assert max(run.times_heard(2).values()) == 1


@pytest.mark.parametrize("ranks", [1, 3])
def test_batches_are_those_of_nemo(config, ranks):
    """It draws a bucket for all ranks at once, else one with longer utterances has the others wait."""
    for rank in range(ranks):
        position = DataPosition()
        loader = training_loader(config, Names(), rank, ranks, 0, position.places)
        ours = [ids for _, ids in itertools.islice(loader, 180 // ranks)]  # an epoch, and a part of the next
        stock = get_lhotse_dataloader_from_config(
            OmegaConf.merge(config, {"concurrent_bucketing": False, "shard_seed": config.seed}), rank, ranks, Names()
        ).sampler
        for epoch in (0, 1):
            stock.set_epoch(epoch)
            theirs = [[cut.recording.id for cut in cuts] for cuts in stock]
            start = position.places[epoch].number
            count = min(len(ours) - start, len(theirs) - 1)  # what is left for the last is shared out in another way
            assert count > 10 and ours[start : start + count] == theirs[:count]


def test_a_run_that_drops_the_last_batches_goes_on(config):
    """Where fewer are left than ranks, of an epoch that goes on with more of them, the next one begins: it began anew
    with every resume."""
    config.drop_last = True
    run = Run(config)
    run.go_on(1, 10)
    left = 0
    for _ in training_loader(config, Names(), 0, 1, 0, (position := DataPosition()).places):
        if 1 in position.places:
            break
        left += 1
    run.go_on(1, left - 10 - 2)
    for _ in range(3):
        run.go_on(4, 3)
    assert max(run.times_heard(1).values()) == 1 and len(run.times_heard(1)) > 50


def test_the_last_batches_are_shared_out():
    """Ranks that find no batch would leave the others waiting for their gradients."""
    batches = [CutSet.from_cuts(dummy_cut(number) for number in part) for part in ((0, 1, 2), (3, 4))]
    parts = shared_out(batches, 3)
    assert sorted(cut.id for part in parts for cut in part) == [dummy_cut(number).id for number in range(5)]
    assert sorted(map(len, parts)) == [1, 2, 2]
    assert list(map(len, shared_out(batches[1:], 5))) == [1, 1, 1, 1, 1]
    for utterances in (batches[1:], batches):
        times = Counter(cut.id for part in shared_out(utterances, 13) for cut in part)
        assert max(times.values()) - min(times.values()) <= 1  # else one of them would be most of the update
    lone = CutSet.from_cuts([dummy_cut(5, duration=30.0)])  # longer than what there is to halve
    assert list(map(len, shared_out([lone, batches[0]], 4))) == [1, 1, 1, 1]
    short = CutSet.from_cuts(dummy_cut(number, duration=2.0) for number in range(10, 50))
    long = CutSet.from_cuts(dummy_cut(number, duration=15.0) for number in range(5))
    for part in shared_out([short, long], 8):  # of one bucket: cropped to the shortest, little would be left of others
        assert len({cut.duration for cut in part}) == 1


def test_places():
    places = [Place(0), Place(1, number=10), Place(2, number=20)]
    assert [last_before(places, number).epoch for number in (0, 9, 10, 25)] == [0, 0, 1, 2]
    assert last_before([], 5) == Place()
    begun_by_four = Place(3, batches=8, drawn_for=4, number=100)
    assert begun_by_four.when_next_is(103, 2) == Place(3, batches=14, drawn_for=4, number=103)
