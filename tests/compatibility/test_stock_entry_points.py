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

"""What NeMo's own training and transcription scripts do with a ``.nemo`` of ours, call by call, in one process.

The scripts themselves were run as well: docs/compatibility.md.
"""

import pytest
import torch
from hydra import compose, initialize_config_dir
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from nemo.core.classes import ModelPT
from omegaconf import OmegaConf

from nemo_mshubert.data.manifest import read_manifest
from nemo_mshubert.modules.waveform_preprocessor import WaveformPreprocessor
from tests.conftest import REPOSITORY, TINY_ENCODER, quiet_trainer
from tests.convert.conftest import assert_same_weights

pytestmark = pytest.mark.integration

LETTERS_OF_ANOTHER_LANGUAGE = [" ", "ä", "ö", "ü", "ß", *"abcdefghijklmnopqrstuvwxyz'"]


def data(manifest, **options):
    return OmegaConf.create(
        {
            "manifest_filepath": str(manifest),
            "sample_rate": 16000,
            "batch_size": 4,
            "shuffle": False,
            "num_workers": 0,
            **options,
        }
    )


# --- speech_to_text_finetune.py --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_lhotse", [False, True])
@pytest.mark.parametrize("kind", ["letters", "bpe"])
def test_finetuning_with_another_vocabulary(request, synthetic_corpus, tokenizer_dir, tmp_path, kind, use_lhotse):
    """restore_from, change_vocabulary, data, optimizer, fit, save_to: every weight moved, the new letters come out."""
    path = request.getfixturevalue(f"{kind}_path")
    model = ASRModel.restore_from(restore_path=str(path), map_location="cpu")
    model.set_trainer(quiet_trainer(max_steps=3, limit_train_batches=3))
    if kind == "letters":
        model.change_vocabulary(new_vocabulary=LETTERS_OF_ANOTHER_LANGUAGE)
    else:
        model.change_vocabulary(new_tokenizer_dir=str(tokenizer_dir), new_tokenizer_type="bpe")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # else NeMo gives the loaders cfg.labels, which change_vocabulary leaves as it was (docs/compatibility.md)
    labels = {"labels": LETTERS_OF_ANOTHER_LANGUAGE} if kind == "letters" else {}
    model.setup_training_data(data(synthetic_corpus.train, shuffle=True, use_lhotse=use_lhotse, **labels))
    model.setup_multiple_validation_data(data(synthetic_corpus.dev, use_lhotse=use_lhotse, **labels))
    if kind == "letters":
        batch = next(iter(model._train_dl))
        references = {entry["text"] for entry in read_manifest(synthetic_corpus.train)}
        for row, count in zip(batch[2].tolist(), batch[3].tolist()):
            assert "".join(LETTERS_OF_ANOTHER_LANGUAGE[token] for token in row[:count]) in references
    model.setup_optimization(OmegaConf.create({"name": "adamw", "lr": 1e-3}))
    model.trainer.fit(model)
    assert model.trainer.global_step == 3 and torch.isfinite(model.trainer.callback_metrics["val_wer"])
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same <= {"encoder.mask_embedding"}
    model.save_to(str(tmp_path / "finetuned.nemo"))
    again = ASRModel.restore_from(str(tmp_path / "finetuned.nemo"), map_location="cpu")
    assert type(again) is type(model)
    assert len(again.decoder.vocabulary) == (len(LETTERS_OF_ANOTHER_LANGUAGE) if kind == "letters" else 40)
    assert_same_weights(again.state_dict(), model.state_dict())


# --- asr_ctc/speech_to_text_ctc.py and speech_to_text_ctc_bpe.py -----------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_new_model_from_a_pretrained_encoder(ssl_path, synthetic_corpus, tokenizer_dir, kind):
    """conf/stock with ``+init_from_nemo_model``: the encoder's weights arrive, whatever else the file holds."""
    encoder = {**TINY_ENCODER, "conv_norm": "layer_norm", "pre_norm": True, "mask_length": 4, "mask_channel_prob": 0.0}
    with initialize_config_dir(str(REPOSITORY / "conf" / "stock"), version_base=None):
        config = compose(
            f"ctc_{kind}",
            overrides=[
                f"+init_from_nemo_model={ssl_path}",
                f"model.train_ds.manifest_filepath={synthetic_corpus.train}",
                f"model.validation_ds.manifest_filepath={synthetic_corpus.dev}",
                "model.train_ds.num_workers=0",
                "model.validation_ds.num_workers=0",
                *([f"model.tokenizer.dir={tokenizer_dir}"] if kind == "bpe" else []),
            ],
        )
    OmegaConf.set_struct(config, False)
    config.model.encoder.update(encoder)
    trainer = quiet_trainer(max_steps=2)
    model = (EncDecCTCModelBPE if kind == "bpe" else EncDecCTCModel)(cfg=config.model, trainer=trainer)
    pretrained = ModelPT.restore_from(str(ssl_path), map_location="cpu").encoder.state_dict()
    assert not torch.equal(model.encoder.state_dict()["mask_embedding"], pretrained["mask_embedding"])
    model.maybe_init_from_pretrained_checkpoint(config)
    assert_same_weights(model.encoder.state_dict(), pretrained)
    trainer.fit(model)
    assert trainer.global_step == 2 and torch.isfinite(trainer.callback_metrics["train_loss"])


def test_a_config_of_another_size_stops_at_the_first_tensor(ssl_path):
    """Not silently half-loaded: base in conf/stock, tiny in the file."""
    with initialize_config_dir(str(REPOSITORY / "conf" / "stock"), version_base=None):
        config = compose("ctc_char", overrides=["model.train_ds=null", "model.validation_ds=null"])
    OmegaConf.set_struct(config, False)
    config.model.encoder.update(num_layers=1, d_inner=64)  # of base, to be built quickly
    model = EncDecCTCModel(cfg=config.model)
    with pytest.raises(RuntimeError, match="size mismatch for encoder.mask_embedding"):
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_nemo_model": str(ssl_path)}))


# --- transcribe_speech_parallel.py -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["letters", "bpe"])
def test_parallel_transcription(request, synthetic_corpus, kind):
    """Its data loader and ``trainer.predict`` give what ``transcribe`` gives, in order."""
    model = ASRModel.restore_from(str(request.getfixturevalue(f"{kind}_path")), map_location="cpu")
    predict_ds = data(synthetic_corpus.test, batch_size=3, return_sample_id=True)
    for option in ("normalize", "parser", "blank_index", "unk_index"):
        if option in model.cfg.train_ds:  # the script reads this section, and takes over what it finds
            predict_ds[option] = model.cfg.train_ds[option]
    loader = model._setup_dataloader_from_config(predict_ds)
    predictions = quiet_trainer().predict(model=model, dataloaders=loader, return_predictions=True)
    found = {sample: hypothesis for batch in predictions for sample, hypothesis in batch}
    files = [entry["audio_filepath"] for entry in read_manifest(synthetic_corpus.test)]
    expected = model.transcribe(files, batch_size=1, verbose=False)
    assert [found[index].text for index in sorted(found)] == [hypothesis.text for hypothesis in expected]
    assert any(hypothesis.text for hypothesis in expected)


# --- Precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_the_whole_model(letters_path, dtype):
    """transcribe_speech.py casts the model and leaves the audio as it is; a loud signal and padding stay finite."""
    model = ASRModel.restore_from(str(letters_path), map_location="cpu").eval()
    audio, length = torch.randn(2, 12000) * torch.tensor([[1.0], [0.01]]), torch.tensor([12000, 7000])
    with torch.no_grad():
        expected, frames, _ = model(input_signal=audio, input_signal_length=length)
        found, same_frames, _ = model.to(dtype)(input_signal=audio, input_signal_length=length)
    assert found.dtype == dtype and torch.equal(frames, same_frames)
    for row, other, count in zip(found.float(), expected, frames):
        assert torch.isfinite(row[:count]).all()
        assert (row[:count] - other[:count]).abs().mean() < 0.1 * other[:count].abs().mean()


def test_waveforms_keep_their_own_precision_until_the_model_casts():
    """The preprocessor of a bf16 model normalises in the precision of the audio."""
    audio = 0.1 * torch.randn(1, 16000) + 3.0
    preprocessor = WaveformPreprocessor(normalize="per_feature").to(torch.bfloat16)
    signal, _ = preprocessor(input_signal=audio, length=torch.tensor([16000]))
    expected = torch.nn.functional.layer_norm(audio, audio.shape[-1:])
    assert (signal.float()[0] - expected).abs().max() < 0.03
