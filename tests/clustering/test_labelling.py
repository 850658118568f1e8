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

"""If these fail, hours of labelling are lost to one bad line, or an output is half of one k-means and half of
another."""

import json
import os
import resource
import sys
import types
from pathlib import Path

import joblib
import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoIterator
from torch import nn

from nemo_mshubert.clustering import audio_windows, labelling
from nemo_mshubert.clustering.features import FeatureDescription, FeatureMaker, HiddenFeatures
from nemo_mshubert.clustering.frame_sample import sample_corpus_frames
from nemo_mshubert.clustering.label_maker import LabelMaker, fit_label_maker
from nemo_mshubert.clustering.labelling import Shard, label_manifest, merge_shards
from nemo_mshubert.clustering.metrics import measure_manifest
from nemo_mshubert.data.alignments import Alignments, check_aligned
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.labels import FrameLabels, check_labelled_manifest
from nemo_mshubert.data.manifest import iter_manifest, read_manifest, write_manifest
from nemo_mshubert.modules.frames import frame_count
from tests.conftest import load_script
from tests.parallel.ranks_of_a_test import run_on_ranks

pytestmark = pytest.mark.unit


class WindowFeatures(FeatureMaker):
    """The first three samples of each frame; counts what it is asked for, and can be told to fail."""

    description = FeatureDescription("mfcc", 3)

    def __init__(self, fail_at_call=None):
        self.utterances = 0
        self.calls = 0
        self.fail_at_call = fail_at_call

    def __call__(self, waveforms):
        self.calls += 1
        if self.calls == self.fail_at_call:
            raise RuntimeError("power cut")
        self.utterances += len(waveforms)
        frames = [each[: 320 * frame_count(len(each))].reshape(-1, 320)[:, :3] for each in waveforms]
        return [torch.from_numpy(each) for each in frames]


@pytest.fixture(autouse=True)
def two_second_windows(monkeypatch):
    monkeypatch.setattr(audio_windows, "WINDOW_SECONDS", 2)


@pytest.fixture
def corpus(tmp_path):
    """Twelve utterances of 0.5 to 1.6 s below the manifest's folder, one of them a segment."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    entries = []
    for number in range(12):
        path = tmp_path / "audio" / f"u{number}.wav"
        soundfile.write(path, rng.normal(0, 0.1, 8000 + 1600 * number), 16000)
        entries.append({"audio_filepath": str(path), "duration": 0.5 + 0.1 * number, "text": f"wörd {number}"})
    entries[3].update(offset=0.2, duration=0.5)
    write_manifest(tmp_path / "train.json", entries)
    return tmp_path / "train.json"


@pytest.fixture
def maker(corpus):
    frames = sample_corpus_frames([corpus], WindowFeatures(), 10**6, seed=0)
    return fit_label_maker(frames, [12, 4], WindowFeatures.description, backend="sklearn")


@pytest.fixture
def other(corpus):
    """The label maker of another k-means of the same features."""
    frames = sample_corpus_frames([corpus], WindowFeatures(), 10**6, seed=0)
    return fit_label_maker(frames, [9], WindowFeatures.description, backend="sklearn")


def test_windows_are_full_but_the_last(corpus):
    """An encoder runs utterances of similar length together: one at a time, labelling takes many times as long."""
    windows = list(audio_windows.audio_windows(iter_manifest(corpus)))
    seconds = [[len(utterance.samples) / 16000 for utterance in window] for window in windows]
    assert len(windows) > 2 and all(sum(each) >= 2 > sum(each[:-1]) for each in seconds[:-1])
    assert [utterance.entry for window in windows for utterance in window] == read_manifest(corpus)


def test_sample_is_of_all_manifests(corpus, tmp_path):
    entries, other = read_manifest(corpus), tmp_path / "other.json"
    write_manifest(other, entries[5:8])
    frames = sample_corpus_frames([corpus, other], WindowFeatures(), 10**6, seed=0)
    audio = [load_audio(entry) for entry in [*entries, *entries[5:8]]]
    expected = np.concatenate(WindowFeatures()(audio))
    np.testing.assert_array_equal(frames, expected)
    assert sample_corpus_frames([corpus], WindowFeatures(), 50, seed=0).shape == (50, 3)


def test_output_is_the_manifest_with_labels(corpus, maker, tmp_path):
    output = tmp_path / "out" / "labelled.json"
    assert label_manifest(corpus, output, maker, WindowFeatures()) is True
    assert [path.name for path in output.parent.iterdir()] == ["labelled.json"]  # no progress file is left
    originals, entries = read_manifest(corpus), read_manifest(output)
    assert len(entries) == 12
    for original, entry in zip(originals, entries):
        labels = FrameLabels.from_manifest(entry.pop("labels"), "here")
        rate = {} if "offset" in original else {"sampling_rate": 16000}
        assert entry == {**original, **rate}
        audio = load_audio(original)
        (features,) = WindowFeatures()([audio])
        assert (labels.maker, labels.num_samples, labels.offset) == (maker.id, len(audio), original.get("offset"))
        np.testing.assert_array_equal(labels.sets[12], maker.label(features)[12])
    assert check_labelled_manifest(output, maker.id)["utterances"] == 12


def test_an_interrupted_run_goes_on_and_gives_the_same(corpus, maker, tmp_path):
    label_manifest(corpus, tmp_path / "whole.json", maker, WindowFeatures())
    output = tmp_path / "labelled.json"
    with pytest.raises(RuntimeError, match="power cut"):
        label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=3))
    assert not output.exists()  # never half a manifest
    with pytest.raises(ValueError, match=r"shards \[0, 1\] of 2 are not there whole"):
        merge_shards(corpus, output, maker, 2)  # a mistake, which loses nothing
    (partial,) = tmp_path.glob(".labelled.json.*.partial")
    partial.write_bytes(partial.read_bytes()[:-30])  # the last line was cut by the power cut
    done = partial.read_bytes().count(b"\n")
    assert done >= 2
    features = WindowFeatures()
    label_manifest(corpus, output, maker, features)
    assert features.utterances == 12 - done  # nothing is computed twice
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not partial.exists()


def test_a_full_disk_is_named(corpus, maker, tmp_path):
    """Label making writes for days, and the error of the system names no file."""

    def rank():  # a process of its own, whose files may grow no further
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(OSError) as error:
            label_manifest(corpus, tmp_path / "labelled.json", maker, WindowFeatures())
        return str(error.value)

    (message,) = run_on_ranks(1, rank)
    assert "File too large" in message and message.endswith(f"/.labelled.json.{maker.id}.partial'")
    assert not (tmp_path / "labelled.json").exists()


def test_a_line_that_lacks_its_end_alone_is_made_again(corpus, maker, tmp_path):
    """The next line would follow it on the same line: two utterances lost, found when training starts days later."""
    label_manifest(corpus, tmp_path / "whole.json", maker, WindowFeatures())
    output = tmp_path / "labelled.json"
    with pytest.raises(RuntimeError, match="power cut"):
        label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=3))
    (partial,) = tmp_path.glob(".labelled.json.*.partial")
    partial.write_bytes(partial.read_bytes().removesuffix(b"\n"))
    label_manifest(corpus, output, maker, WindowFeatures())
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_loader_needs_no_header_of_labelled_audio(maker, tmp_path, rate):
    """Otherwise one file that is gone ends the run while the sampler looks at its header, instead of being skipped."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.normal(0, 0.1, rate + 37), rate)
    seconds = (rate + 37) / rate
    write_manifest(
        tmp_path / "train.json", [{"audio_filepath": str(tmp_path / "a.wav"), "duration": round(seconds, 2)}]
    )
    label_manifest(tmp_path / "train.json", tmp_path / "labelled.json", maker, WindowFeatures())
    samples = load_audio(read_manifest(tmp_path / "train.json")[0])
    (tmp_path / "a.wav").unlink()
    (cut,) = LazyNeMoIterator(str(tmp_path / "labelled.json"))
    assert cut.sampling_rate == rate
    assert abs(cut.resample(16000).num_samples - len(samples)) <= 160


@pytest.mark.parametrize(
    "line, expected",
    [
        ({}, {"sampling_rate": 16000}),
        ({"sampling_rate": None}, {"sampling_rate": 16000}),
        ({"sampling_rate": 8000}, {"sampling_rate": 16000}),  # the file knows better
        ({"sample_rate": 16000}, {"sampling_rate": 16000}),  # NeMo's other spelling
        ({"offset": 0.1, "duration": 0.5}, {}),  # NeMo would take 0.5 s for the whole file, and 0.1 s from that
        ({"offset": 0.1, "duration": 0.5, "sampling_rate": 16000}, {}),
        ({"duration": 0.9, "sampling_rate": 16000}, {}),
        ({"offset": 0.0}, {}),
        ({"duration": 0.9}, {}),  # not that of the file: its header is right
        ({"duration": None}, {}),
    ],
)
def test_a_rate_is_added_where_it_is_true(maker, tmp_path, line, expected):
    """And a finished output is recognised with and without it."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    manifest, output = tmp_path / "train.json", tmp_path / "labelled.json"
    write_manifest(manifest, [{"audio_filepath": str(tmp_path / "a.wav"), "duration": 1.0, **line}])
    label_manifest(manifest, output, maker, WindowFeatures())
    (entry,) = read_manifest(output)
    assert {key: value for key, value in entry.items() if key.startswith("sampl")} == expected
    assert label_manifest(manifest, output, maker, WindowFeatures(fail_at_call=1)) is False
    if "sampling_rate" not in line:
        entry.pop("sampling_rate", None)  # as an earlier version wrote it
        write_manifest(output, [entry])
        assert label_manifest(manifest, output, maker, WindowFeatures(fail_at_call=1)) is False
    write_manifest(manifest, [{**read_manifest(manifest)[0], "text": "a"}])
    assert label_manifest(manifest, output, maker, WindowFeatures()) is True  # another line now


def test_two_processes_do_not_label_the_same_lines(corpus, maker, tmp_path):
    """The command twice, or torchrun with --shard: lines of both were mixed in one file, which counted as finished."""
    output = tmp_path / "labelled.json"

    class Meeting(WindowFeatures):
        def __call__(self, waveforms):
            if not self.errors:
                with pytest.raises(RuntimeError, match="another process is labelling these lines") as error:
                    label_manifest(corpus, output, maker, WindowFeatures())
                self.errors.append(error)
            return super().__call__(waveforms)

    features = Meeting()
    features.errors = []
    assert label_manifest(corpus, output, maker, features) is True and features.errors
    assert len(read_manifest(output)) == 12
    assert label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=1)) is False


def test_shards_and_interrupted_ones_of_another_maker_are_kept(corpus, maker, other, tmp_path):
    """Hours of labels: a job with another k-means and the same --output wrote over shards that were not yet joined."""
    output = tmp_path / "labelled.json"
    label_manifest(corpus, output, maker, WindowFeatures(), Shard(0, 2))
    with pytest.raises(RuntimeError, match="power cut"):
        label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=2), Shard(1, 2))
    kept = {path: path.read_bytes() for path in tmp_path.glob("*labelled*")}
    assert len(kept) == 2 and all(kept.values())
    named = f"{tmp_path}/labelled.shard-0-of-2.json: is there already, with labels of another k-means"
    with pytest.raises(ValueError, match=named):  # before any work
        label_manifest(corpus, output, other, WindowFeatures(fail_at_call=1), Shard(0, 2))
    with pytest.raises(RuntimeError, match="power cut"):
        label_manifest(corpus, output, other, WindowFeatures(fail_at_call=1), Shard(1, 2))
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_shards_leave_metrics_to_merge(corpus, capsys):
    """They were asked for and not written."""
    with pytest.raises(SystemExit):
        script("label")(f"make --shard 0/2 --kmeans k.npz --manifest {corpus} --output o --metrics_output m".split())
    assert "--metrics_output of shards are for merge" in capsys.readouterr().err


@pytest.mark.parametrize("count", [2, 5, 13])  # 13: more parts than the 12 lines
def test_shards_join_to_what_one_process_makes(corpus, maker, tmp_path, count):
    """Eight GPUs must give the manifest of one, computing each line once; a broken job is named before anything is
    lost."""
    label_manifest(corpus, tmp_path / "whole.json", maker, WindowFeatures())
    output, computed = tmp_path / "labelled.json", 0
    for index in reversed(range(count)):
        with pytest.raises(ValueError, match=f"shards .*{index}.* of {count} are not there whole"):
            merge_shards(corpus, output, maker, count)
        features = WindowFeatures()
        assert label_manifest(corpus, output, maker, features, Shard(index, count)) is True
        computed += features.utterances
    assert computed == 12 and not output.exists()
    finished = WindowFeatures(fail_at_call=1)
    assert label_manifest(corpus, output, maker, finished, Shard(0, count)) is False  # a job that is started again
    assert merge_shards(corpus, output, maker, count) is True
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(ValueError, match="0 shards: expected the number"):
        merge_shards(corpus, tmp_path / "none.json", maker, 0)  # not an empty manifest
    assert sorted(path.name for path in tmp_path.glob("*labelled*")) == ["labelled.json"]  # no shard is left
    assert label_manifest(corpus, output, maker, finished, Shard(0, count)) is False  # the whole is there
    assert merge_shards(corpus, output, maker, count) is False


def test_an_interrupted_shard_goes_on(corpus, maker, tmp_path):
    output = tmp_path / "labelled.json"
    with pytest.raises(RuntimeError, match="power cut"):
        label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=3), Shard(1, 2))
    label_manifest(corpus, output, maker, WindowFeatures(), Shard(0, 2))
    with pytest.raises(ValueError, match=r"shards \[1\] of 2 .* Run `label.py make --shard 1/2`"):
        merge_shards(corpus, output, maker, 2)
    features = WindowFeatures()
    label_manifest(corpus, output, maker, features, Shard(1, 2))
    assert 0 < features.utterances < 6
    merge_shards(corpus, output, maker, 2)
    label_manifest(corpus, tmp_path / "whole.json", maker, WindowFeatures())
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_shards_of_another_maker_are_not_joined(corpus, maker, other, tmp_path):
    """Labels of two k-means in one manifest would train a model on noise."""
    for index, labelled_by in enumerate((maker, other)):
        label_manifest(corpus, tmp_path / "labelled.json", labelled_by, WindowFeatures(), Shard(index, 2))
    with pytest.raises(ValueError, match=r"shards \[1\] of 2"):
        merge_shards(corpus, tmp_path / "labelled.json", maker, 2)


@pytest.mark.parametrize("text", ["8/8", "1", "a/2", "-1/2", "1/0"])
def test_shard_on_the_command_line(capsys, text):
    """Who counts parts from 1 must be told, not that it is an "invalid parse value"."""
    assert load_script("label").parse_shard("7/8") == Shard(7, 8)
    with pytest.raises(SystemExit):
        script("label")([*"make --kmeans km.npz --manifest a.json --output b.json".split(), f"--shard={text}"])
    assert f"argument --shard: {text!r}: expected part/number of parts, the parts counted from 0" in (
        capsys.readouterr().err
    )


def test_progress_of_another_maker_is_not_continued(corpus, maker, other, tmp_path):
    output = tmp_path / "labelled.json"
    with pytest.raises(RuntimeError):
        label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=3))
    label_manifest(corpus, output, other, WindowFeatures())
    assert check_labelled_manifest(output, other.id)["utterances"] == 12


def test_a_finished_output_is_recognised(corpus, maker, tmp_path):
    """Re-running a recipe costs nothing, unless the manifest changed."""
    output = tmp_path / "labelled.json"
    label_manifest(corpus, output, maker, WindowFeatures())
    assert label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=1)) is False
    entries = read_manifest(corpus)
    write_manifest(corpus, entries[:-1])
    assert label_manifest(corpus, output, maker, WindowFeatures()) is True
    assert len(read_manifest(output)) == 11
    write_manifest(corpus, entries)  # lines behind those that are labelled
    assert label_manifest(corpus, output, maker, WindowFeatures()) is True
    assert len(read_manifest(output)) == 12


def test_other_files_are_not_overwritten(corpus, maker, other, tmp_path):
    """A mistyped --output would cost a manifest, or labels that a model is being trained on."""
    labelled, dev, link = (tmp_path / name for name in ("labelled.json", "dev.json", "link.json"))
    label_manifest(corpus, labelled, maker, WindowFeatures())
    dev.write_bytes(corpus.read_bytes())
    link.symlink_to(corpus)
    contents = {"empty.json": "", "notes.json": "to do\n", "tags.json": '{"audio_filepath": "a", "labels": ["dog"]}\n'}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    for output, message in [
        *((tmp_path / name, f"{name}: is there already, with no labels. Give another") for name in contents),
        (labelled, f"with labels of another k-means \\({maker.id}, not {other.id}\\). Give another --output"),
        (dev, "dev.json: is there already, with no labels. Give another --output, or remove"),
        (corpus, "train.json: --manifest and --output are one file"),
        (link, "link.json: --manifest and --output are one file"),
        (tmp_path, "a folder. Name a file"),
    ]:
        before = output.is_file() and output.read_bytes()
        with pytest.raises(ValueError, match=message):
            label_manifest(corpus, output, other, WindowFeatures(fail_at_call=1), Shard(0, 2))
        with pytest.raises(ValueError, match=message):
            merge_shards(corpus, output, other, 2)
        assert before == (output.is_file() and output.read_bytes())


def bad_audio(tmp_path, kind):
    path = tmp_path / "bad.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    if kind == "short":
        soundfile.write(path, noise[:399], 16000)
    elif kind == "stereo":
        soundfile.write(path, np.stack([noise, noise], 1), 16000)
    elif kind == "nan":
        soundfile.write(path, np.where(noise > 0.2, np.nan, noise).astype(np.float32), 16000, subtype="FLOAT")
    elif kind == "garbage":
        path.write_bytes(b"RIFF nothing")
    elif kind == "truncated":
        soundfile.write(path, noise, 16000)
        path.write_bytes(path.read_bytes()[:-16000])
    elif kind == "empty":
        soundfile.write(path, noise[:0], 16000)
    elif kind == "silent":
        soundfile.write(path, np.zeros(48000), 16000)
    return str(path)


@pytest.fixture
def with_bad_lines(corpus, maker, tmp_path):
    """The corpus with three lines that cannot be labelled, one of them the first."""
    lines = read_manifest(corpus)
    for number, kind in ((0, "empty"), (5, "garbage"), (8, "silent")):
        bad = bad_audio(tmp_path, kind)
        os.rename(bad, tmp_path / f"{kind}.wav")
        lines[number] = {
            "audio_filepath": str(tmp_path / f"{kind}.wav"),
            "utt_id": kind,
            "text": lines[number]["text"],
        }
    write_manifest(corpus, lines)
    return corpus


def left_out_of(output):
    path = output.with_suffix(".left_out.json")
    return {entry["utt_id"]: entry["left_out"] for entry in read_manifest(path)} if path.is_file() else {}


def test_what_cannot_be_labelled_is_left_out_where_that_is_wanted(with_bad_lines, maker, tmp_path, caplog):
    """Of 500 hours a handful is always broken: each would end the labelling anew."""
    output = tmp_path / "labelled.json"
    caplog.set_level("INFO")
    assert label_manifest(with_bad_lines, output, maker, WindowFeatures(), skip_unusable=True) is True
    kept = [entry for entry in read_manifest(with_bad_lines) if "utt_id" not in entry]
    assert [entry["audio_filepath"] for entry in read_manifest(output)] == [entry["audio_filepath"] for entry in kept]
    assert check_labelled_manifest(output, maker.id)["utterances"] == 9
    reasons = left_out_of(output)
    assert list(reasons) == ["empty", "garbage", "silent"] and "all 149 labels" in reasons["silent"]
    assert f"{with_bad_lines}:6" in reasons["garbage"]
    assert f"left out: {with_bad_lines}:6" in caplog.text
    assert f"{output}: 9 utterances labelled" in caplog.text
    assert f"{output.with_suffix('.left_out.json')}: the 3 lines that were left out" in caplog.text
    for skips in (True, False):  # it is whole
        assert (
            label_manifest(with_bad_lines, output, maker, WindowFeatures(fail_at_call=1), skip_unusable=skips) is False
        )


def test_an_interrupted_run_goes_on_behind_what_it_left_out(with_bad_lines, maker, tmp_path):
    whole, output = tmp_path / "whole.json", tmp_path / "labelled.json"
    label_manifest(with_bad_lines, whole, maker, WindowFeatures(), skip_unusable=True)
    for call in (1, 2, 3):
        with pytest.raises(RuntimeError, match="power cut"):
            label_manifest(with_bad_lines, output, maker, WindowFeatures(fail_at_call=call), skip_unusable=True)
    features = WindowFeatures()
    label_manifest(with_bad_lines, output, maker, features, skip_unusable=True)
    assert features.utterances < 9 and output.read_text() == whole.read_text()
    assert left_out_of(output) == left_out_of(whole)


def test_a_line_left_out_before_and_after_an_interruption_is_there_once(corpus, maker, tmp_path):
    """Repaired and labelled, it would be trained on twice."""
    lines, output = read_manifest(corpus), tmp_path / "labelled.json"
    lines[6] = {"audio_filepath": bad_audio(tmp_path, "garbage")}  # second of its window, behind one not labelled yet
    write_manifest(corpus, lines)
    with pytest.raises(RuntimeError, match="power cut"):
        label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=2), skip_unusable=True)
    assert label_manifest(corpus, output, maker, WindowFeatures(), skip_unusable=True) is True
    assert len(read_manifest(output)) == 11 and len(read_manifest(output.with_suffix(".left_out.json"))) == 1


def test_shards_with_lines_left_out_are_whole(with_bad_lines, maker, tmp_path):
    whole, output = tmp_path / "whole.json", tmp_path / "labelled.json"
    label_manifest(with_bad_lines, whole, maker, WindowFeatures(), skip_unusable=True)
    for index in range(3):
        label_manifest(with_bad_lines, output, maker, WindowFeatures(), Shard(index, 3), skip_unusable=True)
    assert merge_shards(with_bad_lines, output, maker, 3) is True
    assert output.read_text() == whole.read_text() and left_out_of(output) == left_out_of(whole)
    assert merge_shards(with_bad_lines, output, maker, 3) is False
    assert sorted(path.name for path in tmp_path.glob("labelled*")) == ["labelled.json", "labelled.left_out.json"]


def test_repaired_lines_are_a_manifest_of_their_own(with_bad_lines, maker, tmp_path):
    output, rest = tmp_path / "labelled.json", tmp_path / "rest.json"
    label_manifest(with_bad_lines, output, maker, WindowFeatures(), skip_unusable=True)
    for name in ("empty", "garbage", "silent"):
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    with pytest.raises(ValueError, match="left_out.json: lists what was left out of --output .*labelled.json. Give"):
        label_manifest(output.with_suffix(".left_out.json"), output, maker, WindowFeatures())
    label_manifest(output.with_suffix(".left_out.json"), rest, maker, WindowFeatures())
    assert [entry["utt_id"] for entry in read_manifest(rest)] == ["empty", "garbage", "silent"]


def test_a_line_left_out_again_has_the_new_reason(with_bad_lines, maker, tmp_path):
    """Replaced by another broken file, it would be looked at for what was wrong with the first."""
    output, rest = tmp_path / "labelled.json", tmp_path / "rest.json"
    label_manifest(with_bad_lines, output, maker, WindowFeatures(), skip_unusable=True)
    soundfile.write(tmp_path / "silent.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    os.replace(tmp_path / "garbage.wav", tmp_path / "empty.wav")
    label_manifest(output.with_suffix(".left_out.json"), rest, maker, WindowFeatures(), skip_unusable=True)
    reasons = left_out_of(rest)
    assert list(reasons) == ["empty", "garbage"]
    assert "cannot be read" in reasons["empty"] and "no such audio file" in reasons["garbage"]


@pytest.mark.parametrize("count", [1, 2])
def test_what_another_process_has_just_finished_is_left_alone(with_bad_lines, maker, tmp_path, monkeypatch, count):
    """torchrun by two jobs, or `merge` twice: the second removed what the first had left out, by which its labels are
    known to be whole, and ended with a shard that was gone. All would have been labelled again."""
    output, lock = tmp_path / "labelled.json", labelling.locked_partial

    def finish():
        for index in range(count):
            label_manifest(with_bad_lines, output, maker, WindowFeatures(), Shard(index, count), skip_unusable=True)
        return count == 1 or merge_shards(with_bad_lines, output, maker, count)

    def finished_meanwhile(*arguments):
        monkeypatch.setattr(labelling, "locked_partial", lock)
        assert finish() is True
        return lock(*arguments)

    if count > 1:
        for index in range(count):
            label_manifest(with_bad_lines, output, maker, WindowFeatures(), Shard(index, count), skip_unusable=True)
    monkeypatch.setattr(labelling, "locked_partial", finished_meanwhile)
    if count > 1:
        assert merge_shards(with_bad_lines, output, maker, count) is False
    else:
        features = WindowFeatures(fail_at_call=1)
        assert label_manifest(with_bad_lines, output, maker, features, skip_unusable=True) is False
    assert len(left_out_of(output)) == 3 and len(read_manifest(output)) == 9
    names = {path.name for path in tmp_path.iterdir() if "labelled" in path.name}
    assert names == {"labelled.json", "labelled.left_out.json"}


def test_labels_of_another_kmeans_that_were_finished_first_stay(corpus, maker, other, tmp_path):
    """Both calls found no output; the one that ended last wrote over the labels of the other."""
    output = tmp_path / "labelled.json"

    class Slow(WindowFeatures):
        def __call__(self, waveforms):
            if self.calls == 0:
                label_manifest(corpus, output, other, WindowFeatures())
            return super().__call__(waveforms)

    with pytest.raises(ValueError, match=f"labels of another k-means .{other.id}, not {maker.id}.*Give another"):
        label_manifest(corpus, output, maker, Slow())
    assert {entry["labels"]["maker"] for entry in read_manifest(output)} == {other.id}
    output.unlink()
    assert label_manifest(corpus, output, maker, WindowFeatures(fail_at_call=1)) is True  # its own are kept


def test_two_kmeans_do_not_label_into_one_file(with_bad_lines, maker, tmp_path, held_elsewhere):
    """The second emptied the list of what the first had left out, wrote its own into it, and failed after hours."""
    output = tmp_path / "labelled.json"
    listed = output.with_suffix(".left_out.json")
    write_manifest(listed, read_manifest(with_bad_lines)[:1])  # of the first
    content = listed.read_bytes()
    first = held_elsewhere(tmp_path / ".labelled.json.lock")
    with pytest.raises(RuntimeError, match="labelled.json.lock: another process is labelling into this file. Wait"):
        label_manifest(with_bad_lines, output, maker, WindowFeatures(), skip_unusable=True)
    assert listed.read_bytes() == content and not output.exists()
    first.kill()
    first.wait()
    listed.unlink()
    label_manifest(with_bad_lines, output, maker, WindowFeatures(), skip_unusable=True)
    assert len(left_out_of(output)) == 3 and not list(tmp_path.glob(".labelled*"))


def test_shards_are_joined_by_one_process(corpus, maker, tmp_path, monkeypatch):
    output, write = tmp_path / "labelled.json", labelling.write_manifest
    for index in (0, 1):
        label_manifest(corpus, output, maker, WindowFeatures(), Shard(index, 2))

    def meet(*arguments):
        for call in (
            lambda: merge_shards(corpus, output, maker, 2),
            lambda: label_manifest(corpus, output, maker, WindowFeatures()),
        ):
            with pytest.raises(RuntimeError, match="another process is labelling"):
                call()
        write(*arguments)

    monkeypatch.setattr(labelling, "write_manifest", meet)
    assert merge_shards(corpus, output, maker, 2) is True
    assert sorted(path.name for path in tmp_path.glob("*labelled*")) == ["labelled.json"]


@pytest.mark.parametrize("count", [1, 2])
def test_audio_that_was_not_there_is_labelled_when_it_is(corpus, maker, tmp_path, count):
    """After a run on a machine without the disk of the audio, the same command would go on saying that none of the
    lines can be labelled, or leave an empty manifest; and an output that is made anew would lack the first lines."""

    def label(output):
        for index in range(count):
            label_manifest(corpus, output, maker, WindowFeatures(), Shard(index, count), skip_unusable=True)
        return merge_shards(corpus, output, maker, count) if count > 1 else True

    whole, output = tmp_path / "whole.json", tmp_path / "labelled.json"
    label_manifest(corpus, whole, maker, WindowFeatures())
    audio = [Path(entry["audio_filepath"]) for entry in read_manifest(corpus)]
    for missing in (audio, audio[:2]):
        for path in missing:
            path.rename(path.with_suffix(".away"))
        if missing == audio:
            with pytest.raises(ValueError, match="none of 12 lines can be labelled, see .*/labelled.left_out.json"):
                label(output)
            assert len(read_manifest(output.with_suffix(".left_out.json"))) == 12 and not output.exists()
        else:
            label(output)
            assert len(read_manifest(output)) == 10
            output.unlink()
        for path in missing:
            path.with_suffix(".away").rename(path)
        assert label(output)
        assert output.read_text() == whole.read_text()
        assert sorted(path.name for path in tmp_path.glob("*labelled*")) == ["labelled.json"]
        output.unlink()


def test_a_manifest_of_nothing_but_broken_audio_is_an_error(corpus, maker, tmp_path):
    lines = [{"audio_filepath": bad_audio(tmp_path, "garbage"), "utt_id": "x"}]
    write_manifest(corpus, lines)
    with pytest.raises(ValueError, match="none of 1 lines can be labelled, see .*labelled.left_out.json"):
        label_manifest(corpus, tmp_path / "labelled.json", maker, WindowFeatures(), skip_unusable=True)
    assert not (tmp_path / "labelled.json").exists()


def test_frames_are_sampled_without_broken_audio(with_bad_lines, corpus, caplog):
    good = [entry for entry in read_manifest(with_bad_lines) if entry.get("utt_id") not in ("empty", "garbage")]
    expected = np.concatenate(WindowFeatures()([load_audio(entry) for entry in good]))
    with pytest.raises(ValueError, match=f"{with_bad_lines}:1: .*no samples"):  # not unless it is wanted
        sample_corpus_frames([with_bad_lines], WindowFeatures(), 10**6, seed=0)
    found = sample_corpus_frames([with_bad_lines], WindowFeatures(), 10**6, seed=0, skip_unusable=True)
    np.testing.assert_array_equal(found, expected)
    assert "left out: " in caplog.text and "garbage.wav" in caplog.text


@pytest.mark.parametrize(
    "kind, message",
    [
        ("short", "399 samples, fewer than the 400"),
        ("stereo", "2 channels"),
        ("nan", "NaN"),
        ("garbage", "cannot be read"),
        ("empty", "no samples"),
        ("missing", "no such audio file"),
        ("silent", "all 149 labels"),
        ("truncated", "bad.wav: 0.5 s of audio, the manifest says 1. Replace the file"),
    ],
)
def test_bad_audio_is_named_and_work_before_it_is_kept(corpus, maker, tmp_path, kind, message):
    good = read_manifest(corpus)
    bad = {**good[8], "audio_filepath": bad_audio(tmp_path, kind), "duration": 1.0}
    if kind != "truncated":
        del bad["duration"]
    write_manifest(corpus, good[:8] + [bad] + good[9:])
    output = tmp_path / "labelled.json"
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        label_manifest(corpus, output, maker, WindowFeatures())
    assert f"{corpus}:9" in str(error.value)
    assert not output.exists()
    write_manifest(corpus, good[:8] + good[9:])  # the user removes the line
    features = WindowFeatures()
    label_manifest(corpus, output, maker, features)
    assert features.utterances < 11
    assert len(read_manifest(output)) == 11


def test_a_line_that_is_not_json_is_found_before_any_work(corpus, maker, tmp_path):
    corpus.write_text(corpus.read_text() + "{broken\n")
    with pytest.raises(ValueError, match=f"{corpus}:13: not JSON"):
        label_manifest(corpus, tmp_path / "labelled.json", maker, WindowFeatures(fail_at_call=1))


def test_features_that_are_not_finite_are_refused(corpus, maker, tmp_path):
    """argmin of NaN is a label: an encoder that diverged would label everything 0."""

    class Broken(WindowFeatures):
        def __call__(self, waveforms):
            features = super().__call__(waveforms)
            features[0][-1, -1] = np.nan  # one frame is enough
            return features

    with pytest.raises(ValueError, match=f"{corpus}:1: .* of u0 are not finite"):
        label_manifest(corpus, tmp_path / "labelled.json", maker, Broken())


class TinyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(400, 4)

    def extract_features(self, audio, length, layer):
        return self.project(audio.unfold(1, 400, 320)), frame_count(length)


def test_another_encoder_is_refused(corpus, tmp_path):
    """Pain point of the ancestors: a k-means of one iteration used with the encoder of another."""
    features, other = HiddenFeatures(TinyEncoder(), layer=6), HiddenFeatures(TinyEncoder(), layer=6)
    frames = sample_corpus_frames([corpus], features, 10**6, seed=0)
    maker = fit_label_maker(frames, [12, 4], features.description, backend="sklearn")
    with pytest.raises(ValueError, match="Use the encoder and the layer that its k-means was fitted with"):
        label_manifest(corpus, tmp_path / "labelled.json", maker, other)
    label_manifest(corpus, tmp_path / "labelled.json", maker, features)


@pytest.mark.parametrize("assignment", ["nested", "nearest"])
def test_metrics_of_a_manifest(corpus, tmp_path, assignment):
    """Against all frames at once, with units that are the coarse labels themselves: those must be pure."""
    frames = sample_corpus_frames([corpus], WindowFeatures(), 10**6, seed=0)
    maker = fit_label_maker(frames, [12, 4], WindowFeatures.description, assignment, "sklearn")
    label_manifest(corpus, tmp_path / "labelled.json", maker, WindowFeatures())
    intervals = {}
    coarse, fine = [], []
    for where, entry in list(iter_manifest(tmp_path / "labelled.json"))[4:]:
        sets = FrameLabels.from_manifest(entry["labels"], where).sets
        sets = maker.expand(sets[12]) if assignment == "nested" else sets
        start = (320 * np.arange(len(sets[4])) + 200) / 16000
        intervals[Path(entry["audio_filepath"]).stem] = start, start + 0.01, sets[4].astype(int)
        coarse.append(sets[4])
        fine.append(sets[12])
    report = measure_manifest(tmp_path / "labelled.json", maker, Alignments("phone", list("abcd"), intervals))
    assert (report["utterances"], report["aligned_utterances"], report["unit"]) == (12, 8, "phone")
    assert report["sets"][4]["pnmi"] == pytest.approx(1) and report["sets"][4]["unit_purity"] == 1
    coarse, fine = np.concatenate(coarse), np.concatenate(fine)
    best = sum(np.bincount(coarse[fine == cluster]).max() for cluster in np.unique(fine))
    assert report["sets"][12]["unit_purity"] == pytest.approx(best / len(fine))
    with pytest.raises(ValueError, match="none of 12 utterances is aligned"):
        measure_manifest(tmp_path / "labelled.json", maker, Alignments("phone", ["a"], {"x": intervals["u7"]}))


def test_an_aligned_utterance_that_occurs_twice_is_named(corpus, maker, tmp_path):
    """Both were measured against the alignment of one of them; and before the labelling, not after it."""
    entries = read_manifest(corpus)
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / "u5.wav"
    again.write_bytes(Path(entries[5]["audio_filepath"]).read_bytes())
    write_manifest(corpus, [*entries, {**entries[5], "audio_filepath": str(again)}])
    times = np.array([0.0]), np.array([1.0]), np.array([0])
    with pytest.raises(ValueError, match=f'{corpus}:13: utterance u5 is at {corpus}:6 .* give them "utt_id"'):
        check_aligned([corpus], Alignments("phone", ["a"], {"u5": times}))
    check_aligned([corpus], Alignments("phone", ["a"], {"u4": times}))  # what is not aligned is not measured
    label_manifest(corpus, tmp_path / "labelled.json", maker, WindowFeatures())
    with pytest.raises(ValueError, match="labelled.json:13: utterance u5 is at .*labelled.json:6 already"):
        measure_manifest(tmp_path / "labelled.json", maker, Alignments("phone", ["a"], {"u5": times}))


# --- paths and files -------------------------------------------------------------------------------------------------


def test_a_manifest_in_a_linked_folder_keeps_its_audio(corpus, maker, tmp_path):
    """``link/../audio`` was taken as text: the labelled manifest named audio beside the link, which is not there."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "up.json").write_text('{"audio_filepath": "../audio/u0.wav", "duration": 0.5}\n')
    link, output = tmp_path / "elsewhere" / "link", tmp_path / "labelled.json"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "manifests")
    assert label_manifest(link / "up.json", output, maker, WindowFeatures()) is True
    assert json.loads(output.read_text())["audio_filepath"] == "audio/u0.wav"
    assert label_manifest(link / "up.json", output, maker, WindowFeatures(fail_at_call=1)) is False
    label_manifest(link / "up.json", link / "labelled.json", maker, WindowFeatures())
    assert load_audio(read_manifest(link / "labelled.json")[0]).shape == (8000,)


# --- scripts ---------------------------------------------------------------------------------------------------------


def script(name):
    return load_script(name).main


def test_scripts_fit_make_and_check(corpus, tmp_path, capsys):
    km, output, metrics = (str(tmp_path / name) for name in ("km.npz", "labelled.json", "metrics.json"))
    fit = f"--manifest {corpus} --features mfcc --clusters 20 10 5 --backend sklearn --output {km}".split()
    script("fit_kmeans")(fit)
    maker = LabelMaker.load(km)
    assert maker.sets == [20, 10, 5] and maker.features == FeatureDescription("mfcc", 39)
    script("label")(f"make --kmeans {km} --manifest {corpus} --output {output} --metrics_output {metrics}".split())
    report = json.loads(Path(metrics).read_text())
    assert report["maker"] == maker.id and list(report["sets"]) == ["20", "10", "5"]
    capsys.readouterr()
    script("label")(f"check --manifest {output} --kmeans {km}".split())
    with pytest.raises(ValueError, match="km.npz is of 39 MFCC features, which need no --encoder"):
        script("label")(f"make --kmeans {km} --encoder a.nemo --manifest {corpus} --output other.json".split())
    assert json.loads(capsys.readouterr().out)["utterances"] == 12
    with pytest.raises(SystemExit):
        script("fit_kmeans")(fit)  # never over a file that labels may depend on
    assert "labels may depend on it" in capsys.readouterr().err
    assert LabelMaker.load(km).id == maker.id


def test_a_kmeans_is_fitted_by_one_process(corpus, tmp_path, monkeypatch, held_elsewhere):
    """Two had found no file; the second wrote over that of the first, by which hours of labels had been made."""
    km = tmp_path / "km.npz"
    fit = f"--manifest {corpus} --features mfcc --clusters 5 --backend sklearn --output {km}".split()
    first = held_elsewhere(tmp_path / ".km.npz.lock")
    with pytest.raises(RuntimeError, match="km.npz.lock: another process is fitting this k-means. Wait for it, or"):
        script("fit_kmeans")(fit)
    first.kill()
    first.wait()
    module = load_script("fit_kmeans")
    parsed = module.parse_args(fit)
    monkeypatch.setattr(module, "parse_args", lambda _: parsed)
    km.write_text("finished meanwhile")
    with pytest.raises(FileExistsError, match="km.npz exists, and labels may depend on it"):
        module.main(fit)
    assert km.read_text() == "finished meanwhile"
    km.unlink()
    module.main(fit)
    assert [path.name for path in tmp_path.glob("*km*")] == ["km.npz"]


def test_script_makes_and_joins_shards(corpus, tmp_path):
    """As jobs of their own, and as ranks of torchrun."""
    km, whole, jobs, ranks = (tmp_path / name for name in ("km.npz", "whole.json", "jobs.json", "ranks.json"))
    script("fit_kmeans")(f"--manifest {corpus} --features mfcc --clusters 9 --backend sklearn --output {km}".split())
    make, common = script("label"), f"--kmeans {km} --manifest {corpus} --output"
    make(f"make {common} {whole}".split())
    for index in (0, 1):
        make(f"make --shard {index}/2 {common} {jobs}".split())
    make(f"merge --shards 2 {common} {jobs}".split())
    run_on_ranks(2, lambda: make(f"make {common} {ranks}".split()))
    assert jobs.read_bytes() == ranks.read_bytes() == whole.read_bytes()


def test_script_warns_of_a_kmeans_that_does_not_suit_the_audio(corpus, tmp_path, caplog):
    """Such labels cost a pre-training that learns nothing; without the warning only its curves tell."""
    km, entries = tmp_path / "km.npz", read_manifest(corpus)
    script("fit_kmeans")(f"--manifest {corpus} --features mfcc --clusters 20 --backend sklearn --output {km}".split())
    for name, cut_off in (("own", 8000), ("band", 500)):
        for entry in entries:
            samples = load_audio(entry)
            spectrum = np.fft.rfft(samples)
            spectrum[np.fft.rfftfreq(len(samples), 1 / 16000) > cut_off] = 0
            entry = {"audio_filepath": f"{name}_{Path(entry['audio_filepath']).stem}.wav"}
            soundfile.write(tmp_path / entry["audio_filepath"], np.fft.irfft(spectrum, len(samples)), 16000)
            with open(tmp_path / f"{name}.json", "a") as stream:
                stream.write(json.dumps(entry) + "\n")
        output = tmp_path / f"{name}_labelled.json"
        script("label")(f"make --kmeans {km} --manifest {tmp_path}/{name}.json --output {output}".split())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith(f"{tmp_path}/band_labelled.json: labels are spread as over")


def test_script_measures_labels_by_textgrids(corpus, tmp_path):
    """As aligners write them; of words and phones in one, by the phones."""
    km, metrics = tmp_path / "km.npz", tmp_path / "metrics.json"
    (tmp_path / "grids" / "speaker").mkdir(parents=True)
    tiers = [f'"IntervalTier" "{name}" 0 0.5 1 0 0.5 "a"' for name in ("words", "phones")]
    grid = f'"ooTextFile short" "TextGrid" 0 0.5 <exists> 2 {" ".join(tiers)}'
    (tmp_path / "grids" / "speaker" / "u5.TextGrid").write_text(grid)
    script("fit_kmeans")(f"--manifest {corpus} --features mfcc --clusters 9 --backend sklearn --output {km}".split())
    make = f"make --kmeans {km} --manifest {corpus} --output {tmp_path}/labelled.json --alignments {tmp_path}/grids"
    script("label")([*make.split(), "--metrics_output", str(metrics)])
    report = json.loads(metrics.read_text())
    assert (report["unit"], report["aligned_utterances"], report["utterances"]) == ("phone", 1, 12)
    assert report["sets"]["9"]["aligned_frames"] == 25 and report["sets"]["9"]["unit_purity"] == 1


def test_scripts_use_the_layer_of_the_kmeans(corpus, tmp_path, monkeypatch):
    """`label.py` takes no layer: a layer other than that of the k-means could only give wrong labels."""
    encoders = {"a.nemo": TinyEncoder(), "b.nemo": TinyEncoder()}
    by_name = types.SimpleNamespace(load_hidden_features=lambda name, *args: HiddenFeatures(encoders[name], *args))
    monkeypatch.setitem(sys.modules, "nemo_mshubert.models.hidden_features", by_name)
    km, output = tmp_path / "km.npz", tmp_path / "labelled.json"
    fit = f"--manifest {corpus} --features hidden --encoder a.nemo --layer 4 --clusters 9 3 --output {km} --device cpu"
    script("fit_kmeans")(fit.split())
    assert LabelMaker.load(km).features == HiddenFeatures(encoders["a.nemo"], 4).description
    make = f"make --kmeans {km} --manifest {corpus} --output {output} --device cpu --encoder"
    with pytest.raises(ValueError, match="Use the encoder and the layer"):
        script("label")([*make.split(), "b.nemo"])
    script("label")([*make.split(), "a.nemo"])
    assert check_labelled_manifest(output, LabelMaker.load(km).id)["utterances"] == 12


@pytest.mark.parametrize("line", [{}, {"duration": None}])
def test_lines_get_the_duration_that_training_needs(maker, tmp_path, line):
    """Hours of labelling ended in a manifest that training refuses; and what is labelled is known again."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 4 * 8000), 8000)
    manifest, output = tmp_path / "train.json", tmp_path / "labelled.json"
    write_manifest(manifest, [{"audio_filepath": str(tmp_path / "a.wav"), **line}])
    assert label_manifest(manifest, output, maker, WindowFeatures()) is True
    assert [entry["duration"] for entry in read_manifest(output)] == [4.0]
    assert label_manifest(manifest, output, maker, WindowFeatures(fail_at_call=1)) is False


def test_scripts_name_what_is_missing(corpus, tmp_path, capsys):
    for arguments, message in [
        ("--features hidden", "needs --encoder"),
        ("--features mfcc --clusters 5 10", "strictly descending"),
        ("--features mfcc --layer 0", "--encoder and --layer are for --features hidden"),
        ("--features mfcc --encoder a.nemo", "--encoder and --layer are for --features hidden"),
    ]:
        with pytest.raises(SystemExit):
            script("fit_kmeans")(f"--manifest {corpus} --output {tmp_path / 'km.npz'} {arguments}".split())
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script("label")(f"make --kmeans km.npz --layer 9 --manifest {corpus} --output out.json".split())
    assert "--layer: km.npz itself says of which layer it is" in capsys.readouterr().err
    for command in ("make", "merge --shards 2"):  # not when all is labelled
        options = f"{command} --kmeans km.npz --manifest {corpus} --output out.json --alignments gone.jsonl"
        with pytest.raises(SystemExit):
            script("label")(options.split())
        assert "gone.jsonl: no such alignments" in capsys.readouterr().err
    (tmp_path / "other.jsonl").write_text('{"utt_id": "x", "phones": [{"phone": "a", "start": 0, "end": 1}]}\n')
    options = f"make --kmeans gone.npz --manifest {corpus} --output out.json --alignments {tmp_path}/other.jsonl"
    with pytest.raises(ValueError, match="none of 12 utterances is aligned. .* of the alignments like 'x'"):
        script("label")(options.split())
    with pytest.raises(FileExistsError, match="train.json"):  # nor a folder that cannot be, when all is fitted
        script("fit_kmeans")(f"--manifest gone.json --features mfcc --output {corpus}/km.npz".split())
    frames = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    hidden = fit_label_maker(frames, [4], FeatureDescription("hidden", 4, 6, "f" * 16), backend="sklearn")
    hidden.save(tmp_path / "hidden.npz")
    with pytest.raises(ValueError, match="name its .nemo with --encoder"):
        script("label")(f"make --kmeans {tmp_path / 'hidden.npz'} --manifest {corpus} --output out.json".split())


def test_merge_and_check_say_which_kmeans_to_use(corpus, tmp_path):
    """The published file that `make` takes does not say what it was fitted on; the one that `make` left does."""
    joblib.dump(np.zeros((3, 2)), tmp_path / "km.bin")
    common = f"--kmeans {tmp_path / 'km.bin'} --manifest {corpus}"
    for arguments in (f"merge --shards 2 {common} --output {tmp_path / 'labelled.json'}", f"check {common}"):
        with pytest.raises(ValueError, match="km.bin: a k-means of joblib.*<output>.kmeans.npz"):
            script("label")(arguments.split())


def test_check_compares_with_the_kmeans(corpus, maker, tmp_path, capsys):
    """Labels of an earlier k-means would be found only by the training."""
    output = tmp_path / "labelled.json"
    label_manifest(corpus, output, maker, WindowFeatures())
    maker.save(tmp_path / "km.npz")
    script("label")(f"check --manifest {output} --kmeans {tmp_path / 'km.npz'}".split())
    assert json.loads(capsys.readouterr().out)["utterances"] == 12
    frames = np.random.default_rng(3).normal(size=(200, 3)).astype(np.float32)
    fit_label_maker(frames, [12, 4], WindowFeatures.description, seed=9).save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=f"labels of label maker {maker.id}"):
        script("label")(f"check --manifest {output} --kmeans {tmp_path / 'other.npz'}".split())


def test_the_seed_chooses_the_frames_of_the_sample(corpus):
    """Else starts of k-means over seeds would all be of the same frames."""
    samples = [sample_corpus_frames([corpus], WindowFeatures(), 50, seed=seed) for seed in (0, 1, 0)]
    assert np.array_equal(samples[0], samples[2]) and not np.array_equal(samples[0], samples[1])
