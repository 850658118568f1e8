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

"""Bad input as a user meets it at every step: a clear error with the place and the remedy, or a counted skip.

What one module can show is tested beside it: labels in tests/data/test_labels.py and test_pretraining_dataset.py,
label sets and blocks in tests/models/test_mshubert_model.py, other architectures in tests/models/test_ctc.py,
evaluation in tests/decoding/test_acoustic.py and test_evaluation.py. Here: the steps between, and that nothing is
half-written.
"""

import json

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from nemo_mshubert.callbacks.nonfinite_guard import NonfiniteGuard
from nemo_mshubert.clustering.features import MfccFeatures
from nemo_mshubert.clustering.frame_sample import sample_corpus_frames
from nemo_mshubert.clustering.labelling import label_manifest
from nemo_mshubert.data.labels import check_labelled_manifest
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.data.pretraining_dataset import PretrainingDataset
from nemo_mshubert.data.resumable_loader import training_loader
from nemo_mshubert.data.tarred import make_tarred
from nemo_mshubert.data.unreadable import UnreadableAudioError
from nemo_mshubert.models.finetuning import restore_for_finetuning
from nemo_mshubert.modules.frames import frame_count
from tests.conftest import quiet_trainer

pytestmark = pytest.mark.integration
BAD = 2  # the utterance that is not like the others


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def write_audio(path, kind):
    """A second of noise, or what users have found in its place."""
    if kind == "nan":
        soundfile.write(path, np.where(np.arange(16000) < 8000, noise(16000), np.nan), 16000, subtype="FLOAT")
    elif kind == "overflow":  # numbers that are finite, and whose sums are not
        soundfile.write(path, 3e38 * np.sign(noise(16000)), 16000, subtype="FLOAT")
    elif kind == "stereo":
        soundfile.write(path, np.stack([noise(16000), noise(16000, 1)], axis=1), 16000)
    elif kind in ("0", "1", "399", "400"):
        soundfile.write(path, noise(int(kind)), 16000)
    elif kind == "garbage":
        path.write_bytes(b"not audio" * 100)
    elif kind != "missing":
        soundfile.write(path, noise(16000), 16000)


@pytest.fixture
def corpus(tmp_path):
    """``corpus("nan")``: a manifest of six utterances of which one is so; and its audio."""

    def make(kind="good"):
        entries = []
        for number in range(6):
            path = tmp_path / f"u{number}.wav"
            write_audio(path, kind if number == BAD else "good")
            entries.append({"audio_filepath": str(path), "duration": 1.0, "text": "a b"})
        write_manifest(tmp_path / "train.json", entries)
        if kind == "not json":
            lines = (tmp_path / "train.json").read_text().splitlines()
            lines[BAD] = lines[BAD][:-10]
            (tmp_path / "train.json").write_text("\n".join(lines) + "\n")
        return tmp_path / "train.json"

    return make


# --- Fitting and labelling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, message",
    [
        ("0", "the file holds no samples. Remove the line"),
        ("1", "1 samples, fewer than the 400 of one frame. Remove the line"),
        ("399", "399 samples, fewer than the 400 of one frame"),
        ("400", "0.025 s of audio, the manifest says 1. Replace the file, or correct the line or remove it"),
        ("nan", "NaN or infinite samples. Replace the file"),
        ("stereo", "2 channels, expected 1. Mix down"),
        ("garbage", "cannot be read as audio"),
        ("missing", "no such audio file. Correct the manifest"),
        ("not json", "not JSON"),
    ],
)
def test_kmeans_and_labels_name_the_line(corpus, labelled, tmp_path, kind, message):
    """fit_kmeans.py and label.py: the one bad line of a million, with its number and what to do; no output is left."""
    manifest = corpus(kind)
    if kind in ("1", "399"):  # as short as their line says
        entries = read_manifest(manifest)
        entries[BAD]["duration"] = int(kind) / 16000
        write_manifest(manifest, entries)
    features = MfccFeatures()
    for attempt in (
        lambda: sample_corpus_frames([manifest], features, 1000, seed=0),
        lambda: label_manifest(manifest, tmp_path / "labelled.json", labelled.maker, features),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            attempt()
        assert f"{manifest}:{BAD + 1}" in str(error.value)
    assert not (tmp_path / "labelled.json").exists()


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("tarred", [False, True])
def test_other_sample_rates_pass_the_whole_chain(labelled, tmp_path, rate, tarred):
    """Labelled, checked, packed and loaded with the frames of the audio at 16 kHz, on which all steps must agree."""
    entries = []
    for number in range(4):
        samples = rate + 37 * number
        path = tmp_path / f"u{number}.wav"
        soundfile.write(path, noise(samples, seed=number), rate)
        entries.append({"audio_filepath": str(path), "duration": samples / rate, "text": ""})
    write_manifest(tmp_path / "train.json", entries)
    label_manifest(tmp_path / "train.json", tmp_path / "labelled.json", labelled.maker, MfccFeatures())
    summary = check_labelled_manifest(tmp_path / "labelled.json", labelled.maker.id)
    counts = [frame_count(round((rate + 37 * number) * 16000 / rate)) for number in range(4)]
    assert abs(summary["frames"] - sum(counts)) <= 4  # a sample more or less of the resampler may make a frame

    paths = {"manifest_filepath": str(tmp_path / "labelled.json")}
    if tarred:
        make_tarred(tmp_path / "labelled.json", tmp_path / "tars", 2)
        paths = {
            "manifest_filepath": str(tmp_path / "tars/sharded_manifests/manifest__OP_0..1_CL_.json"),
            "tarred_audio_filepaths": str(tmp_path / "tars/audio__OP_0..1_CL_.tar"),
        }
    config = {**paths, "sample_rate": 16000, "seed": 0, "batch_size": 2, "shuffle": True, "num_workers": 0}
    dataset = PretrainingDataset(labelled.maker.id, labelled.maker.stored_sets, crop="pad")
    batches = iter(training_loader(OmegaConf.create(config), dataset, 0, 1))
    for _ in range(4):
        batch = next(batches)
        labels_BT = batch["labels"][labelled.maker.sets[0]]
        assert len(batch["utterances"]) == 2
        assert (labels_BT >= 0).sum(dim=1).tolist() == [frame_count(length) for length in batch["length"].tolist()]
        assert all(abs(length - 16000) < 400 for length in batch["length"].tolist())
    assert dataset.unreadable.count == 0


# --- Packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, message",
    [
        ("0", "the file holds no samples. Remove the line|cannot be read as audio"),
        ("399", "0.0249375 s of audio, the manifest says 1. Replace the file, or correct the line or remove it"),
        ("garbage", "cannot be read as audio"),
        ("missing", "no such audio file"),
        ("not json", r"train.json:3: not JSON"),
    ],
)
def test_what_readers_of_tars_would_pass_over_is_not_packed(corpus, tmp_path, kind, message):
    """NeMo's readers skip such members with a warning, or none: the data would be less than the manifest says."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        make_tarred(corpus(kind), tmp_path / "tars", 1)
    assert kind == "not json" or f"u{BAD}.wav" in str(error.value)
    assert not list((tmp_path / "tars").rglob("*.tar")) and not list((tmp_path / "tars").rglob("*.tmp"))
    make_tarred(corpus(), tmp_path / ("tars" if kind == "missing" else "repaired"), 1)


@pytest.mark.parametrize("kind", ["nan", "stereo"])
def test_bad_samples_in_a_tar_are_skipped_and_counted(counting_corpus, tmp_path, kind):
    """Found only when decoded: pre-training goes on, with the name and the number in the log, up to its limit."""
    manifest = counting_corpus([16000] * 4)
    write_audio(tmp_path / "audio" / "u2.wav", kind)
    make_tarred(manifest, tmp_path / "tars", 2)
    config = {
        "manifest_filepath": str(tmp_path / "tars/sharded_manifests/manifest__OP_0..1_CL_.json"),
        "tarred_audio_filepaths": str(tmp_path / "tars/audio__OP_0..1_CL_.tar"),
        **dict(sample_rate=16000, seed=0, batch_size=4, shuffle=True, num_workers=0),
    }
    dataset = PretrainingDataset("maker-one", [50], crop="pad")
    batches = iter(training_loader(OmegaConf.create(config), dataset, 0, 1))
    names = [name for _ in range(4) for name in next(batches)["utterances"]]
    assert len(set(names)) == 3 and not any("u2" in name for name in names)
    assert dataset.unreadable.count == 16 - len(names) >= 3


# --- Fine-tuning -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fine_tune(letters_path, synthetic_corpus):
    """``fine_tune(manifest, ...)``: four updates with the loader's options of conf/finetune; model and guard."""

    def train(manifest, max_nonfinite_steps=20, validation=synthetic_corpus.dev, **train_ds):
        data = dict(use_lhotse=True, sample_rate=16000, batch_size=None, num_workers=0, pin_memory=False)
        buckets = dict(use_bucketing=True, num_buckets=2, num_cuts_for_bins_estimate=10, bucket_buffer_size=10)
        train_ds = {
            **data,
            **buckets,
            **dict(manifest_filepath=str(manifest), batch_duration=3, shuffle=True, seed=0, shard_seed="randomized"),
            **dict(shuffle_buffer_size=10, min_duration=0.1, max_duration=30.0),
            **train_ds,
        }
        validation_ds = {**data, "manifest_filepath": str(validation), "batch_size": 4, "shuffle": False}
        config = {"encoder": {"dropout": 0.1}, "train_ds": train_ds, "validation_ds": validation_ds}
        guard = NonfiniteGuard(max_nonfinite_steps)
        trainer = quiet_trainer(
            max_steps=4,
            val_check_interval=4,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=[guard],
        )
        optim = {"name": "adam", "lr": 1e-3}
        model = restore_for_finetuning(str(letters_path), OmegaConf.create({**config, "optim": optim}), trainer)
        trainer.fit(model)
        return model, guard.guard

    return train


@pytest.mark.timeout(60)
def test_finetuning_on_unreadable_audio_ends_with_its_name(corpus, fine_tune):
    """NeMo's background thread dies of it and leaves the training waiting for ever: a weekend of 8 GPUs."""
    with pytest.raises(Exception, match=f"u{BAD}.wav"):
        fine_tune(corpus("garbage"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_finetuning_counts_what_cannot_be_decoded(corpus, fine_tune, synthetic_corpus, num_workers):
    """NeMo passes over it at every pass; half of a corpus that a copy broke would be gone without a word at the
    end."""
    manifest = corpus("garbage")
    write_manifest(manifest, [{**entry, "sampling_rate": 16000} for entry in read_manifest(manifest)])
    fine_tune(manifest, num_workers=num_workers)  # a few are skipped
    with pytest.raises(UnreadableAudioError, match=f"(?s)1 utterances could not be used.*u{BAD}.*Repair the data"):
        fine_tune(manifest, num_workers=num_workers, max_unreadable=0)
    with pytest.raises(UnreadableAudioError, match=f"u{BAD}"):  # of what is validated none may be left out
        fine_tune(synthetic_corpus.train, validation=manifest)


@pytest.mark.parametrize("tarred", [False, True])
def test_finetuning_on_audio_that_is_not_there_is_refused(corpus, fine_tune, tmp_path, tarred):
    """NeMo passes over it where the line tells the sampling rate, as ours do; where that is all of a batch, it ends in
    "max() arg is an empty sequence". So it was with shards whose tars had been forgotten.
    """
    manifest = corpus("good" if tarred else "missing")
    if tarred:
        make_tarred(manifest, tmp_path / "tars", 2)
        manifest = tmp_path / "tars" / "sharded_manifests" / "manifest_1.json"
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    for entry in entries:
        entry.pop("shard_id", None)  # other tools than ours may not write it
        entry["sampling_rate"] = 16000
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    line = f"{manifest.name}:1: .*u[0-9].wav" if tarred else f"train.json:{BAD + 1}: .*u{BAD}.wav"
    with pytest.raises(FileNotFoundError, match=f"{line}: no such audio file. .*give them too .train_tars"):
        fine_tune(manifest)


def test_finetuning_on_bad_manifests_is_refused(corpus, fine_tune, tmp_path):
    """Before the first update, with the file, the line and the remedy."""
    with pytest.raises(FileNotFoundError, match="gone.json: no such manifest"):
        fine_tune(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=f"train.json:{BAD + 1}: not JSON.*remove or repair"):
        fine_tune(corpus("not json"))
    manifest = corpus()
    with pytest.raises(ValueError, match="no utterance of 20.0 to 30.0 s. Change min_duration.*if it is empty"):
        fine_tune(manifest, min_duration=20.0)
    with pytest.raises(ValueError, match="6 utterances are too few for num_buckets 7.*use_bucketing=false"):
        fine_tune(manifest, num_buckets=7)
    entries = read_manifest(manifest)
    del entries[BAD]["text"]
    write_manifest(manifest, entries)
    with pytest.raises(ValueError, match=f'train.json:{BAD + 1}: no "text". Add the transcript'):
        fine_tune(manifest)
    write_manifest(manifest, [*entries[:BAD], {**entries[BAD], "text": "A b, 3"}, *entries[BAD + 1 :]])
    with pytest.raises(ValueError, match=f"train.json:{BAD + 1}: .*the text has ',3A'.*ssl_to_ctc.py --letters"):
        fine_tune(manifest)


def test_segments_that_NeMo_would_take_from_elsewhere_are_refused(corpus, fine_tune):
    """With sampling_rate it takes the duration of the segment for that of the file: other audio, or none for ever."""
    manifest = corpus()
    entries = read_manifest(manifest)
    entries[BAD].update(offset=0.4, duration=0.5, sampling_rate=16000)
    write_manifest(manifest, entries)
    with pytest.raises(ValueError, match=f"train.json:{BAD + 1}: offset beside sampling_rate.*Remove sampling_rate"):
        fine_tune(manifest)


def test_finetuning_on_a_truncated_tar_is_refused(corpus, fine_tune, tmp_path):
    """Stock readers warn, and train on what is left."""
    make_tarred(corpus(), tmp_path / "tars", 2)
    sharded = {
        "manifest_filepath": str(tmp_path / "tars/sharded_manifests/manifest__OP_0..1_CL_.json"),
        "tarred_audio_filepaths": str(tmp_path / "tars/audio__OP_0..1_CL_.tar"),
        "use_bucketing": False,
    }
    fine_tune(None, **sharded)
    tar = tmp_path / "tars" / "audio_1.tar"
    tar.write_bytes(tar.read_bytes()[:-20000])
    with pytest.raises(ValueError, match="audio_1.tar: truncated.*make_tarred.py again"):
        fine_tune(None, **sharded)
    tar.unlink()
    with pytest.raises(FileNotFoundError, match="audio_1.tar: no such shard"):
        fine_tune(None, **sharded)


@pytest.mark.parametrize("kind", ["0", "1", "399", "stereo"])
def test_finetuning_survives_short_and_stereo_audio(corpus, fine_tune, kind):
    """Utterances without a frame have no loss (zero_infinity); NeMo mixes channels down. Weights stay finite."""
    model, guard = fine_tune(corpus(kind))
    assert all(parameter.isfinite().all() for parameter in model.parameters()) and guard.num_skipped == 0


def test_finetuning_skips_nan_by_name(corpus, fine_tune, synthetic_corpus):
    """Its update was skipped instead, "batch 7"; in the validation set, the weights of the first validation became the
    final ones, since no loss is less than NaN."""
    manifest = corpus("nan")
    model, guard = fine_tune(manifest)
    assert guard.num_skipped == 0 and all(parameter.isfinite().all() for parameter in model.parameters())
    for options in (dict(max_unreadable=0), dict(validation=manifest)):
        with pytest.raises(UnreadableAudioError, match=f"u{BAD}.* NaN or infinite samples"):
            fine_tune(synthetic_corpus.train if "validation" in options else manifest, **options)


def test_an_overflow_skips_its_updates_and_no_more(corpus, fine_tune, letters_path):
    """Without the guard, one such file makes every weight NaN, and the WER of the run 100 %."""
    model, guard = fine_tune(corpus("overflow"))
    assert 1 <= guard.num_skipped < 4
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    untrained, _ = restore_state(letters_path)
    assert not torch.equal(model.decoder.decoder_layers[0].weight, untrained["decoder.decoder_layers.0.weight"])


def test_overflows_everywhere_end_the_run(corpus, fine_tune, tmp_path):
    """A run that skips all of its updates must not pretend to train for days."""
    manifest = corpus()
    for number in range(6):
        write_audio(tmp_path / f"u{number}.wav", "overflow")
    with pytest.raises(RuntimeError, match="2 updates in a row were not finite.*the loss is not finite.*batch"):
        fine_tune(manifest, max_nonfinite_steps=2)


def restore_state(path):
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from(str(path), map_location="cpu")
    return model.state_dict(), model.cfg
