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

"""The stream of training batches: complete, endless, and the same from wherever it is entered."""

import itertools
import json
import os
import random
import signal
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import (
    _limit_buffer,
    stream_options,
    training_loader,
    validation_loader,
)
from nemo_mshubert.data.shard_visits import ShardProgress
from nemo_mshubert.data.shared_batches import Place
from nemo_mshubert.data.tarred import make_tarred
from nemo_mshubert.data.usable_utterances import count_utterances
from nemo_mshubert.models.data_position import DataPosition
from tests.parallel.ranks_of_a_test import run_on_ranks

LENGTHS = [8000 + 800 * number for number in range(12)]  # 0.5 to 1.05 s
SHARDS = 4  # of tarred data
STREAM = 16  # batches: more than two epochs


def options(**changes):
    """Options of conf/pretrain in small; a batch holds two or three utterances."""
    config = {
        "manifest_filepath": None,
        "tarred_audio_filepaths": None,
        "sample_rate": 16000,
        "seed": 5,
        "crop": "shortest",
        "max_unreadable": 1,
        "batch_size": None,
        "batch_duration": 2.2,
        "use_bucketing": True,
        "num_buckets": 2,
        "bucket_buffer_size": 8,
        "num_cuts_for_bins_estimate": 24,
        "shuffle_buffer_size": 8,
        "shuffle": True,
        "min_duration": 0.1,
        "num_workers": 0,
        "pin_memory": False,
    }
    return OmegaConf.create({**config, **changes})


def tarred_options(manifest, folder, shards):
    """Options for a manifest that is packed into so many shards in the folder."""
    make_tarred(manifest, folder, shards)
    return options(
        manifest_filepath=f"{folder}/sharded_manifests/manifest__OP_0..{shards - 1}_CL_.json",
        tarred_audio_filepaths=f"{folder}/audio__OP_0..{shards - 1}_CL_.tar",
    )


@pytest.fixture
def plain(counting_corpus):
    return options(manifest_filepath=str(counting_corpus(LENGTHS)))


@pytest.fixture(params=["one manifest", "two manifests", "a list of lists", "a pattern"])
def plain_sets(plain, request):
    """Options of a manifest, or of the same lines in several."""
    if request.param == "one manifest":
        return plain
    path = Path(plain.manifest_filepath)
    lines = path.read_text().splitlines(keepends=True)
    count = 3 if request.param == "a pattern" else 2
    parts = [path.with_name(f"part_{part}.json") for part in range(count)]
    for number, part in enumerate(parts):
        part.write_text("".join(lines[number::count]))
    plain.manifest_filepath = {
        "two manifests": list(map(str, parts)),
        "a list of lists": [[str(part)] for part in parts],
        "a pattern": str(path.with_name(f"part__OP_0..{count - 1}_CL_.json")),
    }[request.param]
    return plain


@pytest.fixture
def tarred(counting_corpus, tmp_path):
    return tarred_options(counting_corpus(LENGTHS), tmp_path / "tars", SHARDS)


def take(config, count, first=0, rank=0, ranks=1, progress=None):
    """``count`` batches from batch ``first``; of tarred data, unless ``progress`` says else, in streams that start at
    0."""
    dataset = PretrainingDataset("maker-one", [50], "shortest", seed=rank)
    torch.manual_seed(first)  # the stream must not depend on them
    random.seed(first)
    if progress is None:
        progress = ShardProgress()
        training_loader(config, dataset, rank, ranks, 0, progress=progress)
    return list(itertools.islice(training_loader(config, dataset, rank, ranks, first, progress=progress), count))


def names(batches):
    return [sorted(batch["utterances"]) for batch in batches]


def same(one, other):
    return (
        one["utterances"] == other["utterances"]
        and torch.equal(one["audio"], other["audio"])
        and torch.equal(one["length"], other["length"])
        and torch.equal(one["labels"][50], other["labels"][50])
    )


def check_resumption(config, firsts):
    stream = take(config, STREAM)
    for first in firsts:
        tail = take(config, min(5, STREAM - first), first)
        assert all(same(*pair) for pair in zip(stream[first:], tail)), first
    assert not all(same(*pair) for pair in zip(stream, take(config, 3, first=1)))  # not one batch over and over
    return stream


@pytest.mark.unit
def test_plain_stream_continues_from_any_batch(plain_sets):
    """A resumed run sees the data, and the crops, an uninterrupted one would have seen - also after whole epochs."""
    stream = check_resumption(plain_sets, [0, 1, 2, 3, 7, 13])
    utterances = [name for batch in stream for name in batch["utterances"]]
    assert len(set(utterances)) == len(LENGTHS)
    assert len(utterances) > 2 * len(LENGTHS)


@pytest.mark.unit
def test_plain_stream_continues_within_a_later_epoch(plain_sets):
    """A resume begins at the epoch that was left: several manifests then came in the order of another one, and of 24
    utterances ten were lost and ten seen twice."""
    dataset, position = PretrainingDataset("maker-one", [50], "shortest", seed=0), DataPosition()
    stream = list(itertools.islice(training_loader(plain_sets, dataset, 0, 1, 0, position.places), STREAM))
    first = position.places[2].number + 1
    resumed = DataPosition()
    resumed.resume(first, first, asdict(position.place(first, 1)), 1)
    assert resumed.places == {2: Place(epoch=2, batches=1, drawn_for=1, number=first)}
    tail = list(itertools.islice(training_loader(plain_sets, dataset, 0, 1, first, resumed.places), 4))
    assert len(tail) == 4 and all(same(*pair) for pair in zip(stream[first:], tail))


@pytest.mark.unit
def test_weights_of_plain_manifests_are_refused(plain):
    plain.manifest_filepath = [[plain.manifest_filepath, 0.5]]
    with pytest.raises(ValueError, match="no weights"):
        take(plain, 1)


@pytest.mark.unit
@pytest.mark.parametrize("use_bucketing", [True, False])
def test_tarred_stream_continues_from_any_batch(tarred, use_bucketing):
    """Without loader processes."""
    tarred.use_bucketing = use_bucketing
    stream = check_resumption(tarred, [0, 1, 2, 7, 13])
    assert len({name for batch in stream for name in batch["utterances"]}) == len(LENGTHS)


@pytest.mark.integration
@pytest.mark.parametrize("firsts", [[2, 4], [1, 7]], ids=["even", "odd"])
def test_tarred_stream_of_two_processes_continues_from_any_batch(tarred, firsts):
    """Each loader process shuffles on its own; on a resume each batch must come from its own."""
    tarred.num_workers = 2
    stream = check_resumption(tarred, firsts)
    assert len({name for batch in stream for name in batch["utterances"]}) == len(LENGTHS)


@pytest.mark.unit
@pytest.mark.parametrize("data", ["plain", "tarred"])
def test_batches_are_pinned_where_asked_for(data, request):
    """Else every copy to the GPU waits for the one before."""
    config = request.getfixturevalue(data)
    dataset = PretrainingDataset("maker-one", [50])
    for wanted in (False, True):
        config.pin_memory = wanted
        assert training_loader(config, dataset, 0, 1).pin_memory == wanted


class Numbers(PretrainingDataset):
    """The number of a batch alone."""

    def __getitem__(self, numbered_cuts):
        return {"number": numbered_cuts[0]}


@pytest.mark.integration
def test_batches_of_streams_that_begin_anew_come_by_their_numbers(tarred):
    """On another number of ranks, behind any batch: that of one loader process would pass for that of another, and a
    resume would go on behind the wrong ones."""
    tarred.num_workers = 2
    progress = ShardProgress()
    for first in (3, 4):  # where they begin, and a resume within them
        loader = training_loader(tarred, Numbers("maker-one", [50]), 0, 1, first, progress=progress)
        found = [batch["number"] for batch in itertools.islice(loader, 4)]
        assert found == list(range(first, first + 4)) and progress.first_batch == 3


@pytest.mark.integration
def test_plain_stream_does_not_depend_on_the_number_of_processes(plain):
    """Plain manifests are sampled in the training process: more loader processes only make it faster."""
    one = take(plain, 6)
    plain.num_workers = 2
    assert all(same(*pair) for pair in zip(one, take(plain, 6)))


@pytest.mark.unit
def test_every_epoch_holds_every_utterance_once_in_another_order(plain_sets):
    """Utterances lost or doubled per epoch would show in no curve."""
    plain_sets.update(batch_duration=None, batch_size=3, use_bucketing=False)
    stream = take(plain_sets, 8)
    epochs = [[name for batch in stream[start : start + 4] for name in batch["utterances"]] for start in (0, 4)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == len(LENGTHS)
    assert epochs[0] != epochs[1]


@pytest.mark.unit
def test_tarred_stream_holds_all_utterances_alike(tarred):
    """Buffers blur the epochs: over ten of them the counts must agree."""
    tarred.update(batch_duration=None, batch_size=3, use_bucketing=False)
    counts = Counter(name for batch in take(tarred, 40) for name in batch["utterances"])
    assert len(counts) == len(LENGTHS)
    assert min(counts.values()) >= 8 and max(counts.values()) <= 12


@pytest.mark.unit
@pytest.mark.parametrize("lines", [0, 1])
def test_a_manifest_without_line_ends_is_named_among_others(plain, tmp_path, lines):
    """The training would end with its first epoch: "Total of weights must be greater than zero". Alone it is read."""
    path, short = Path(plain.manifest_filepath), tmp_path / "short.json"
    short.write_text("".join(path.read_text().splitlines()[:lines]))
    both = {**plain, "manifest_filepath": [str(path), str(short)]}
    for load in (training_loader, validation_loader):
        with pytest.raises(ValueError, match=f"{short}: empty, or one line without its end.*Leave it out"):
            load(options(**both), PretrainingDataset("maker-one", [50], "pad"), 0, 1)
    if lines:
        alone = options(**{**plain, "manifest_filepath": str(short), "use_bucketing": False})
        assert names(take(alone, 2)) == [["u0"], ["u0"]]
        with short.open("a") as stream:
            stream.write("\n")
        assert len(take(options(**both), STREAM)) == STREAM


@pytest.mark.unit
def test_seed_decides_the_order(plain):
    """Another seed is another run."""
    first = names(take(plain, 6))
    plain.seed = 6
    assert names(take(plain, 6)) != first


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["plain", "tarred"])
def test_without_shuffling_it_does_not(kind, request):
    """Lines are sorted by length, say, or looked at in turn."""
    config = request.getfixturevalue(kind)
    config.update(shuffle=False, use_bucketing=False, batch_duration=None, batch_size=1)
    first = names(take(config, 6))
    config.seed = 6
    assert names(take(config, 6)) == first


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["plain", "tarred"])
def test_ranks_differ(kind, request):
    """Two GPUs that see the same batches train on half of the data."""
    config = request.getfixturevalue(kind)
    config.update(batch_duration=None, batch_size=2, use_bucketing=False, shuffle_buffer_size=2)
    ranks = [take(config, 3, rank=rank, ranks=2) for rank in (0, 1)]
    seen = [{name for batch in batches for name in batch["utterances"]} for batches in ranks]
    assert not seen[0] & seen[1]


@pytest.mark.unit
def test_a_validation_on_tars_is_refused(plain):
    """It was a KeyError: the lines of a plain manifest are of no shard."""
    plain.tarred_audio_filepaths = "audio__OP_0..3_CL_.tar"
    with pytest.raises(ValueError, match="tarred_audio_filepaths: audio.*: a validation reads plain manifests"):
        validation_loader(plain, PretrainingDataset("maker-one", [50], "pad"), 0, 1)


@pytest.mark.unit
def test_validation_is_one_pass_the_same_every_time(plain):
    """val_loss chooses the best checkpoint: it must be of all utterances, each once, always alike."""
    plain.update(crop="pad", use_bucketing=False)
    dataset = PretrainingDataset("maker-one", [50], "pad")
    loader = validation_loader(plain, dataset, 0, 1)
    once, again = list(loader), list(loader)
    assert sorted(name for batch in once for name in batch["utterances"]) == sorted(
        f"u{number}" for number in range(len(LENGTHS))
    )
    assert len(once) == len(again) and all(same(*pair) for pair in zip(once, again))
    ranks = [names(validation_loader(plain, dataset, rank, 2)) for rank in (0, 1)]
    shared = [name for batches in ranks for batch in batches for name in batch]
    assert set(shared) == {f"u{number}" for number in range(len(LENGTHS))}
    plain.manifest_filepath = [plain.manifest_filepath] * 2  # sets, which NeMo repeats for ever in training
    both = itertools.islice(validation_loader(plain, dataset, 0, 1), 4 * len(LENGTHS))
    assert Counter(name for batch in both for name in batch["utterances"]) == Counter(2 * list(set(shared)))


@pytest.mark.unit
@pytest.mark.parametrize("data", ["plain", "tarred"])
def test_nothing_left_to_train_on_is_an_error(data, request):
    """min_duration above all durations must not make an endless, silent loop."""
    plain = request.getfixturevalue(data)
    plain.update(min_duration=100.0)
    with pytest.raises(ValueError, match="no utterance of 100.0 to inf s.*min_duration"):
        take(plain, 1)


@pytest.mark.unit
@pytest.mark.parametrize("data", ["plain", "tarred"])
def test_lines_that_are_counted_are_those_that_are_read(data, request, tmp_path, monkeypatch):
    """NeMo's options choose lines, by durations after cropping, too: an epoch is as long as the log says."""
    config = request.getfixturevalue(data)
    config.update(truncate_duration=0.7, max_duration=0.8, use_bucketing=False)
    path = tmp_path / ("counting.json" if data == "plain" else "tars/sharded_manifests/manifest_2.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["_skipme"], lines[1]["validation_status"] = True, "fail"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    left_out = {Path(line["audio_filepath"]).stem for line in lines[:2]}
    found = {Path(name).stem for batch in names(take(config, 3 * STREAM)) for name in batch}
    messages = []
    monkeypatch.setattr("nemo_mshubert.data.resumable_loader.logging.info", messages.append)
    assert count_utterances(config).usable == len(found) == len(LENGTHS) - 2
    assert not found & left_out
    assert f": 2 of {len(LENGTHS)} utterances are left out, as they are not of 0.1 to 0.8 s" in messages[0]


@pytest.mark.unit
@pytest.mark.parametrize("data", ["plain", "tarred"])
def test_lines_of_exactly_the_bounds_and_of_another_status_are_read(data, request, tmp_path):
    """Recordings are cut to whole seconds, which JSON may spell without a point: none of them would be trained on."""
    config = request.getfixturevalue(data)
    config.update(min_duration=0.5, max_duration=1.0, keep="checked", use_bucketing=False)
    for path in tmp_path.glob("counting.json" if data == "plain" else "tars/sharded_manifests/*.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["duration"] = 1 if line["duration"] == 1.0 else line["duration"]
            line["validation_status"] = "pass" if line["duration"] == 0.6 else "checked"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = {f"u{number}" for number in range(11)} - {"u2"}  # u11 is longer
    found = {name for batch in names(take(config, 2 * STREAM)) for name in batch}
    assert {Path(name).stem.removeprefix("audio_") for name in found} == expected  # in tars: audio_u0.wav
    assert count_utterances(config).usable == len(expected)


@pytest.mark.unit
@pytest.mark.parametrize("data", ["plain", "tarred"])
def test_a_line_without_its_duration_is_named(data, request, tmp_path):
    """It was a KeyError in a loader process, when the run had begun."""
    config = request.getfixturevalue(data)
    path = tmp_path / ("counting.json" if data == "plain" else "tars/sharded_manifests/manifest_2.json")
    first, second, rest = path.read_text().split("\n", 2)
    path.write_text("\n".join([first, second.replace('"duration"', '"seconds"'), rest]))
    with pytest.raises(ValueError, match=f'{path.name}:2: "duration" .* is missing. Write the manifest again'):
        take(config, 1)


@pytest.mark.unit
@pytest.mark.parametrize("data", ["plain", "tarred"])
@pytest.mark.parametrize("source", ["input_cfg", "shar_path", "cuts_path"])
def test_other_sources_than_manifests_are_refused(data, source, request):
    """NeMo would train on them in place of the manifests, whose labels were checked; or tars on none of them."""
    config = request.getfixturevalue(data)
    config[source] = "blend.yaml"
    with pytest.raises(ValueError, match=rf"{source}: blend.yaml: .*\[a.json,b.json\]"):
        take(config, 1)


@pytest.mark.unit
def test_tarred_manifests_without_their_tars_are_refused(tarred):
    """Every utterance would be skipped as unreadable, and a model of nothing written."""
    tarred.tarred_audio_filepaths = None
    with pytest.raises(ValueError, match="manifest_0.json:1: of a tarred dataset .* train_tars"):
        take(tarred, 1)


@pytest.mark.unit
def test_lines_with_a_shard_id_and_files_of_their_own_are_plain(plain, tmp_path):
    """Someone unpacked the tars, or labels files that once were packed."""
    path = tmp_path / "counting.json"
    path.write_text(path.read_text().replace('{"audio_filepath"', '{"shard_id": 3, "audio_filepath"'))
    assert (
        count_utterances(plain).usable == len(LENGTHS)
        and json.loads(path.read_text().splitlines()[0])["shard_id"] == 3
    )
    found = {name for batch in names(take(plain, STREAM)) for name in batch}
    assert found == {f"u{number}" for number in range(len(LENGTHS))}


@pytest.mark.unit
@pytest.mark.parametrize("num_buckets", [1, 13])
def test_too_few_or_too_many_buckets_are_an_error_with_a_remedy(plain, num_buckets):
    """A first try on a handful of utterances. Of one bucket Lhotse says "AssertionError"."""
    plain.num_buckets = num_buckets
    with pytest.raises(ValueError, match=f"num_buckets.*{num_buckets}.* use_bucketing=false"):
        take(plain, 1)
    plain.use_bucketing = False  # as it says
    assert len(take(plain, 1)) == 1


@pytest.mark.unit
def test_more_buckets_than_utterances_that_bound_them_are_an_error(plain):
    """Many buckets with the estimate of the tiny experiments: Lhotse asserts that there are enough "cuts", of which
    the manifest has many more."""
    plain.num_buckets, plain.num_cuts_for_bins_estimate = 3, 2
    with pytest.raises(ValueError, match="num_cuts_for_bins_estimate=2: .* num_buckets=3. Raise it, or lower"):
        take(plain, 1)
    for change in ({"num_buckets": 2}, {"use_bucketing": False}, {"bucket_duration_bins": [0.7, 0.9]}):
        assert len(take(options(**{**plain, **change}), 1)) == 1


@pytest.mark.unit
def test_a_line_that_is_not_json_is_named(plain, tmp_path):
    """A manifest that was cut while it was copied."""
    path = tmp_path / "counting.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match="counting.json:12: not JSON"):
        take(plain, STREAM)


@pytest.mark.unit
@pytest.mark.parametrize("content", [None, b"", b"not audio" * 100])
def test_audio_without_a_readable_header_is_named(plain, tmp_path, content):
    """Broken before the run: headers are read while sampling, where nothing can be skipped."""
    path = tmp_path / "audio" / "u3.wav"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(Exception, match="u3.wav"):
        take(plain, STREAM)


@pytest.mark.unit
def test_unreadable_files_do_not_shift_the_stream(plain, tmp_path):
    """A file that breaks between two runs changes its own rows and nothing else."""
    plain.crop = "pad"
    stream = take(plain, 4)
    broken = stream[0]["utterances"][0]
    path = tmp_path / "audio" / f"{broken}.wav"
    num_samples = soundfile.info(path).frames
    soundfile.write(path, np.full(num_samples, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    after = take(plain, 4)
    assert names(after)[0] == [name for name in names(stream)[0] if name != broken]
    for one, other in zip(names(stream)[1:], names(after)[1:]):
        assert other == [name for name in one if name != broken] or other == ["silence"]


@pytest.mark.unit
def test_what_the_streams_follow_from(plain, tarred):
    """What a resume names as changed must be what changes the batches: not paths, since data may move."""
    for config, follows_from_workers in ((plain, False), (tarred, True)):
        before = stream_options(config, 2)
        for changes_no_batch in ({"manifest_filepath": "moved.json"}, {"pin_memory": True}):
            assert stream_options(OmegaConf.merge(config, changes_no_batch), 2) == before
        assert (stream_options(OmegaConf.merge(config, {"num_workers": 1}), 2) != before) == follows_from_workers
        assert stream_options(OmegaConf.merge(config, {"batch_duration": 1.6}), 2) != before
        assert stream_options(config, 1) != before
    assert stream_options(plain, 1) != stream_options(tarred, 1)


@pytest.mark.unit
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resume_samples_no_epoch_before_its_own(plain_sets, ranks):
    """At 400,000 updates sampling all batches since the first again would take hours."""
    dataset = PretrainingDataset("maker-one", [50], "shortest", seed=0)
    position = DataPosition()
    loader = training_loader(plain_sets, dataset, 0, ranks, 0, position.places)
    stream = list(itertools.islice(loader, STREAM))
    for own_batches in range(STREAM - 3):
        resumed, epochs = DataPosition(), []
        place = position.place(own_batches, ranks)
        resumed.resume(own_batches * ranks, own_batches, asdict(place), ranks)
        again = training_loader(plain_sets, dataset, 0, ranks, own_batches, resumed.places)
        set_epoch = again.sampler.batches.sampler.set_epoch
        again.sampler.batches.sampler.set_epoch = lambda epoch: epochs.append(epoch) or set_epoch(epoch)
        torch.manual_seed(own_batches)
        tail = list(itertools.islice(again, 3))
        assert all(same(one, other) for one, other in zip(tail, stream[own_batches : own_batches + 3]))
        assert epochs[0] == place.epoch
    assert epochs[0] >= 1  # the last of them began behind an epoch


@pytest.mark.unit
def test_a_dead_loader_process_is_named(plain):
    """A process that the kernel kills for its memory must end the run, not leave it waiting."""

    class Dying(PretrainingDataset):
        def __getitem__(self, numbered_cuts):
            os.kill(os.getpid(), signal.SIGKILL)

    plain.num_workers = 1
    loader = training_loader(plain, Dying("maker-one", [50]), 0, 1)
    with pytest.raises(RuntimeError, match="DataLoader worker .*(killed by signal|exited unexpectedly)"):
        next(iter(loader))


@pytest.mark.unit
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_vanishes_is_named(tarred, tmp_path, num_workers):
    """A file system that loses a shard in the third week must not make an epoch shorter in silence."""
    tarred.num_workers = num_workers
    loader = training_loader(tarred, PretrainingDataset("maker-one", [50]), 0, 1)
    (tmp_path / "tars" / "audio_2.tar").unlink()
    with pytest.raises(Exception, match="audio_2.tar"):
        list(itertools.islice(loader, STREAM))


@pytest.fixture
def halves(plain, tmp_path):
    """Two manifests, each of every second line of ``plain``, which names them now."""
    lines = Path(plain.manifest_filepath).read_text().splitlines(keepends=True)
    paths = [tmp_path / "even.json", tmp_path / "odd.json"]
    for first, path in enumerate(paths):
        path.write_text("".join(lines[first::2]))
    plain.manifest_filepath = [[str(path)] for path in paths]
    return paths


def check_on_a_rank(config):
    torch.distributed.init_process_group("gloo")
    try:
        count_utterances(config, torch.distributed.get_rank(), 2)
    except ValueError as error:
        torch.distributed.barrier()
        return str(error)
    torch.distributed.barrier()


@pytest.mark.unit
def test_too_few_utterances_for_lhotses_number_of_buckets(plain):
    """The message itself failed where the config leaves the number to Lhotse."""
    del plain.num_buckets
    plain.use_bucketing = True
    with pytest.raises(ValueError, match="utterances are too few for num_buckets 30"):
        count_utterances(plain)


@pytest.mark.unit
def test_ranks_share_the_check_of_the_manifests(plain, halves):
    """One rank alone would need hours for a million hours of speech, and the others would not wait."""
    plain.num_buckets = len(LENGTHS)
    assert run_on_ranks(2, check_on_a_rank, plain) == [None, None]
    plain.num_buckets = len(LENGTHS) + 1
    assert all("too few for num_buckets" in told for told in run_on_ranks(2, check_on_a_rank, plain))


def usable_on_a_rank(config):
    torch.distributed.init_process_group("gloo")
    return count_utterances(config, torch.distributed.get_rank() // 2, 2).usable


@pytest.mark.unit
def test_ranks_that_share_a_model_count_once(plain, halves):
    """Two read the same share of the manifests: as many buckets as there are utterances would be twice too many."""
    assert run_on_ranks(4, usable_on_a_rank, plain) == [len(LENGTHS)] * 4
    first_line, _ = halves[1].read_text().split("\n", 1)
    halves[1].write_text(first_line)  # NeMo mixes both, though a rank looks at one of them
    with pytest.raises(ValueError, match="odd.json: empty, or one line without its end"):
        count_utterances(plain, rank=1, world_size=2)


@pytest.mark.unit
def test_lines_at_which_nemo_ends_are_named(plain, tarred, tmp_path):
    """A blank line, in the middle of the first epoch. We read the manifests of tars, and pass over it."""
    for path in (tmp_path / "counting.json", tmp_path / "tars/sharded_manifests/manifest_2.json"):
        first, rest = path.read_text().split("\n", 1)
        path.write_text(f"{first}\n\n{rest}")
    with pytest.raises(ValueError, match="counting.json:2: a blank line"):
        take(plain, 1)
    assert len(take(tarred, STREAM)) == STREAM


@pytest.mark.unit
@pytest.mark.parametrize("rate", ["sampling_rate", "sample_rate"])
def test_a_rate_is_taken_beside_whole_files_alone(plain, tmp_path, rate):
    """NeMo recommends it, but takes the duration of a segment for that of its file then, and trains on other audio."""
    path = tmp_path / "counting.json"
    lines = [{**json.loads(line), rate: 16000} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(take(plain, STREAM)) == STREAM
    lines[2].update(offset=0.1, duration=0.4)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="counting.json:3: offset beside sampling_rate.*Remove sampling_rate"):
        take(plain, 1)


def lengthen(manifest, factor):
    """Only the lines, which are what is counted."""
    lines = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    lines = [{**line, "duration": factor * line["duration"]} for line in lines]
    Path(manifest).write_text("".join(json.dumps(line) + "\n" for line in lines))


def messages_of(config, rank=0, ranks=1):
    """What is logged of the amount of data when training begins: information and warnings."""
    told = {"info": [], "warning": []}
    with pytest.MonkeyPatch.context() as context:
        for level, messages in told.items():
            context.setattr(f"nemo_mshubert.data.resumable_loader.logging.{level}", messages.append)
        training_loader(config, PretrainingDataset("maker-one", [50]), rank, ranks)
    return [[text for text in texts if "epoch hears" in text] for texts in told.values()]


@pytest.mark.unit
@pytest.mark.parametrize(
    "crop, heard, warned", [(None, "2.58", False), (900, "2.50", False), (160, "0.53", False), (150, "0.50", True)]
)
def test_hours_that_an_epoch_hears_are_told(plain, crop, heard, warned):
    """Of a corpus of recordings of an hour it heard 15 s of each, and nothing said so."""
    lengthen(plain.manifest_filepath, 1000)  # 500 to 1050 s, 9300 s in all
    plain.truncate_duration = crop
    (info,), warnings = messages_of(plain)
    assert info.startswith(f"Training on 12 utterances. They last 2.58 h, of which an epoch hears {heard} h")
    assert len(warnings) == warned
    if warned:
        assert f"hears {heard} of 2.58 h" in warnings[0] and "prepare_folder.py --segment_seconds 150," in warnings[0]


@pytest.mark.unit
def test_lines_that_are_left_out_are_not_counted_as_unheard(plain):
    """No cutting would bring them back."""
    lengthen(plain.manifest_filepath, 1000)
    plain.update(min_duration=900.0, truncate_duration=940.0, use_bucketing=False)
    (info,), warnings = messages_of(plain)
    assert "Training on 4 utterances. They last 1.08 h, of which an epoch hears 1.03 h" in info and not warnings


def hours_on_a_rank(config):
    torch.distributed.init_process_group("gloo")
    return messages_of(config, torch.distributed.get_rank(), 2)


@pytest.mark.unit
def test_ranks_tell_the_hours_of_all(plain, halves):
    """Each reads a share of the manifests, of which the hours must not be."""
    for path in halves:
        lengthen(path, 1000)
    plain.truncate_duration = 150
    one, other = run_on_ranks(2, hours_on_a_rank, plain)
    (info,), (warning,) = one
    assert one == other and "12 utterances. They last 2.58 h, of which an epoch hears 0.50 h" in info
    assert "0.50 of 2.58 h" in warning


@pytest.mark.unit
def test_nothing_left_to_validate_on_is_an_error(plain):
    """Without a val_loss the best weights are those of any update, which shows when the run has ended."""
    plain.update(crop="pad", use_bucketing=False, max_duration=0.2)
    with pytest.raises(ValueError, match="no utterance of 0.1 to 0.2 s.*max_duration"):
        validation_loader(plain, PretrainingDataset("maker-one", [50], "pad"), 0, 1)


@pytest.mark.unit
@pytest.mark.parametrize(
    "utterances, ranks, workers, held_back",
    [
        (281_241, 1, 0, 20_000),  # LibriSpeech's 960 hours; in this process, no more than both buffers together
        (281_241, 1, 8, 20_000),
        (281_241, 8, 2, 17_577),
        (281_241, 32, 0, 8_788),
        (281_241, 32, 8, 1_098),
        (281_241, 256, 8, 600),  # 20 to each of 30 buckets
    ],
)
def test_a_stream_holds_back_its_share_of_an_epoch(utterances, ranks, workers, held_back):
    """The share of one process: else the batches of a run on many GPUs would mix many epochs."""
    buffers = dict(num_buckets=30, bucket_buffer_size=10_000, shuffle_buffer_size=10_000)
    config = options(**buffers, num_workers=workers)
    _limit_buffer(config, utterances, ranks)
    assert (config.bucket_buffer_size, config.shuffle_buffer_size) == (held_back, 0)
    for changes, known in ({"use_bucketing": False}, utterances), ({}, None):  # None: of remote manifests
        config = options(**buffers, num_workers=workers, **changes)
        _limit_buffer(config, known, ranks)
        assert (config.bucket_buffer_size, config.shuffle_buffer_size) == (10_000, 10_000)
