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

"""Fine-tuning of CTC models: options, data that is gone on with, and data that is refused."""

import errno
import itertools
import json
import random
import re
import string
import tarfile
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hydra.errors import InstantiationException
from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE
from nemo.core.classes import ModelPT
from omegaconf import OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.callbacks.other_ranks import OtherRanks
from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.data import resumable_loader
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.data.tarred import make_tarred
from nemo_mshubert.data.transcripts import check_transcript
from nemo_mshubert.data.unreadable import CountedAudio
from nemo_mshubert.models import finetuning
from nemo_mshubert.models.ctc import ssl_to_ctc
from nemo_mshubert.models.finetuning import restore_for_finetuning
from nemo_mshubert.models.loading import save_model
from nemo_mshubert.models.save_restore import WholeFile
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from nemo_mshubert.parallel import registration
from tests.callbacks.short_runs import PerUpdate
from tests.conftest import load_config, quiet_trainer
from tests.parallel.ranks_of_a_test import run_on_ranks


@pytest.fixture(params=["letters", "bpe"])
def path(request):
    return request.getfixturevalue(f"{request.param}_path")


@pytest.fixture
def overrides(synthetic_corpus):
    """The ``model`` section of conf/finetune, small."""
    data = {"use_lhotse": True, "sample_rate": 16000, "batch_size": 2, "num_workers": 0}
    model = OmegaConf.create(
        {
            "encoder": {"layerdrop": 0.25, "mask_prob": 0.4, "feature_grad_mult": 0.0, "activation_dropout": 0.3},
            "train_ds": {**data, "manifest_filepath": str(synthetic_corpus.train), "shuffle": True, "seed": 0},
            "validation_ds": {**data, "manifest_filepath": str(synthetic_corpus.dev), "shuffle": False},
            "optim": {"name": "adam", "lr": "${peak}", "sched": {"name": "TriStageAnnealing", "max_steps": 10}},
        }
    )
    return OmegaConf.create({"peak": 0.125, "model": model}).model


@pytest.mark.integration
def test_a_full_folder_of_temporary_files_is_named(path, overrides, monkeypatch):
    """NeMo unpacks the model there; it was the model that looked broken."""

    def full_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile, "copyfileobj", full_disk)
    with pytest.raises(ValueError, match=f"No space left on device: '{re.escape(tempfile.gettempdir())}'"):
        restore_for_finetuning(str(path), overrides, quiet_trainer(max_steps=1))


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_options_of_finetuning_replace_those_of_the_file(path, overrides):
    """Masks, dropouts, frozen front end, data and optimizer are the experiment's; the rest is the file's."""
    trainer = quiet_trainer(max_steps=10)
    model = restore_for_finetuning(str(path), overrides, trainer)
    original = ASRModel.restore_from(str(path), map_location="cpu")
    assert type(model) is type(original)
    assert isinstance(model._save_restore_connector, WholeFile)  # killed as it saves, it leaves the file before
    encoder = model.encoder
    assert (encoder.layerdrop, encoder.mask_prob, encoder.feature_grad_mult) == (0.25, 0.4, 0.0)
    assert original.encoder.layerdrop == original.encoder.mask_prob == 0.0
    assert encoder.d_model == 24 and encoder.pos_conv_embed.conv.kernel_size == (16,)  # not named: as in the file
    assert {layer.feed_forward.activation_dropout for layer in encoder.layers} == {0.3}
    assert not any(parameter.requires_grad for parameter in encoder.feature_extractor.parameters())
    for key, value in original.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    assert all(module.training for module in encoder.modules())  # Lightning would leave dropout and masks off
    assert model._optimizer.param_groups[0]["initial_lr"] == 0.125
    assert type(model._scheduler["scheduler"]).__name__ == "TriStageAnnealing"
    logged = model.hparams_initial["cfg"]  # else hparams.yaml and the report have the file's rate, alike for all runs
    assert logged["optim"] == {"name": "adam", "lr": 0.125, "sched": {"name": "TriStageAnnealing", "max_steps": 10}}
    assert logged["encoder"]["layerdrop"] == 0.25 and logged["train_ds"]["batch_size"] == 2

    signal, length, tokens, token_counts = next(iter(model._train_dl))[:4]
    assert signal.shape[0] == len(length) == 2
    references = {line.split('"text": "')[1].split('"')[0] for line in open(overrides.train_ds.manifest_filepath)}
    for row, count in zip(tokens.tolist(), token_counts.tolist()):
        if isinstance(model, EncDecCTCModelBPE):
            assert model.tokenizer.ids_to_text(row[:count])  # 40 pieces lack some letters
        else:
            assert "".join(ENGLISH_LABELS[token] for token in row[:count]) in references
    restored_again = ModelPT.restore_from(str(path), map_location="cpu")  # the file itself is as it was
    assert restored_again.cfg.encoder.layerdrop == 0.0 and isinstance(restored_again.encoder, MSHuBERTEncoder)


@pytest.mark.integration
def test_finetuning_in_another_language(ssl_path, overrides, tmp_path):
    """Its letters reach the targets; NeMo's parser would drop those it does not know, and train on the rest."""
    save_model(ssl_to_ctc(str(ssl_path), letters="aähst"), tmp_path / "letters.nemo")
    for name in ("train_ds", "validation_ds"):
        entries = read_manifest(overrides[name].manifest_filepath)
        write_manifest(tmp_path / f"{name}.json", [{**entry, "text": "hast äh"} for entry in entries])
        overrides[name].manifest_filepath = str(tmp_path / f"{name}.json")
    model = restore_for_finetuning(str(tmp_path / "letters.nemo"), overrides, quiet_trainer(max_steps=10))
    tokens, token_counts = next(iter(model._train_dl))[2:4]
    assert tokens.tolist() == [[3, 1, 4, 5, 0, 2, 3]] * 2 and token_counts.tolist() == [7, 7]
    write_manifest(tmp_path / "train_ds.json", [{**entry, "text": "höh"} for entry in entries])
    with pytest.raises(ValueError, match="train_ds.json:1: the model's letters are ' aähst', the text has 'ö'"):
        restore_for_finetuning(str(tmp_path / "letters.nemo"), overrides, quiet_trainer(max_steps=10))


@pytest.mark.integration
def test_letters_of_a_changed_vocabulary(letters_path, overrides, tmp_path):
    """NeMo's change_vocabulary leaves cfg.labels as it was: letters were trained as their neighbours."""
    model = ASRModel.restore_from(str(letters_path), map_location="cpu")
    model.change_vocabulary(new_vocabulary=[" ", "'", *string.ascii_lowercase])  # the same in another order
    model.save_to(str(tmp_path / "changed.nemo"))
    trainer = quiet_trainer(max_steps=10)
    model = restore_for_finetuning(str(tmp_path / "changed.nemo"), overrides, trainer)
    assert list(model.cfg.labels) == list(model.decoder.vocabulary)  # of the .nemo that it will be saved to, too
    references = {line.split('"text": "')[1].split('"')[0] for line in open(overrides.train_ds.manifest_filepath)}
    for batch in model._train_dl:
        for row, count in zip(batch[2].tolist(), batch[3].tolist()):
            assert "".join(model.decoder.vocabulary[token] for token in row[:count]) in references


@pytest.mark.integration
def test_an_unknown_option_of_the_encoder_is_refused(letters_path, overrides):
    """A misspelt option would otherwise be a hyper-parameter search over nothing."""
    overrides.encoder.mask_probability = 0.5
    with pytest.raises(ValueError, match=r"model.encoder: MSHuBERTEncoder has no options \['mask_probability'\]"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=10))


@pytest.mark.integration
@pytest.mark.parametrize("option, value", [("num_heads", 1), ("pre_norm", False), ("d_model", 48)])
def test_another_architecture_is_refused(letters_path, overrides, option, value):
    """The weights fit other heads and norms, too: a ruined encoder would be fine-tuned without a word."""
    overrides.encoder[option] = value
    with pytest.raises(ValueError, match=rf"model.encoder: \['{option}'\] belong to the architecture, .*letters.nemo"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=10))


@pytest.mark.unit
@pytest.mark.parametrize("name", ["10min", "1h", "10h", "100h", "960h", "tiny"])
def test_experiments_leave_the_architecture_alone(name):
    """All that they set of the encoder may be changed."""
    assert set(load_config("finetune", name).model.encoder) == set(finetuning.ENCODER_OPTIONS)


@pytest.mark.integration
def test_what_is_wrong_with_an_option_of_the_encoder_is_said(path, overrides):
    """NeMo ended with "Can't instantiate abstract class ASRModel", for whatever reason the model could not be made."""
    overrides.encoder.mask_length = 0
    with pytest.raises(InstantiationException, match="mask_length 0, .*: expected 1 or more"):
        restore_for_finetuning(str(path), overrides, quiet_trainer(max_steps=10))


@pytest.mark.integration
def test_options_of_neither_fine_tuning_nor_nemo_are_refused(letters_path, overrides):
    """They were left out without a word: a model trained on scaled audio would have been fine-tuned on other audio."""
    overrides.preprocessor = {"normalize": "per_feature"}
    with pytest.raises(ValueError, match=r"model: fine-tuning has no options \['preprocessor'\]"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=10))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["fsdp2", "megatron_tp2"])
def test_strategies_that_share_a_model_are_refused(letters_path, overrides, name):
    """Under megatron_tp2 two ranks would each train the whole model, on as much data as one; fsdp2 ended in an
    assertion of Lightning without a word."""
    if name not in registration.strategies():
        pytest.skip("needs megatron-core")
    kind, options = registration.strategies()[name]
    with pytest.raises(ValueError, match=f"trainer.strategy: {kind.__name__} .*trainer.strategy=ddp"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(strategy=kind(**options)))


@pytest.mark.integration
def test_rates_by_part_and_losses_of_blocks_below(letters_path, overrides):
    """NeMo's own options, which were left out without a word."""
    overrides.optim_param_groups = {"encoder": {"lr": 0.5}}
    overrides.interctc = {"loss_weights": [0.3], "apply_at_layers": [1]}
    overrides.use_cer = True
    trainer = quiet_trainer(max_steps=10)
    model = restore_for_finetuning(str(letters_path), overrides, trainer)
    assert sorted(group["initial_lr"] for group in model._optimizer.param_groups) == [0.125, 0.5]
    assert model.is_interctc_enabled() and model.wer.use_cer


@pytest.mark.integration
def test_an_epoch_shorter_than_an_update_ends_it(letters_path, overrides):
    """Ten minutes on one GPU are less than 1600 s: no update would ever be made."""
    trainer = quiet_trainer(max_steps=2, max_epochs=3, accumulate_grad_batches=100)
    overrides.validation_ds.manifest_filepath = None
    trainer.fit(restore_for_finetuning(str(letters_path), overrides, trainer))
    assert trainer.global_step == 2


@pytest.mark.integration
def test_fine_tuning_without_validation(letters_path, overrides):
    """validation_manifest=null, which pre-training takes, ended in a TypeError."""
    overrides.validation_ds.manifest_filepath = None
    trainer = quiet_trainer(max_steps=1)
    model = restore_for_finetuning(str(letters_path), overrides, trainer)
    trainer.fit(model)
    assert trainer.global_step == 1


# --- Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_seed_orders_the_data_and_nothing_else_does(letters_path, overrides):
    """Fine-tunings over seeds were one, and ranks of which one had drawn a number had other batches: DDP would
    hang."""
    overrides.train_ds.batch_size = 2

    def batches(seed):
        overrides.train_ds.seed = seed
        trainer = quiet_trainer(max_steps=10)
        loader = restore_for_finetuning(str(letters_path), overrides, trainer)._train_dl
        return [batch[1].tolist() for batch in loader]

    first = batches(1)
    random.random()
    assert batches(1) == first != batches(2)


class Heard(pl.Callback):
    """The transcripts of every batch, and a checkpoint behind each update."""

    def __init__(self, folder):
        self.folder, self.tokens = folder, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.tokens.append(batch[2].tolist())
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.integration
def test_a_resumed_fine_tuning_goes_on_in_its_data(letters_path, overrides, tmp_path):
    """It began anew in the order of the first epoch: in jobs shorter than an epoch the last speakers of the manifest
    would never have been heard."""

    def heard(folder, resume=None):
        folder.mkdir()
        callback = Heard(folder)
        trainer = quiet_trainer(max_steps=updates, max_epochs=-1, callbacks=[callback, SavedUpdate()])
        trainer.fit(restore_for_finetuning(str(letters_path), overrides, trainer), ckpt_path=resume)
        return callback.tokens

    trainer = quiet_trainer(max_steps=1)
    epoch = len(list(restore_for_finetuning(str(letters_path), overrides, trainer)._train_dl))
    updates = 2 * epoch + 1
    expected = heard(tmp_path / "whole")
    assert len(expected) == updates and expected[:epoch] != expected[epoch : 2 * epoch]  # orders of their own
    for done in (1, epoch - 1, epoch, epoch + 1, 2 * epoch):
        assert heard(tmp_path / f"from {done}", tmp_path / "whole" / f"{done}.ckpt") == expected[done:], done


class HeardInUpdates(Heard):
    """Saves behind updates alone, and keeps the tokens of each update together."""

    def __init__(self, folder):
        super().__init__(folder)
        self.unfinished = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.tokens[-1] = [*self.unfinished, self.tokens[-1]]
            self.unfinished = []
        else:
            self.unfinished.append(batch[2].tolist())


@pytest.mark.integration
def test_the_rest_of_an_epoch_is_an_update_of_its_own(letters_path, overrides, tmp_path):
    """On plain manifests it was heard and never learned from, since an update began with the next epoch."""

    def heard(folder, resume=None):
        folder.mkdir()
        callback = HeardInUpdates(folder)
        options = dict(accumulate_grad_batches=accumulate, callbacks=[callback, SavedUpdate()])
        trainer = quiet_trainer(max_steps=5, max_epochs=-1, **options)
        trainer.fit(restore_for_finetuning(str(letters_path), overrides, trainer), ckpt_path=resume)
        return callback.tokens

    overrides.validation_ds.manifest_filepath = None
    epoch = len(list(restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))._train_dl))
    accumulate = epoch - 1
    expected = heard(tmp_path / "whole")
    assert [len(batches) for batches in expected] == [epoch - 1, 1, epoch - 1, 1, epoch - 1] and accumulate > 1
    for done in range(1, 5):
        assert heard(tmp_path / f"from {done}", tmp_path / "whole" / f"{done}.ckpt") == expected[done:], done


class HeardToTheEnd(Heard):
    """As NeMo's own callback, which saves once more when all updates are made."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / "end.ckpt")


@pytest.mark.integration
def test_a_finished_fine_tuning_goes_on_in_its_data(letters_path, overrides, tmp_path):
    """With more max_updates. Lightning takes the end of the updates for that of the epoch, so the rest of the epoch
    and the first batches of the next were left out."""

    def heard(updates, resume=None):
        callback = HeardToTheEnd(tmp_path)
        callbacks = [callback, SavedUpdate(), OtherRanks()]
        trainer = quiet_trainer(max_steps=updates, max_epochs=-1, callbacks=callbacks)
        trainer.fit(restore_for_finetuning(str(letters_path), overrides, trainer), ckpt_path=resume)
        return callback.tokens

    trainer = quiet_trainer(max_steps=1)
    epoch = len(list(restore_for_finetuning(str(letters_path), overrides, trainer)._train_dl))
    expected = heard(2 * epoch + 1)
    for done in (2, epoch, epoch + 1):
        heard(done)
        assert heard(2 * epoch + 1, tmp_path / "end.ckpt") == expected[done:], done


@pytest.mark.unit
def test_a_fine_tuning_goes_on_with_other_ranks(letters_path, overrides, tmp_path):
    """Preempted on two GPUs and resumed on one, it would hear half of the epoch twice; the other way round, leave out
    a part."""

    def heard(ranks, updates, resume=None, accumulate=1):
        def rank():
            callback = Heard(tmp_path)
            options = dict(max_epochs=-1, use_distributed_sampler=False, accumulate_grad_batches=accumulate)
            callbacks = [callback, SavedUpdate(), OtherRanks()]
            trainer = quiet_trainer(max_steps=updates, callbacks=callbacks, devices=ranks, **options)
            trainer.fit(restore_for_finetuning(str(letters_path), overrides, trainer), ckpt_path=resume)
            return callback.tokens

        return run_on_ranks(ranks, rank)

    overrides.train_ds.batch_duration = 2  # an utterance
    (epoch,) = heard(1, 9)
    assert len({str(tokens) for tokens in epoch}) == 9
    assert heard(2, 2) == [epoch[0:4:2], epoch[1:4:2]]
    assert heard(1, 5, tmp_path / "2.ckpt") == [epoch[4:7]]
    # seven batches were done; an update begins with the next, also where it is made of several
    assert heard(2, 6, tmp_path / "5.ckpt") == [[epoch[7]], [epoch[8]]]
    assert heard(2, 6, tmp_path / "5.ckpt", accumulate=2) == [[epoch[7]], [epoch[8]]]
    assert heard(2, 5, tmp_path / "4.ckpt", accumulate=2) == [[epoch[6], epoch[8]], [epoch[7], epoch[8]]]
    # and again on as many, after five batches and two more
    assert heard(2, 4, tmp_path / "3.ckpt") == [[epoch[5]], [epoch[6]]]
    assert heard(2, 5, tmp_path / "4.ckpt") == [[epoch[7]], [epoch[8]]]


@pytest.mark.unit
def test_updates_are_whole_where_a_resumed_fine_tuning_accumulates_more(
    letters_path, overrides, tmp_path, monkeypatch
):
    """With another seconds_per_update the first update was made of a part of its batches. Other batches or lines are
    named: as many batches are passed over, which are more or fewer utterances than were trained on."""
    warnings = []

    def train(updates, resume=None, accumulate=1, changes=None):
        callback, counter = Heard(tmp_path), PerUpdate()
        callbacks = [callback, counter, SavedUpdate(), OtherRanks()]
        trainer = quiet_trainer(
            max_steps=updates, max_epochs=-1, accumulate_grad_batches=accumulate, callbacks=callbacks
        )
        options = OmegaConf.merge(overrides, {"train_ds": changes or {}})
        trainer.fit(restore_for_finetuning(str(letters_path), options, trainer), ckpt_path=resume)
        return callback.tokens, counter.counts

    overrides.train_ds.batch_duration = 2  # an utterance
    epoch, _ = train(9)
    monkeypatch.setattr(resumable_loader.logging, "warning", warnings.append)
    assert train(5, tmp_path / "3.ckpt", accumulate=2) == (epoch[3:7], [2, 2, 0])
    assert not [warning for warning in warnings if "The data goes on" in warning]
    lines = Path(overrides.train_ds.manifest_filepath).read_text().splitlines(keepends=True)
    (tmp_path / "shorter.json").write_text("".join(lines[:-1]))
    changes = {"batch_duration": 4, "manifest_filepath": str(tmp_path / "shorter.json")}
    train(4, tmp_path / "3.ckpt", changes=changes)
    (found,) = [warning for warning in warnings if "The data goes on" in warning]
    before, now = (len("".join(some).encode()) for some in (lines, lines[:-1]))
    assert found.endswith(f"batch_duration was 2, is 4; manifest_bytes was {before}, is {now}.")


@pytest.mark.unit
def test_a_resumed_fine_tuning_draws_tars_anew(letters_path, overrides, synthetic_corpus, tmp_path):
    """Each session would begin with the same shards; those that it does not come to, none would."""
    make_tarred(synthetic_corpus.train, tmp_path / "tars", 4)
    overrides.train_ds.update(
        manifest_filepath=f"{tmp_path}/tars/sharded_manifests/manifest__OP_0..3_CL_.json",
        tarred_audio_filepaths=f"{tmp_path}/tars/audio__OP_0..3_CL_.tar",
        shard_seed="randomized",
        num_workers=1,
    )

    def first_batches(checkpoint):
        trainer = quiet_trainer(max_steps=10)
        trainer.ckpt_path = checkpoint
        loader = restore_for_finetuning(str(letters_path), overrides, trainer)._train_dl
        assert isinstance(loader.dataset.dataset.load_audio, CountedAudio)  # what cannot be decoded is counted
        return [batch[2].tolist() for batch in itertools.islice(loader, 3)]

    first = first_batches(None)
    assert first == first_batches(None) != first_batches("run--val_wer=0.5-step=10-last.ckpt")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["train_ds", "validation_ds"])
def test_the_loader_without_lhotse_needs_a_batch_size(letters_path, overrides, name):
    """conf/finetune has seconds in its place, with which PyTorch ended in "iteration over a 0-d tensor"."""
    overrides[name].update(use_lhotse=False, batch_size=None)
    with pytest.raises(ValueError, match=f"model.{name}.use_lhotse=false.*needs model.{name}.batch_size"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["train_ds", "validation_ds"])
@pytest.mark.parametrize("option", ["truncate_duration", "cut_into_windows_duration"])
def test_audio_that_is_cut_beside_its_transcript_is_refused(letters_path, overrides, name, option):
    """As pre-training has it: a second of speech was trained to be the text of ten."""
    overrides[name][option] = 1.0
    with pytest.raises(ValueError, match=f"model.{name}.{option}=1.0: the audio would be cut.*max_duration"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))


@pytest.mark.integration
def test_transcripts_are_looked_at_in_their_field(letters_path, overrides, tmp_path):
    """With a misspelt text_field, or one that some lines lack, NeMo trains on empty transcripts."""
    overrides.train_ds.text_field = "spoken"
    with pytest.raises(ValueError, match=f'{overrides.train_ds.manifest_filepath}:1: no "spoken"'):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))
    lines = read_manifest(overrides.train_ds.manifest_filepath)
    write_manifest(tmp_path / "spoken.json", [{**line, "text": "WRITTEN", "spoken": line["text"]} for line in lines])
    overrides.train_ds.manifest_filepath = str(tmp_path / "spoken.json")
    restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["train_ds", "validation_ds"])
def test_transcripts_of_nothing_but_unknown_pieces_are_refused(bpe_path, overrides, tmp_path, name):
    """Capitals, of which the tokenizer has none: no loss is infinite, and <unk> is all that the model learns."""
    entries = read_manifest(overrides[name].manifest_filepath)
    write_manifest(tmp_path / "capitals.json", [{**entry, "text": entry["text"].upper()} for entry in entries])
    overrides[name].manifest_filepath = str(tmp_path / "capitals.json")
    with pytest.raises(ValueError, match="capitals.json:1: .* nothing but <unk>"):
        restore_for_finetuning(str(bpe_path), overrides, quiet_trainer(max_steps=10))


@pytest.mark.integration
def test_several_ranks_need_lhotse(letters_path, overrides):
    """NeMo's older loader gives every rank all of the data in one order: n GPUs did the work of one."""
    overrides.train_ds.use_lhotse = False
    restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))

    def rank():
        with pytest.raises(ValueError, match="use_lhotse=false: all ranks would train on the same batches"):
            trainer = quiet_trainer(max_steps=1, devices=2, use_distributed_sampler=False)
            restore_for_finetuning(str(letters_path), overrides, trainer)
        return True

    assert run_on_ranks(2, rank) == [True, True]


@pytest.mark.integration
def test_a_manifest_without_a_line_end_is_for_validation_alone(letters_path, overrides, tmp_path):
    """NeMo mixes several of a training by their line ends, and would stop; of a validation each has a loader."""
    dev = Path(overrides.validation_ds.manifest_filepath)
    (tmp_path / "one.json").write_text(json.dumps(read_manifest(dev)[0]))
    overrides.validation_ds.manifest_filepath = [str(dev), str(tmp_path / "one.json")]
    model = restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))
    assert [len(list(loader)) > 0 for loader in model._validation_dl] == [True, True]
    training = overrides.train_ds.manifest_filepath
    overrides.train_ds.manifest_filepath = str(tmp_path / "one.json")  # alone it is mixed with none
    restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))
    overrides.train_ds.manifest_filepath = [training, str(tmp_path / "one.json")]
    with pytest.raises(ValueError, match="one.json: empty, or one line without its end"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=1))


@pytest.mark.unit
def test_remote_manifests_are_not_looked_at():
    """Those of a bucket were counted as local ones, of which there are none: "no utterance", whatever they hold."""
    remote = {"manifest_filepath": "s3://speech/train.json", "tarred_audio_filepaths": "s3://speech/audio.tar"}
    finetuning._check_set(OmegaConf.create(remote), None, are_mixed=True)


@pytest.mark.integration
def test_one_rank_looks_at_the_data_and_all_refuse_it(letters_path, overrides, tmp_path, monkeypatch):
    """Each of 64 ranks read all manifests from one file system. One that ran on would end in an error of NeMo's, and
    torchrun end rank 0 before that has found what is wrong."""
    entries = read_manifest(overrides.validation_ds.manifest_filepath)
    write_manifest(tmp_path / "dev.json", [*entries, {**entries[0], "text": "A"}])
    train = len(read_manifest(overrides.train_ds.manifest_filepath))
    looked_at = []

    def look(entry, where, *options):
        looked_at.append(where)
        check_transcript(entry, where, *options)

    monkeypatch.setattr(finetuning, "check_transcript", look)

    def rank():
        trainer = quiet_trainer(max_steps=1, devices=2, use_distributed_sampler=False)
        restore_for_finetuning(str(letters_path), overrides, trainer)
        read = len(looked_at)
        overrides.validation_ds.manifest_filepath = str(tmp_path / "dev.json")
        with pytest.raises(ValueError, match=f"dev.json:{len(entries) + 1}: .*the text has 'A'"):
            restore_for_finetuning(str(letters_path), overrides, trainer)
        return read

    assert run_on_ranks(2, rank) == [train + len(entries), 0]
