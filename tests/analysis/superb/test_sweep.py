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

"""Probes end to end on synthetic speech: they learn a tiny set, beat random encoders, sweep, resume, and are
refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.analysis.hidden_states import AllHiddenStates
from nemo_mshubert.analysis.superb import sweep
from nemo_mshubert.analysis.superb.features import FrozenFeatures
from nemo_mshubert.analysis.superb.pronunciations import ARPABET
from nemo_mshubert.analysis.superb.sweep import results_table, run_superb
from nemo_mshubert.data.audio import load_audio
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.whole_files import temporary_neighbour

CONFIGS = Path(__file__).parents[3] / "conf" / "superb"
SMALL = [
    "name=tiny",
    "model=tiny.nemo",
    "num_workers=0",
    "device=cpu",
    "trainer.enable_progress_bar=false",
    "learning_rates=[0.01]",
    "batch_size=4",
    "accumulate=1",
    "halve_above_seconds=null",
]


@pytest.fixture
def config(synthetic_corpus, tmp_path):
    """``config("asr", "updates=4", ...)``: a small probe of conf/superb on four utterances, for training and test."""
    few = tmp_path / "few.json"
    entries = sorted(read_manifest(synthetic_corpus.train), key=lambda entry: entry["duration"])[:4]
    write_manifest(few, entries)
    words = {word for entry in entries for word in entry["text"].split()}
    phones = sorted(ARPABET - {"AE"})
    lexicon = [f"{word.upper()} {phones[len(word) % 30]} AE1 {phones[ord(word[0]) % 30]}" for word in sorted(words)]
    (tmp_path / "lexicon.txt").write_text("\n".join(line.replace("AE1", "AE") for line in lexicon))

    def make(task, *overrides):
        probe = {"asr": ["probe.projection=32", "probe.recurrent.hidden=32"], "pr": ["probe.projection=32"]}[task]
        data = [f"{split}_manifests=[{few}]" for split in ("train", "dev", "test")]
        own = [f"output={tmp_path / task}", f"pronunciations=[{tmp_path / 'lexicon.txt'}]", "stress=false"]
        with initialize_config_dir(str(CONFIGS), version_base=None):
            cfg = compose(task, overrides=[*SMALL, *probe, *data, *own, *overrides])
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))

    return make


@pytest.fixture
def features(tiny_encoder):
    return FrozenFeatures(AllHiddenStates(tiny_encoder()))


class Oracle(AllHiddenStates):
    """An encoder that knows more than a random one: one of its states holds the letters, with a gap behind each."""

    KNOWING = 3

    def __init__(self, encoder, entries):
        super().__init__(encoder)
        self.texts = {round(entry["duration"] * 16000): entry["text"] for entry in entries}
        self.fingerprint = "oracle"

    def __call__(self, waveforms):
        outputs = []
        for waveform, states in zip(waveforms, super().__call__(waveforms)):
            states = states.reshape(len(states), self.num_states, -1).clone()
            text = self.texts[len(waveform)]
            states[:, self.KNOWING] = 0
            for place, letter in enumerate(map(ENGLISH_LABELS.index, text)):
                frame = place * len(states) // len(text)
                states[frame, self.KNOWING, letter % 24] = 30.0 if letter < 24 else -30.0
            outputs.append(states.reshape(len(states), -1))
        return outputs


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_a_probe_learns_a_tiny_set_by_heart(config, features, task):
    """What must work before any number of a probe means something: random states tell four utterances apart."""
    cfg = config(task, "updates=120", "eval_every=20", "probe.spec_augment=null", "learning_rates=[0.02]")
    if task == "asr":
        cfg.probe.recurrent.update(layers=1, dropout=0.0)
    results = run_superb(cfg, features)
    first, last = _dev_errors(cfg)
    assert first > last + 0.1 and last < 0.4
    assert results["tests"]["few"]["rate"] == pytest.approx(results["best"]["dev_error"])


def _dev_errors(cfg):
    """First and last logged dev error."""
    (log,) = Path(cfg.output).glob("lr_*/version_0/metrics.csv")
    rows = [line.split(",") for line in log.read_text().splitlines()]
    column = rows[0].index("dev_error")
    values = [float(row[column]) for row in rows[1:] if row[column]]
    return values[0], values[-1]


def test_states_that_hold_the_letters_beat_a_random_encoder(config, synthetic_corpus, tiny_encoder):
    """On utterances that the probe has not seen; and the learned weights find the layer that holds the letters."""
    data = [f"{split}_manifests=[{getattr(synthetic_corpus, split)}]" for split in ("train", "dev", "test")]
    cfg = config("asr", *data, "updates=120", "eval_every=60", "probe.spec_augment=null", "probe.recurrent=null")
    random = run_superb(cfg, FrozenFeatures(AllHiddenStates(tiny_encoder())))
    cfg.output += "_oracle"
    entries = [
        entry for split in ("train", "dev", "test") for entry in read_manifest(getattr(synthetic_corpus, split))
    ]
    knowing = run_superb(cfg, FrozenFeatures(Oracle(tiny_encoder(), entries)))
    name = synthetic_corpus.test.stem
    assert knowing["tests"][name]["rate"] < 0.5 and random["tests"][name]["rate"] > 0.9
    weights = knowing["layer_weights"]
    assert np.argmax(weights) == Oracle.KNOWING and sum(weights) == pytest.approx(1)
    assert weights[Oracle.KNOWING] > max(random["layer_weights"])


def test_an_interrupted_probe_ends_like_an_uninterrupted_one(config, features, monkeypatch):
    """Order, dropout and SpecAugment included: days on a GPU are several jobs. The folder may be elsewhere then."""
    overrides = ["updates=6", "eval_every=2", "batch_size=2", "accumulate=2", "probe.spec_augment.freq_width=4"]
    whole, parts = config("asr", *overrides), config("asr", *overrides)
    parts.output += "_parts"
    expected = run_superb(whole, features)
    batches, taken = sweep.ProbeData.train_dataloader, []

    def stop_at_the_second(self):
        taken.append(self.trainer.current_epoch)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return batches(self)

    monkeypatch.setattr(sweep.ProbeData, "train_dataloader", stop_at_the_second)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_superb(parts, features)
    assert not (Path(parts.output) / "superb.json").is_file()
    parts.output = str(Path(parts.output).rename(f"{parts.output}_moved"))
    monkeypatch.setattr(sweep.ProbeData, "train_dataloader", batches)
    resumed = run_superb(parts, features)
    assert taken == [0, 1]
    assert resumed == expected
    weights = [
        torch.load(Path(cfg.output) / "lr_0.01" / "last.ckpt", weights_only=False)["state_dict"]
        for cfg in (whole, parts)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_probe_in_a_moved_folder_knows_its_best_checkpoint(tmp_path):
    """A later and worse one was reported, tested, and compared with the other learning rates."""
    before, moved = (sweep.BestProbe(tmp_path / name) for name in ("before", "moved"))
    best = str(tmp_path / "before" / "best-step=2.ckpt")
    before.best_model_path = before.kth_best_model_path = best
    before.best_model_score = before.kth_value = torch.tensor(0.1)
    before.best_k_models = {best: before.best_model_score}
    moved.load_state_dict(before.state_dict())
    here = str(tmp_path / "moved" / "best-step=2.ckpt")
    assert (moved.best_model_path, moved.best_model_score, moved.last_model_path) == (here, 0.1, "")
    assert moved.best_k_models == {here: 0.1} and moved.kth_best_model_path == here


def test_the_sweep_chooses_on_dev_and_survives_divergence(config, features, monkeypatch):
    cfg = config("pr", "updates=8", "eval_every=4", "learning_rates=[1e-5,0.02]", "max_nonfinite_steps=2")
    results = run_superb(cfg, features)
    assert [line["learning_rate"] for line in results["sweep"]] == [1e-5, 0.02]
    assert results["best"] == min(results["sweep"], key=lambda line: line["dev_error"])
    assert {"learning_rate", "dev_error", "update", "checkpoint"} <= set(results["best"])
    stored = json.loads((Path(cfg.output) / "superb.json").read_text())
    assert stored == results and (Path(cfg.output) / "layer_weights.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sweep.pl.Trainer, "fit", None)  # may not be called: all probes are done
    assert run_superb(cfg, features) == results
    table = results_table(results)
    assert "(chosen)" in table and f"{100 * results['tests']['few']['rate']:.2f}" in table
    monkeypatch.undo()
    cfg.learning_rates, cfg.output = [1e30, 0.02], cfg.output + "_wild"
    wild, calm = run_superb(cfg, features)["sweep"]
    assert wild["dev_error"] is None and "not finite" in wild["diverged"] and calm["dev_error"] is not None
    cfg.learning_rates, cfg.output = [1e30], cfg.output + "_only"
    with pytest.raises(ValueError, match="no learning rate of .* converges"):
        run_superb(cfg, features)


def test_two_do_not_probe_into_one_folder_at_once(config, features, held_elsewhere):
    """They removed each other's checkpoints, and the sweep was of probes of both."""
    cfg = config("pr", "updates=2", "eval_every=2")
    first = held_elsewhere(Path(cfg.output) / ".lock")
    with pytest.raises(RuntimeError, match="another process probes into this folder. Wait for it, or give another"):
        run_superb(cfg, features)
    assert [path.name for path in Path(cfg.output).iterdir()] == [".lock"]
    first.kill()
    first.wait()
    assert run_superb(cfg, features)["best"]["update"] == 2


@pytest.fixture
def killed_in_checkpoint(features, monkeypatch):
    """Runs a sweep that is killed when the beginning of a checkpoint is written, numbered from 1: best and last of
    each evaluation. Returns the names of the files that were written."""

    def run(cfg, number):
        save, saved = torch.save, []

        def killed(checkpoint, stream):
            saved.append(stream.name)
            if len(saved) == number:
                stream.write(b"PK")
                raise KeyboardInterrupt
            save(checkpoint, stream)

        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
            patch.setattr(torch, "save", killed)
            run_superb(cfg, features)
        return saved

    return run


def test_a_checkpoint_is_whole_or_absent(config, features, killed_in_checkpoint):
    """Lightning's way from the folder of temporary files to another disk is a copy: a kill left half of one, at whose
    sight each further call ended."""
    cfg = config("pr", "updates=4", "eval_every=2")
    saved = killed_in_checkpoint(cfg, 4)
    last = Path(cfg.output) / "lr_0.01" / "last.ckpt"
    assert "last.ckpt" in saved[-1] and torch.load(last, weights_only=False)["global_step"] == 2
    assert run_superb(cfg, features)["sweep"][0]["update"] in (2, 4)


def test_a_kill_between_best_and_last_leaves_nothing(config, features, killed_in_checkpoint):
    """Each left a checkpoint for good, and the results named a best-step=2-v1."""
    cfg = config("pr", "updates=4", "eval_every=2")
    folder = Path(cfg.output) / "lr_0.01"
    killed_in_checkpoint(cfg, 2)
    assert [path.name for path in folder.glob("*.ckpt")] == ["best-step=2.ckpt"]
    temporary_neighbour(folder / "last.ckpt").touch()  # Python tidies up behind an exception, but not behind a kill
    (line,) = run_superb(cfg, features)["sweep"]
    assert line["checkpoint"] == f"best-step={line['update']}.ckpt"
    left = {path.name for path in folder.iterdir() if path.is_file()}
    assert left == {line["checkpoint"], "last.ckpt", "result.json"}


def test_a_folder_of_another_probe_is_refused(config, features, tiny_encoder):
    cfg = config("pr", "updates=2", "eval_every=2")
    run_superb(cfg, features)
    with pytest.raises(ValueError, match="other encoder. Give another output"):
        run_superb(cfg, FrozenFeatures(AllHiddenStates(tiny_encoder(seed=1))))
    with pytest.raises(ValueError, match="other probe, updates"):
        run_superb(config("pr", "updates=4", "eval_every=2", "probe.projection=8"), features)


def test_a_folder_of_other_audio_or_settings_is_refused(config, features, tiny_encoder, tmp_path, monkeypatch):
    """Results of one call were mixed of probes of two: the data was known by ids and transcripts alone."""
    cfg = config("pr", "updates=2", "eval_every=2")
    entries = read_manifest(cfg.train_manifests[0])
    (tmp_path / "audio").mkdir()
    for entry in entries:
        copy = tmp_path / "audio" / Path(entry["audio_filepath"]).name
        copy.write_bytes(Path(entry["audio_filepath"]).read_bytes())
        entry["audio_filepath"] = str(copy)
    write_manifest(cfg.train_manifests[0], entries)
    run_superb(cfg, features)
    monkeypatch.setattr(sweep, "train_probe", None)  # may not be called
    preprocessor = SimpleNamespace(normalized=True)
    scaled = FrozenFeatures(AllHiddenStates(tiny_encoder(), preprocessor))
    with pytest.raises(ValueError, match="a probe with other normalized. Give another output"):
        run_superb(cfg, scaled)
    for changes, named in (
        ({"trainer": {"precision": "bf16-mixed"}}, "precision"),
        ({"max_nonfinite_steps": 3}, "max_nonfinite_steps"),
    ):
        with pytest.raises(ValueError, match=f"a probe with other {named}. Give another output"):
            run_superb(OmegaConf.merge(cfg, changes), features)
    soundfile.write(entries[1]["audio_filepath"], load_audio(entries[1])[::-1], 16000)
    with pytest.raises(ValueError, match="a probe with other data. Give another output"):
        run_superb(cfg, features)


def test_bad_input(config, features, tmp_path):
    with pytest.raises(ValueError, match="task: expected one of asr, pr"):
        run_superb(config("asr", "task=sid"), features)
    with pytest.raises(ValueError, match="g2p: expected null or espeak, found 'espeak-ng'"):
        run_superb(config("pr", "g2p=espeak-ng"), features)
    with pytest.raises(ValueError, match="needs LibriSpeech's lexicon or CMUdict"):
        run_superb(config("pr", "pronunciations=null"), features)
    with pytest.raises(ValueError, match="updates 6 is no multiple of eval_every 4"):
        run_superb(config("asr", "updates=6", "eval_every=4"), features)
    for key in ("batch_size", "updates", "eval_every", "accumulate"):  # batches without end, a division by zero
        with pytest.raises(ValueError, match=f"{key}=0: expected 1 or more"):
            run_superb(config("asr", f"{key}=0"), features)
    cfg = config("asr")
    for name in ("dev.json", "few.json"):  # the best on dev would be that on the test set; two sets would be one
        with pytest.raises(ValueError, match="told apart by file name.*Rename a manifest"):
            run_superb(OmegaConf.merge(cfg, {"test_manifests": [*cfg.test_manifests, f"elsewhere/{name}"]}), features)
    entries = read_manifest(cfg.train_manifests[0])
    for change, message in (
        ({"text": "number 9"}, r"bad.json:1: .*'9' is not in list of .*Normalise the transcript"),
        ({"text": " "}, r'bad.json:1: .* lacks "text"'),
        ({"duration": None}, r'bad.json:1: .* lacks "text" or "duration"'),
    ):
        write_manifest(tmp_path / "bad.json", [{**entries[0], **change}])
        cfg.dev_manifests = [str(tmp_path / "bad.json")]
        with pytest.raises(ValueError, match=message):
            run_superb(cfg, features)
    write_manifest(tmp_path / "bad.json", [])
    with pytest.raises(ValueError, match="bad.json: no utterances"):
        run_superb(cfg, features)


@pytest.mark.parametrize(
    "override", ["train_manifests=train.json", "pronunciations=lexicon.txt", "learning_rates=0.001"]
)
def test_one_value_where_a_list_belongs_is_named(config, features, override):
    """Each letter of the path was taken for a manifest, of which "/" is "a folder, where a manifest was expected"; a
    learning rate was found to be no list when all hidden states had been cached."""
    key, value = override.split("=")
    with pytest.raises(ValueError, match=rf"{key}: expected a list, found .*Write {key}=\[{value}\]"):
        run_superb(config("pr", override), features)


@pytest.mark.parametrize("rates", ["[]", "null", "[1e-3,fast]", "[1e-3,0]"])
def test_learning_rates_are_looked_at_first(config, features, rates):
    """When all hidden states had been cached, none was said not to converge, and a word had an "unknown format"."""
    with pytest.raises(ValueError, match=r"learning_rates=.*: expected numbers above 0, at least one"):
        run_superb(config("pr", f"learning_rates={rates}"), features)


def test_audio_of_the_test_sets_is_looked_for_before_training(config, features, tmp_path, monkeypatch):
    """Without a cache it is read when every learning rate has been trained: a missing file was found days later."""
    monkeypatch.setattr(sweep, "train_probe", None)  # may not be called
    cfg = config("asr")
    entries = read_manifest(cfg.test_manifests[0])
    write_manifest(tmp_path / "gone.json", [entries[0], {**entries[1], "audio_filepath": "gone.flac"}])
    cfg.test_manifests = [str(tmp_path / "gone.json")]
    with pytest.raises(FileNotFoundError, match="gone.json:2: .*gone.flac: no such audio file. Correct the manifest"):
        run_superb(cfg, features)


def test_the_configs_are_those_of_s3prl():
    """hyper-parameters of s3prl's downstream/asr/config.yaml and downstream/ctc/libriphone.yaml."""
    required = ["name=a", "model=a", "train_manifests=[a]", "dev_manifests=[a]", "test_manifests=[a]", "output=a"]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        asr, pr = compose("asr", overrides=required), compose("pr", overrides=required)
    assert (asr.updates, asr.eval_every, asr.batch_size, asr.accumulate, asr.clip) == (200000, 2000, 32, 1, 1)
    assert asr.halve_above_seconds * 16000 == 2000  # so that an update is of 16 utterances
    assert asr.probe.projection == 1024 and asr.probe.recurrent == {"hidden": 1024, "layers": 2, "dropout": 0.2}
    masks = {"time_warp": 5, "time_masks": 2, "time_width": 40, "freq_masks": 4, "freq_width": 50}
    assert asr.probe.spec_augment == masks and 1e-4 in asr.learning_rates
    assert (pr.updates, pr.eval_every, pr.batch_size, pr.accumulate, pr.clip) == (100000, 1000, 16, 2, 1)
    assert pr.probe == {"projection": 256, "recurrent": None, "spec_augment": None} and 1e-2 in pr.learning_rates
    assert pr.stress and pr.halve_above_seconds * 16000 == 300000


@pytest.mark.unit
def test_the_best_checkpoint_is_tested_not_the_last(config, features, monkeypatch):
    """Probes that are trained for too long get worse on dev: the table would be of those."""
    errors = iter([0.5, 0.1, 0.9])
    monkeypatch.setattr(sweep.CtcProbe, "on_validation_epoch_end", lambda self: self.log("dev_error", next(errors)))
    cfg = config("pr", "updates=6", "eval_every=2", "learning_rates=[0.05]")
    results = run_superb(cfg, features)
    assert (results["best"]["update"], results["best"]["dev_error"]) == (4, pytest.approx(0.1))
    weights = {}
    for name in (results["best"]["checkpoint"], "last.ckpt"):
        checkpoint = torch.load(Path(cfg.output) / "lr_0.05" / name, weights_only=False)
        weights[name] = checkpoint["state_dict"]["weighted_sum.logits"].softmax(dim=0)
    assert results["layer_weights"] == pytest.approx(weights[results["best"]["checkpoint"]].tolist())
    assert results["layer_weights"] != pytest.approx(weights["last.ckpt"].tolist())


@pytest.mark.unit
def test_updates_are_accumulated_and_clipped_as_configured(config, features, monkeypatch):
    """s3prl's phone recognition takes two batches for an update, whose gradient has a norm of one at most."""
    norms = []

    def note(self, outputs, batch, batch_idx):
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])))

    monkeypatch.setattr(sweep.CtcProbe, "on_train_batch_end", note)
    overrides = ["updates=3", "eval_every=3", "accumulate=2", "clip=0.001"]
    results = run_superb(config("pr", *overrides), features)
    assert results["best"]["update"] == 3 and len(norms) == 3 * 2
    assert norms[1::2] == pytest.approx([0.001] * 3, rel=1e-3) and min(norms[::2]) > 0.001


@pytest.mark.unit
def test_batches_of_long_utterances_are_halved_in_training_alone(config, features):
    """As s3prl does: else the longest of LibriSpeech take twice the memory."""
    cfg = config("pr", "halve_above_seconds=0.1")
    lines = sweep.read_lines(cfg.train_manifests)
    targets = sweep.Targets(lines, [[0]] * len(lines))
    data = sweep.ProbeData(cfg, features, {"train": targets, "dev": targets})
    data.trainer = SimpleNamespace(current_epoch=0)
    assert {len(rows) for rows in data.train_dataloader().sampler} == {2}
    assert {len(rows) for rows in data.val_dataloader().sampler} == {4}
    cfg.halve_above_seconds = None
    assert {len(rows) for rows in data.train_dataloader().sampler} == {4}


@pytest.mark.unit
def test_what_is_between_two_evaluations_goes_on_in_the_data(config, features):
    """Begun anew after each, the stream would give one order over and over, and may never come to its end."""
    cfg = config("pr", "eval_every=1", "accumulate=2", "batch_size=1", "halve_above_seconds=null")
    lines = sweep.read_lines(cfg.train_manifests)
    data = sweep.ProbeData(cfg, features, {"train": sweep.Targets(lines, [[0]] * len(lines))})
    stretches = []
    for epoch in range(6):
        data.trainer = SimpleNamespace(current_epoch=epoch)
        stretches.append([row for rows in data.train_dataloader().sampler for row in rows])
    assert len(lines) == 4 and [len(stretch) for stretch in stretches] == [2] * 6
    passes = [first + second for first, second in zip(stretches[::2], stretches[1::2])]
    assert [sorted(rows) for rows in passes] == [[0, 1, 2, 3]] * 3 and len(set(map(tuple, passes))) > 1


@pytest.mark.unit
def test_a_folder_of_other_transcripts_is_refused(config, features, tmp_path):
    """Of the same audio: the sweep would choose among probes that have learned from other texts."""
    cfg = config("asr", "updates=2", "eval_every=2", "probe.spec_augment=null", "probe.recurrent=null")
    run_superb(cfg, features)
    entries = read_manifest(cfg.dev_manifests[0])
    write_manifest(tmp_path / "corrected.json", [{**entries[0], "text": "a" + entries[0]["text"]}, *entries[1:]])
    cfg.dev_manifests = [str(tmp_path / "corrected.json")]
    with pytest.raises(ValueError, match="a probe with other data. Give another output"):
        run_superb(cfg, features)


@pytest.mark.unit
def test_kinds_of_errors_have_columns_of_their_own():
    """A probe that drops words would look like one that makes them up."""
    row = {"learning_rate": 0.01, "dev_error": 0.25, "update": 4}
    test = {"rate": 0.75, "substitutions": 1, "insertions": 2, "deletions": 3, "reference_length": 8}
    table = results_table({"metric": "PER", "sweep": [row], "best": row, "tests": {"few": test}})
    assert "| test set | PER % | sub | ins | del | reference |" in table
    assert table.endswith("| few | 75.00 | 1 | 2 | 3 | 8 |")


@pytest.mark.unit
def test_test_sets_are_scored_without_dropout(config, features):
    """Nor SpecAugment: the best probe is chosen so, and the same set must give the same rate."""
    cfg = config("asr", "probe.spec_augment.freq_width=4", "probe.recurrent.dropout=0.5")
    units = sweep.Letters()
    targets = sweep.make_targets(sweep.read_lines(cfg.train_manifests), units)
    probe = sweep._probe(cfg, 0.02, features, units).train()
    data, seen = sweep.ProbeData(cfg, features, {"few": targets}), []
    decode = probe.decode
    probe.decode = lambda log_probs_BTV, frames_B: seen.append(log_probs_BTV) or decode(log_probs_BTV, frames_B)
    for _ in range(2):
        sweep.score_probe(probe, data, "few")
    assert len(seen) == 2 and torch.equal(*seen)


@pytest.mark.unit
@pytest.mark.parametrize(
    "changed",
    ["task=asr", "probe.projection=8", "updates=7", "eval_every=7", "batch_size=7", "accumulate=7", "clip=7", "seed=7"]
    + ["halve_above_seconds=7", "max_nonfinite_steps=7"],
)
def test_each_setting_of_a_probe_is_of_its_folder(config, features, changed):
    """The sweep would choose among probes of two settings, and the results name the last one."""
    splits, cfg = {"train": sweep.Targets([], []), "dev": sweep.Targets([], [])}, config("pr")
    output = Path(cfg.output)
    output.mkdir()
    sweep._claim(output, cfg, features, splits)
    sweep._claim(output, config("pr", "learning_rates=[0.02]", "num_workers=7", "device=cuda"), features, splits)
    key, value = changed.split("=")
    other = OmegaConf.merge(cfg, OmegaConf.from_dotlist([changed]))
    with pytest.raises(ValueError, match=f"a probe with other {key.partition('.')[0]}. Give another output"):
        sweep._claim(output, other, features, splits)


@pytest.mark.unit
def test_each_set_has_batches_of_its_own(config, features):
    """The best on the training set is the longest trained; tested on dev, the probe looks better than it is."""
    cfg = config("pr")
    lines = sweep.read_lines(cfg.train_manifests)
    parts = {"train": lines[:1], "dev": lines[1:3], "few": lines[3:]}
    splits = {name: sweep.Targets(part, [[0]] * len(part)) for name, part in parts.items()}
    data = sweep.ProbeData(cfg, features, splits)
    data.trainer = SimpleNamespace(current_epoch=0)
    loaders = {"train": data.train_dataloader(), "dev": data.val_dataloader(), "few": data.loader_of("few")}
    for name, loader in loaders.items():
        assert next(iter(loader)).lines == sorted(parts[name], key=lambda line: -line[1]["duration"]), name


@pytest.mark.unit
def test_each_update_has_dropout_and_masks_of_its_own(config, features, monkeypatch):
    """Seeded alike, all updates would drop the same units, and SpecAugment mask the same frames."""
    seeds, log_probs = [], sweep.CtcProbe._log_probs

    def note(self, batch):
        if self.training:
            seeds.append(torch.initial_seed())
        return log_probs(self, batch)

    monkeypatch.setattr(sweep.CtcProbe, "_log_probs", note)
    run_superb(config("pr", "updates=4", "eval_every=2", "accumulate=2"), features)
    assert len(seeds) == len(set(seeds)) == 8


@pytest.mark.unit
def test_the_seed_is_that_of_the_config(config, features):
    """Else probes of several seeds, for the spread of their scores, are the same one."""
    first, again, other = (config("pr", f"seed={seed}", "batch_size=1") for seed in (1, 1, 2))
    lines = sweep.read_lines(first.train_manifests)
    units = sweep.make_units(first, {"train": lines})
    weights, orders = [], []
    for cfg in (first, again, other):
        weights.append(sweep._probe(cfg, 0.01, features, units).output.weight)
        data = sweep.ProbeData(
            OmegaConf.merge(cfg, {"eval_every": 40}), features, {"train": sweep.Targets(lines, [[]])}
        )
        data.trainer = SimpleNamespace(current_epoch=0)
        orders.append(data.train_dataloader().sampler)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.unit
def test_phones_have_stress_where_the_config_says_so(config, tmp_path):
    """s3prl's phones: a rate of 39 in place of 69 is lower, and comparable with no published one."""
    (tmp_path / "lexicon.txt").write_text("A AH0\nBED B EH1 D\n")
    for stress, count, phones in ((True, 69, "AH0 B EH1 D"), (False, 39, "AH B EH D")):
        units = sweep.make_units(config("pr", f"stress={stress}"), {"dev": [("dev.json:1", {"text": "a bed"})]})
        assert len(units.vocabulary) == count
        assert [units.vocabulary[token] for token in units.tokens("A BED")] == phones.split()


@pytest.mark.unit
def test_words_of_the_test_sets_are_looked_up_before_training(config, tmp_path, monkeypatch):
    """A KeyError when every learning rate has been trained."""
    (tmp_path / "lexicon.txt").write_text("A AH0\n")
    lines = {name: [(f"{name}.json:1", {"text": text})] for name, text in (("train", "a"), ("dev", "a"), ("x", "zyx"))}
    with pytest.raises(ValueError, match="1 of 2 words have no pronunciation in .*: zyx. Add"):
        sweep.make_units(config("pr"), lines)
    monkeypatch.setitem(sweep.FALLBACKS, "espeak", lambda: lambda word: ["Z", "IH1"])
    units = sweep.make_units(config("pr", "g2p=espeak"), lines)
    assert [units.vocabulary[token] for token in units.tokens("a zyx")] == ["AH", "Z", "IH"]


@pytest.mark.unit
def test_letters_of_any_case_are_those_of_the_task():
    """LibriSpeech's transcripts are upper case in some manifests: no line could be used."""
    assert sweep.Letters().tokens("THE  Sea") == sweep.Letters().tokens("the sea")
