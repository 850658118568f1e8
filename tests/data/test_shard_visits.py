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

"""Epochs of tarred data: every line once, whoever reads it and however often the run is interrupted."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import training_loader
from nemo_mshubert.data.shard_visits import ShardProgress, VisitRecord, Visits
from nemo_mshubert.data.tar_shards import Shard, shards_of
from nemo_mshubert.data.tarred import make_tarred
from tests.data.test_resumable_loader import options
from tests.parallel.ranks_of_a_test import run_on_ranks

LENGTHS = [8000 + 400 * number for number in range(23)]  # shards of 5 and 6 utterances
SHARDS = 4


@pytest.fixture
def tarred(counting_corpus, tmp_path):
    make_tarred(counting_corpus(LENGTHS), tmp_path / "tars", SHARDS)
    return options(
        manifest_filepath=f"{tmp_path}/tars/sharded_manifests/manifest__OP_0..3_CL_.json",
        tarred_audio_filepaths=f"{tmp_path}/tars/audio__OP_0..3_CL_.tar",
    )


def train(config, ranks, batches, states, workers=0):
    """``batches`` of each of so many ranks that go on from a checkpoint; what they held, and the next checkpoint.

    ``states`` are the batches of all ranks so far, and the checkpoint.
    """
    config.num_workers = workers
    trained, state = states
    progress, lines = [], []
    for rank in range(ranks):
        progress.append(ShardProgress())
        if state:
            progress[rank].load(state)
        first = trained // ranks
        loader = training_loader(
            config, PretrainingDataset("maker-one", [50]), rank, ranks, first, progress=progress[rank]
        )
        for batch in itertools.islice(loader, batches):
            progress[rank].record.note(batch["lines"])
            lines += [(visit, name) for (visit, _, _), name in zip(batch["lines"].tolist(), batch["utterances"])]
    for other in progress[1:]:
        progress[0].record.merge(other.record.state())
    return lines, (trained + ranks * batches, progress[0].state())


@pytest.mark.unit
@pytest.mark.parametrize("use_bucketing", [False, True])
@pytest.mark.parametrize("parts", [[(2, 0), (1, 0)], [(1, 0), (3, 0)], [(1, 2), (1, 0), (2, 0)]], ids=str)
def test_every_line_is_read_once_in_an_epoch_through_changes_of_ranks(tarred, parts, use_bucketing):
    """A preempted run gets other machines; lines skipped or repeated at each change would show in no curve."""
    tarred.use_bucketing = use_bucketing
    lines, states = [], (0, None)
    for ranks, workers in parts:
        read, states = train(tarred, ranks, 6, states, workers)
        lines += read
    read, states = train(tarred, 1, 60, states)
    lines += read
    counts = Counter(lines)
    assert max(counts.values()) == 1
    last = max(visit for visit, _ in lines)
    assert last >= 6 * SHARDS
    begun = len(LENGTHS) * (last // SHARDS) + len(LENGTHS) * (last % SHARDS + 1) / SHARDS
    held_back = (
        tarred.bucket_buffer_size + tarred.shuffle_buffer_size + 2 * len(LENGTHS) / SHARDS
    )  # and the shards under way
    assert begun - len(lines) <= held_back


@pytest.mark.unit
def test_every_epoch_has_another_order(tarred):
    """With one order for all epochs the same utterances would meet in batches for ever."""
    shards = shards_of(tarred.manifest_filepath, tarred.tarred_audio_filepaths)
    visits = Visits(shards, lambda entry: True, seed=1, shuffle=True, record=VisitRecord())
    names = [cut.recording.id for cut in itertools.islice(visits, 6 * len(LENGTHS))]
    epochs = [names[start : start + len(LENGTHS)] for start in range(0, len(names), len(LENGTHS))]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)
    again = Visits(shards, lambda entry: True, seed=1, shuffle=True, record=VisitRecord())
    assert [cut.recording.id for cut in itertools.islice(again, len(names))] == names


@pytest.mark.unit
def test_a_resume_reads_no_audio_of_what_it_passes_over(tarred, monkeypatch):
    """A run that goes on after a week must not read its tars again first."""
    reads = []
    read = Shard.read
    monkeypatch.setattr(Shard, "read", lambda self, name: (reads.append(name), read(self, name))[1])
    progress = ShardProgress()
    progress.begin(SHARDS, tarred.seed, 1, 0)
    batch = next(iter(training_loader(tarred, PretrainingDataset("maker-one", [50]), 0, 1, 40, progress=progress)))
    assert sorted(reads) == sorted(batch["utterances"])


@pytest.mark.unit
def test_record_equals_a_set_of_lines():
    """Bits, visits that are done and the first open one are a shorter way to write a set of lines."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 12, size=30)
    lines = [(visit, line) for visit, size in enumerate(sizes) for line in range(size)]
    order = rng.permutation(len(lines))
    ranks = [VisitRecord(), VisitRecord()]
    seen = set()
    for step, index in enumerate(order):
        visit, line = lines[index]
        ranks[step % 2].note(np.array([[visit, line, sizes[visit]]]))
        seen.add((visit, line))
        if step % 37 == 0:
            for record, other in (ranks, ranks[::-1]):
                record.merge(other.state())
            copy = VisitRecord()
            copy.merge(ranks[0].state())
            for record in (*ranks, copy):
                assert {pair for pair in lines if record.has(*pair)} == seen
                expected = [visit for visit in range(30) if any((visit, n) not in seen for n in range(sizes[visit]))]
                assert list(itertools.islice(record.open_visits(), len(expected) + 2)) == expected + [30, 31]
    ranks[0].merge(ranks[1].state())
    assert ranks[0].state() == {"first_open": 30, "done": [], "seen": {}}


@pytest.mark.unit
def test_checkpoint_survives_a_file(tmp_path):
    """What is written must be what PyTorch reads without running code from the file."""
    progress = ShardProgress()
    progress.begin(3, 0, 2, 0)
    progress.record.note(np.array([[0, 1, 9], [1, 0, 1]]))
    torch.save(progress.state(), tmp_path / "state.ckpt")
    other = ShardProgress()
    other.load(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert other.record.has(0, 1) and not other.record.has(0, 0) and other.record.is_done(1)
    start = other.begin(3, 0, 2, 5)
    assert not start.has(0, 1) and other.first_batch == 0  # as many streams: from where they started
    start = other.begin(3, 0, 4, 5)
    assert start.has(0, 1) and other.first_batch == 5


@pytest.mark.unit
def test_other_shards_start_their_epochs_anew(caplog):
    """Numbers of visits mean other shards then."""
    progress = ShardProgress()
    progress.begin(3, 0, 2, 0)
    progress.record.note(np.array([[0, 1, 9]]))
    assert not progress.begin(4, 0, 2, 7).has(0, 1)
    assert progress.first_batch == 7
    assert "data has changed" in caplog.text


def state_of_rank():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    progress = ShardProgress()
    progress.begin(3, 0, 2, 0)
    progress.record.note(np.array([[rank, 0, 1], [2, rank, 2]]))
    state = progress.state()
    torch.distributed.barrier()
    return state["record"]


@pytest.mark.unit
def test_a_checkpoint_holds_what_all_ranks_have_read():
    """Rank 0 writes it; the lines of the others would be read again."""
    assert run_on_ranks(2, state_of_rank) == [{"first_open": 3, "done": [], "seen": {}}] * 2
