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
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import _identity, training_loader
from nemo_mshubert.data.shard_visits import LINE, ShardProgress, VisitRecord, Visits
from nemo_mshubert.data.tar_shards import Shard, shards_of
from tests.data.test_resumable_loader import tarred_options
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit
LENGTHS = [8000 + 400 * number for number in range(23)]  # shards of 5 and 6 utterances
SHARDS = 4


@pytest.fixture
def tarred(counting_corpus, tmp_path):
    return tarred_options(counting_corpus(LENGTHS), tmp_path / "tars", SHARDS)


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
            lines += [(visit, name) for (visit, _, _), name in zip(batch["lines"], batch["utterances"])]
    for other in progress[1:]:
        progress[0].record.merge(other.record.state())
    return lines, (trained + ranks * batches, progress[0].state())


@pytest.mark.parametrize("use_bucketing", [False, True])
@pytest.mark.parametrize(
    "parts", [[(2, 0), (1, 0)], [(1, 0), (3, 0)], [(1, 2), (2, 0), (1, 0)], [(1, 0), (2, 2), (4, 1)]], ids=str
)
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
    held_back = 40 + 2 * len(LENGTHS) / SHARDS  # 20 for each bucket, and the shards under way
    assert begun - len(lines) <= held_back


def test_every_epoch_has_another_order(tarred):
    """With one order for all epochs the same utterances would meet in batches for ever."""
    shards = shards_of(tarred.manifest_filepath, tarred.tarred_audio_filepaths)
    visits = Visits(shards, lambda entry: True, seed=1, shuffle=True, record=VisitRecord())
    names = [cut.recording.id for cut in itertools.islice(visits, 6 * len(LENGTHS))]
    epochs = [names[start : start + len(LENGTHS)] for start in range(0, len(names), len(LENGTHS))]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)
    of_shards = [[visits._shard(SHARDS * epoch + place).tar for place in range(SHARDS)] for epoch in range(6)]
    assert len(set(map(tuple, of_shards))) > 1  # not within shards alone
    again = Visits(shards, lambda entry: True, seed=1, shuffle=True, record=VisitRecord())
    assert [cut.recording.id for cut in itertools.islice(again, len(names))] == names


def test_another_seed_is_another_order(tarred):
    """Of the shards, and of the lines of a shard: runs that should tell how much is chance would read alike."""
    shards = shards_of(tarred.manifest_filepath, tarred.tarred_audio_filepaths)

    def visits(shards, seed):
        return Visits(shards, lambda entry: True, seed, shuffle=True, record=VisitRecord())

    tars = [[visits(shards, seed)._shard(visit).tar for visit in range(6 * SHARDS)] for seed in (1, 2)]
    assert tars[0] != tars[1]
    names = [[cut.recording.id for cut in visits(shards[:1], seed)._cuts(0)] for seed in (1, 2)]
    assert names[0] != names[1] and sorted(names[0]) == sorted(names[1])


@pytest.mark.parametrize("change", [{"batch_duration": 1.6}, {"bucket_buffer_size": 4, "num_buckets": 3}], ids=str)
def test_other_options_skip_and_repeat_no_line(tarred, change):
    """Resumed with another batch size, on smaller GPUs, say: the old streams cannot be passed over with it."""
    lines, states = train(tarred, 1, 12, (0, None))
    tarred.update(change)
    more, _ = train(tarred, 1, 12, states)
    assert len(set(lines + more)) == len(lines) + len(more)


@pytest.mark.parametrize("option, before, after", [("min_duration", 0.7, 0.1), ("shuffle", False, True)])
def test_other_filters_and_orders_start_epochs_anew(tarred, caplog, option, before, after):
    """Lines are counted among the usable ones, and shards in their order: what a checkpoint says of them then means
    others."""
    tarred[option] = before
    _, states = train(tarred, 1, 12, (0, None))
    tarred[option] = after
    names = [name for _, name in train(tarred, 1, 40, states)[0]]
    assert len(set(names)) == len(LENGTHS)
    assert "data has changed" in caplog.text


def test_visits_without_a_usable_line_are_done(tarred, tmp_path):
    """Otherwise the record of a run of months grows with each of them."""
    manifest = tmp_path / "tars" / "sharded_manifests" / "manifest_2.json"
    manifest.write_text(manifest.read_text().replace('"text"', '"validation_status": "fail", "text"'))
    lines, (_, state) = train(tarred, 1, 60, (0, None))
    assert len({visit for visit, _ in lines}) > 20
    assert state["record"]["first_open"] > 8 and len(state["record"]["done"]) < 20


def test_without_shuffling_every_stream_meets_all_shards(tarred):
    """With as many streams as shards each would else read one shard for ever."""
    shards = shards_of(tarred.manifest_filepath, tarred.tarred_audio_filepaths)
    for stream in range(SHARDS):
        visits = Visits(shards, lambda entry: True, seed=1, shuffle=False, record=VisitRecord())
        visits.stream = (stream, SHARDS)
        names = [cut.recording.id for cut in itertools.islice(visits, len(LENGTHS))]
        assert len(set(names)) == len(LENGTHS), stream


def test_the_shard_of_a_visit_does_not_depend_on_those_looked_at_before(tarred):
    """To estimate its buckets a loader looks at later epochs first; the first one then had the order of another, and a
    resume with other ranks took the lines of one shard for those of another."""
    shards = shards_of(tarred.manifest_filepath, tarred.tarred_audio_filepaths)
    for shuffle in (False, True):

        def names(visits, count):
            return [cut.recording.id for cut in itertools.islice(visits, count)]

        visits = Visits(shards, lambda entry: True, seed=1, shuffle=shuffle, record=VisitRecord())
        expected = names(visits, len(LENGTHS))
        assert names(visits, 2 * len(LENGTHS) + 3)[: len(LENGTHS)] == expected
        assert names(visits, len(LENGTHS)) == expected


def test_shards_without_usable_lines_end_a_run_only_if_all_are(tarred):
    """Of remote shards nobody knows before: a stream may meet the empty ones many times in a row, by chance, and must
    not search for ever where there is nothing."""
    shards = shards_of(tarred.manifest_filepath, tarred.tarred_audio_filepaths)
    usable_names = {entry["audio_filepath"] for entry in shards[1].entries()}
    visits = Visits(shards, lambda entry: entry["audio_filepath"] in usable_names, 1, True, VisitRecord())
    visits.stream = (0, SHARDS)
    found = [cut.custom[LINE][0] for cut in itertools.islice(visits, 40 * len(usable_names))]
    assert max(np.diff(found)) > SHARDS * (SHARDS + 1)  # more than one epoch's visits in a row were empty
    nothing = Visits(shards, lambda entry: False, 1, True, VisitRecord())
    with pytest.raises(ValueError, match="manifest_0.json and 3 other shards: no utterance between min_duration"):
        next(iter(nothing))


def test_what_is_held_back_is_a_share_of_an_epoch(tarred):
    """With 256 streams, buffers for one would mix 18 epochs of LibriSpeech: some utterances nine times, others
    never."""
    tarred.update(bucket_buffer_size=10_000, shuffle_buffer_size=10_000)
    lines, _ = train(tarred, 1, 20, (0, None))
    # the two buckets hold 40 back, less than two epochs
    assert max(visit for visit, _ in lines) < len(lines) / len(LENGTHS) * SHARDS + 2 * SHARDS


def test_a_resume_reads_no_audio_of_what_it_passes_over(tarred, monkeypatch):
    """A run that goes on after a week must not read its tars again first."""
    reads = []
    read = Shard.read
    monkeypatch.setattr(Shard, "read", lambda self, name: (reads.append(name), read(self, name))[1])
    dataset, progress = PretrainingDataset("maker-one", [50]), ShardProgress()
    training_loader(tarred, dataset, 0, 1, 0, progress=progress)
    batch = next(iter(training_loader(tarred, dataset, 0, 1, 40, progress=progress)))
    assert sorted(reads) == sorted(batch["utterances"])


def test_a_resume_streams_no_tars_of_what_it_passes_over(tarred, monkeypatch):
    """Tars behind a pipe or an address cannot be passed over unread: after weeks they were terabytes."""
    tarred.tarred_audio_filepaths = f"pipe:cat {tarred.tarred_audio_filepaths}"
    lines, states = train(tarred, 1, 300, (0, None))
    assert max(visit for visit, _ in lines) > 100
    streamed = []
    stream = Shard._stream
    monkeypatch.setattr(Shard, "_stream", lambda self: (streamed.append(self.tar), stream(self))[1])
    more, _ = train(tarred, 1, 1, states)
    held_back = 2 * 20  # utterances for each bucket, before and after, at most each of another shard
    assert len(streamed) <= held_back
    more, _ = train(tarred, 1, 12, states)
    assert len(set(lines + more)) == len(lines) + len(more)


def lines_in(record, sizes):
    return {(visit, line) for visit, size in enumerate(sizes) for line in range(size) if record.has(visit, line, size)}


def test_record_equals_a_set_of_lines():
    """Bits, visits that are done and the first open one are a shorter way to write a set of lines."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(0, 12, size=30).tolist()  # 0: nothing usable
    lines = [(visit, line) for visit, size in enumerate(sizes) for line in range(max(size, 1))]
    ranks, of_all, seen = [VisitRecord(), VisitRecord()], VisitRecord(), set()
    for step, index in enumerate(rng.permutation(len(lines))):
        visit, line = lines[index]
        ranks[step % 2].note([(visit, line, sizes[visit])])
        seen.add((visit, line))
        if step % 37 == 0:
            for rank in ranks:
                of_all.merge(rank.state())
                rank.forget(of_all)
            copy = VisitRecord()
            copy.merge(of_all.state())
            for record in (of_all, copy):
                assert lines_in(record, sizes) == {pair for pair in seen if sizes[pair[0]]}
                expected = [
                    visit
                    for visit, size in enumerate(sizes)
                    if any((visit, line) not in seen for line in range(max(size, 1)))
                ]
                assert list(itertools.islice(record.open_visits(), len(expected) + 2)) == expected + [30, 31]
    for rank in ranks:
        of_all.merge(rank.state())
    for rank in ranks:
        rank.forget(of_all)
        assert not len(rank.state()["visits"])
    end = of_all.state()  # as large after months as on the first day
    assert end["first_open"] == 30 and not len(end["done"]) and not len(end["visits"])


def test_checkpoint_survives_a_file(tmp_path):
    """What is written must be what PyTorch reads without running code from the file."""
    progress = ShardProgress()
    progress.begin("order", "two streams", 0)
    progress.record.note([(0, 1, 9), (1, 0, 1)])
    torch.save(progress.state(), tmp_path / "state.ckpt")
    assert not len(progress.record.state()["done"])  # kept in the record of all ranks alone, or it grows for ever
    other = ShardProgress()
    other.load(torch.load(tmp_path / "state.ckpt", weights_only=True))
    start = other.begin("order", "two streams", 5)
    assert not start.has(0, 1, 9) and other.first_batch == 0  # the same streams: from where they started
    start = other.begin("order", "four streams", 5)
    assert start.has(0, 1, 9) and not start.has(0, 0, 9) and start.is_done(1) and other.first_batch == 5
    assert not start.has(0, 1, 8)  # the manifest has lost a line since
    other.record.note([(0, 7, 9), (0, 0, 8)])
    other.state()
    start = other.begin("order", "eight streams", 9)
    assert start.has(0, 0, 8) and not start.has(0, 1, 8)  # its visit has begun anew


def test_other_shards_start_their_epochs_anew(caplog):
    """Numbers of visits mean other shards then."""
    progress = ShardProgress()
    progress.begin("3 shards", "two streams", 0)
    progress.record.note([(0, 1, 9)])
    progress.state()
    assert not progress.begin("4 shards", "two streams", 7).has(0, 1, 9)
    assert progress.first_batch == 7
    assert "data has changed" in caplog.text


def test_loader_processes_may_be_spawned(tarred):
    """The start method of platforms without fork, and of programs with threads."""
    tarred.num_workers = 1
    loader = training_loader(tarred, PretrainingDataset("maker-one", [50]), 0, 1)
    pickled = pickle.loads(pickle.dumps((loader.dataset, loader.worker_init_fn)))
    assert isinstance(pickled[0].visits, Visits) and pickled[0].visits.usable({"audio_filepath": "a", "duration": 1.0})


def state_of_rank():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    progress = ShardProgress()
    progress.begin("order", "streams", 0)
    progress.record.note([(rank, 0, 1), (2, rank, 2)])
    state = progress.state()["record"]
    torch.distributed.barrier()
    return state["first_open"], len(state["done"]), len(state["bits"])


def test_a_checkpoint_holds_what_all_ranks_have_read():
    """Rank 0 writes it; the lines of the others would be read again."""
    assert run_on_ranks(2, state_of_rank) == [(3, 0, 0)] * 2


@pytest.mark.parametrize(
    "option, value",
    [("seed", 6), ("max_duration", 0.8), ("truncate_duration", 0.6), ("keep", "checked")],
)
def test_whatever_numbers_the_lines_starts_epochs_anew(tarred, caplog, option, value):
    """Resumed with another seed or filter, the record of a checkpoint would pass over lines that were never read."""
    states = []
    for changes in ({}, {}, {option: value}):
        caplog.clear()
        progress = ShardProgress()
        if states:
            progress.load(states[-1])
        progress.begin(*_identity(OmegaConf.merge(tarred, changes), SHARDS, 1), 0)
        progress.record.note([(0, 0, 5)])
        states.append(progress.state())
        assert ("data has changed" in caplog.text) == bool(changes)


def test_a_dataset_of_more_shards_starts_its_epochs_anew(tarred, counting_corpus, tmp_path, caplog):
    """Packed again into other shards, behind the same patterns: the visits of the checkpoint are of others."""
    _, states = train(tarred, 1, 6, (0, None))
    more = tarred_options(counting_corpus(LENGTHS), tmp_path / "more", SHARDS + 1)
    names = [name for _, name in train(more, 1, 40, states)[0]]
    assert len(set(names)) == len(LENGTHS) and "data has changed" in caplog.text
