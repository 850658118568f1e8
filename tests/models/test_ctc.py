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

"""Stock CTC models around our encoder: made from a pre-trained one, trained, transcribing, exported."""

import random
import string

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from nemo.core.classes import ModelPT
from omegaconf import OmegaConf

from nemo_mshubert.callbacks.other_ranks import OtherRanks
from nemo_mshubert.callbacks.saved_update import SavedUpdate
from nemo_mshubert.convert.nemo import read_nemo
from nemo_mshubert.data.manifest import read_manifest, write_manifest
from nemo_mshubert.data.tarred import make_tarred
from nemo_mshubert.decoding.error_rates import error_counts
from nemo_mshubert.models.ctc import LETTERS, restore_for_finetuning, ssl_to_ctc
from nemo_mshubert.models.loading import load_encoder, restore_model, save_model
from nemo_mshubert.modules.frames import frame_count
from nemo_mshubert.modules.mshubert_encoder import MSHuBERTEncoder
from tests.conftest import quiet_trainer
from tests.parallel.ranks_of_a_test import run_on_ranks

FRAME_SECONDS = 0.02
LENGTHS = (16000, 24000, 20001)  # a second or more: NeMo pads shorter arrays


@pytest.fixture(scope="module")
def waves():
    """Another tone every 50 ms, so that every model has something to say, and noise."""
    rng = np.random.default_rng(0)

    def wave(length):
        hertz = np.repeat(rng.uniform(80, 4000, length // 800 + 1), 800)[:length]
        return 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / 16000) + rng.normal(0, 0.02, length)

    return [wave(length).astype(np.float32) for length in LENGTHS]


@pytest.fixture(params=["letters", "bpe"])
def path(request):
    return request.getfixturevalue(f"{request.param}_path")


@pytest.fixture
def model(path):
    return ASRModel.restore_from(str(path), map_location="cpu").eval()


def log_probs_of(model, *waves):
    """Log-probabilities ``[B, T, V + 1]`` and frame counts of one padded batch."""
    model.eval()
    audio = torch.zeros(len(waves), max(map(len, waves)))
    for row, wave in zip(audio, waves):
        row[: len(wave)] = torch.as_tensor(wave)
    with torch.no_grad():
        log_probs, frames, _ = model(
            input_signal=audio, input_signal_length=torch.tensor([len(wave) for wave in waves])
        )
    return log_probs, frames.tolist()


def collapse(log_probs_TV):
    """Greedy CTC by hand: ``(token, first frame)`` of every run that is not blank."""
    best = log_probs_TV.argmax(dim=-1).tolist()
    blank = log_probs_TV.shape[-1] - 1
    runs = [(token, frame) for frame, token in enumerate(best) if frame == 0 or token != best[frame - 1]]
    return [(token, frame) for token, frame in runs if token != blank]


def text_of(model, tokens):
    return model.tokenizer.ids_to_text(tokens) if hasattr(model, "tokenizer") else "".join(LETTERS[t] for t in tokens)


def texts(hypotheses):
    return [getattr(hypothesis, "text", hypothesis) for hypothesis in hypotheses]


# --- From a pre-trained model ----------------------------------------------------------------------------------------


@pytest.mark.unit
def test_it_is_a_stock_model_with_the_pretrained_encoder(ssl_path, tokenizer_dir):
    """Stock scripts choose the class by the target in the config, and beam search scripts by its very name."""
    pretrained = load_encoder(ssl_path).state_dict()
    for directory, kind, name in (
        (None, EncDecCTCModel, "ctc_models"),
        (tokenizer_dir, EncDecCTCModelBPE, "ctc_bpe_models"),
    ):
        model = ssl_to_ctc(str(ssl_path), directory and str(directory))
        assert type(model) is kind
        assert model.cfg.target == f"nemo.collections.asr.models.{name}.{kind.__name__}"
        found = model.encoder.state_dict()
        assert found.keys() == pretrained.keys() and all(torch.equal(found[key], pretrained[key]) for key in found)
        scratch = ssl_to_ctc(str(ssl_path), directory and str(directory), from_scratch=True).encoder.state_dict()
        matrices = [key for key, value in pretrained.items() if value.ndim > 1]
        assert len(matrices) > 20 and not any(torch.equal(scratch[key], pretrained[key]) for key in matrices)


@pytest.mark.unit
def test_letters_are_those_of_the_lexicon(letters_path):
    """The space is the word delimiter; the language model's lexicon spells words in these letters."""
    model = ASRModel.restore_from(str(letters_path), map_location="cpu")
    assert list(model.decoder.vocabulary) == [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]
    assert model.decoder.num_classes_with_blank == 29
    assert list(model.cfg.labels) == list(model.decoder.vocabulary)  # training data are spelled in this order


@pytest.mark.unit
def test_letters_of_another_language(ssl_path, waves, tmp_path):
    """They are what it transcribes with and what its training data are spelled in."""
    save_model(ssl_to_ctc(str(ssl_path), letters="abcäöüß"), tmp_path / "german.nemo")
    model = ASRModel.restore_from(str(tmp_path / "german.nemo"), map_location="cpu")
    assert list(model.decoder.vocabulary) == list(model.cfg.labels) == list(" abcäöüß")
    assert log_probs_of(model, waves[0])[0].shape[-1] == 9
    for letters in ("", "aba", "a b"):
        with pytest.raises(ValueError, match="give each letter once"):
            ssl_to_ctc(str(ssl_path), letters=letters)
    with pytest.raises(ValueError, match="no tokenizer with them"):
        ssl_to_ctc(str(ssl_path), "tokenizer", letters="abc")


@pytest.mark.unit
@pytest.mark.parametrize("letter", ["\t", "\u00a0", "|", " "])
def test_letters_that_no_lexicon_has_a_place_for(letter):
    """The lexicon of such a model was cut at its letter, or ended words there, when it had long been fine-tuned."""
    with pytest.raises(ValueError) as error:
        ssl_to_ctc("not read", letters=f"ab{letter}c")
    assert f"; [{letter!r}] cannot be among them: " in str(error.value)
    assert "no other white space can be written in a lexicon, where '|', as in other ecosys" in str(error.value)


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


@pytest.mark.unit
def test_saved_model_is_the_model(model, waves, tmp_path):
    """Weights and tokenizer survive the file: the same log-probabilities."""
    save_model(model, tmp_path / "again.nemo")
    again = ASRModel.restore_from(str(tmp_path / "again.nemo"), map_location="cpu")
    assert torch.equal(log_probs_of(again, waves[0])[0], log_probs_of(model, waves[0])[0])
    assert [file.name for file in tmp_path.iterdir()] == ["again.nemo"]  # no temporary file is left


@pytest.mark.unit
@pytest.mark.parametrize("missing", ["tokenizer.model", "vocab.txt"])
def test_a_folder_without_a_tokenizer_is_refused(ssl_path, tokenizer_dir, tmp_path, missing):
    for name in {"tokenizer.model", "vocab.txt"} - {missing}:
        (tmp_path / name).write_bytes((tokenizer_dir / name).read_bytes())
    with pytest.raises(FileNotFoundError, match=f"no {missing}. Make one with .*process_asr_text_tokenizer.py"):
        ssl_to_ctc(str(ssl_path), str(tmp_path))


# --- Other architectures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock_path(tmp_path_factory):
    """``.nemo`` of a CTC model with an encoder of NeMo's."""
    block = {"filters": 8, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1], "dropout": 0.0}
    modules = "nemo.collections.asr.modules."
    config = {
        "sample_rate": 16000,
        "labels": LETTERS,
        "preprocessor": {"_target_": f"{modules}AudioToMelSpectrogramPreprocessor", "features": 8},
        "encoder": {
            "_target_": f"{modules}ConvASREncoder",
            "activation": "relu",
            "feat_in": 8,
            "jasper": [{**block, "residual": False}],
        },
        "decoder": {
            "_target_": f"{modules}ConvASRDecoder",
            "feat_in": 8,
            "num_classes": len(LETTERS),
            "vocabulary": LETTERS,
        },
    }
    path = tmp_path_factory.mktemp("stock") / "stock.nemo"
    EncDecCTCModel(OmegaConf.create(config)).save_to(str(path))
    return str(path)


@pytest.mark.unit
def test_another_architecture_is_named(stock_path, ssl_path, letters_path, tmp_path):
    """Each script, given the file of another step: the message says what was expected, not a missing key."""
    for read in (ssl_to_ctc, load_encoder, read_nemo):
        with pytest.raises(ValueError, match="stock.nemo: its encoder is ConvASREncoder, expected MSHuBERTEncoder"):
            read(stock_path)
    with pytest.raises(ValueError, match="stock.nemo: expected a CTC model with an MSHuBERTEncoder.*ssl_to_ctc.py"):
        restore_for_finetuning(stock_path, OmegaConf.create(), None)
    with pytest.raises(ValueError, match="ssl.nemo: expected a CTC model with an MSHuBERTEncoder.*ssl_to_ctc.py"):
        restore_for_finetuning(str(ssl_path), OmegaConf.create(), None)
    (tmp_path / "broken.nemo").write_bytes(letters_path.read_bytes()[:5000])
    for function in (ssl_to_ctc, load_encoder, restore_model):
        with pytest.raises(ValueError, match="broken.nemo: cannot be restored as a NeMo model"):
            function(str(tmp_path / "broken.nemo"))
        with pytest.raises(FileNotFoundError, match="gone.nemo: no such file"):
            function(str(tmp_path / "gone.nemo"))
    with pytest.raises(ValueError, match="broken.nemo: cannot be restored as a NeMo model"):
        restore_for_finetuning(str(tmp_path / "broken.nemo"), OmegaConf.create(), None)
    with pytest.raises(FileNotFoundError, match="gone.nemo: no such file. Make it with scripts/ssl_to_ctc.py"):
        restore_for_finetuning(str(tmp_path / "gone.nemo"), OmegaConf.create(), None)


@pytest.mark.unit
def test_a_ctc_model_gives_its_encoder_too(letters_path, ssl_path):
    """Features of a fine-tuned model (analyses) and a second output layer on a fine-tuned encoder."""
    fine_tuned, pretrained = load_encoder(letters_path).state_dict(), load_encoder(ssl_path).state_dict()
    assert all(torch.equal(fine_tuned[key], pretrained[key]) for key in pretrained)


# --- Transcribing ----------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_transcribe_files_arrays_and_batches(model, waves, tmp_path):
    """All ways give what the log-probabilities of each utterance alone say, in order."""
    expected = []
    for wave in waves:
        (log_probs_TV,), _ = log_probs_of(model, wave)
        expected.append(text_of(model, [token for token, _ in collapse(log_probs_TV)]))
    assert all(expected) and len(set(expected)) == 3
    files = [str(tmp_path / f"{number}.wav") for number in range(3)]
    for file, wave in zip(files, waves):
        soundfile.write(file, wave, 16000, subtype="FLOAT")
    for audio in (waves, [torch.from_numpy(wave) for wave in waves], files):
        for batch_size in (1, 3):
            assert texts(model.transcribe(audio, batch_size=batch_size, verbose=False)) == expected
    assert texts(model.transcribe(files[0], verbose=False)) == expected[:1]
    assert texts(model.transcribe(waves[1], verbose=False)) == expected[1:2]


@pytest.mark.unit
def test_transcribe_in_bf16(model, waves):
    """Stock scripts cast the whole model and leave the audio in fp32; 8 bits of mantissa flip a few letters."""
    expected = texts(model.transcribe(waves, verbose=False))
    with_casts = model.to(torch.bfloat16)
    log_probs, _ = log_probs_of(with_casts, waves[0])
    assert log_probs.dtype == torch.bfloat16
    found = texts(with_casts.transcribe(waves, verbose=False))
    errors = sum(error_counts(one, other).errors for one, other in zip(expected, found))
    assert all(found) and errors < 0.1 * sum(map(len, expected))


@pytest.mark.unit
def test_timestamps_are_on_the_grid_of_the_frames(model, waves):
    """20 ms per frame: NeMo multiplies window_stride of the preprocessor with the encoder's subsampling.

    NeMo ends a character in the first frame of its token and begins it where the one before ended.
    """
    (hypothesis,) = model.transcribe(waves[:1], timestamps=True, verbose=False)
    (log_probs_TV,), frames = log_probs_of(model, waves[0])
    tokens = collapse(log_probs_TV)
    characters = hypothesis.timestamp["char"]
    assert len(characters) == len(tokens) > 10
    ends = [character["end"] for character in characters]
    assert ends == pytest.approx([FRAME_SECONDS * frame for _, frame in tokens], abs=1e-6)
    assert [character["start"] for character in characters[1:]] == pytest.approx(ends[:-1])
    assert 0.8 * len(waves[0]) / 16000 < max(ends) < FRAME_SECONDS * frames[0]
    words = hypothesis.timestamp["word"]
    assert " ".join(word["word"] for word in words).split() == hypothesis.text.split()


@pytest.mark.unit
@pytest.mark.parametrize("samples", [0, 1, 399, 400])
def test_short_audio_is_transcribed(model, waves, tmp_path, samples):
    """Files are passed as they are: below one frame (400 samples) the text is empty. Arrays NeMo pads to a second."""
    short = waves[0][:samples]
    soundfile.write(tmp_path / "short.wav", short, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "long.wav", waves[1], 16000, subtype="FLOAT")
    expected = texts(model.transcribe(waves[1:2], verbose=False))
    (alone,) = texts(model.transcribe(str(tmp_path / "short.wav"), verbose=False))
    files = [str(tmp_path / "short.wav"), str(tmp_path / "long.wav")]
    assert texts(model.transcribe(files, batch_size=2, verbose=False)) == [alone, *expected]
    assert alone == "" if samples < 400 else len(alone) <= 4  # one token at most
    padded = np.pad(short, ((16000 - samples) // 2, 16000 - samples - (16000 - samples) // 2))
    (log_probs_TV,), _ = log_probs_of(model, padded)
    assert texts(model.transcribe(short, verbose=False)) == [text_of(model, [t for t, _ in collapse(log_probs_TV)])]


@pytest.mark.unit
def test_no_audio_at_all_is_an_error(model):
    with pytest.raises(ValueError, match="empty"):
        model.transcribe([], verbose=False)


@pytest.mark.unit
@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_sample_rates_are_resampled(letters_path, tmp_path, rate):
    """NeMo resamples files; a model that took 8 kHz for 16 kHz would see half the frames."""
    model = ASRModel.restore_from(str(letters_path), map_location="cpu").eval()
    tone = 0.3 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate) + np.random.default_rng(0).normal(0, 0.01, rate)
    soundfile.write(tmp_path / "tone.wav", tone, rate, subtype="FLOAT")
    (hypothesis,) = model.transcribe(str(tmp_path / "tone.wav"), return_hypotheses=True, verbose=False)
    assert len(hypothesis.y_sequence) == frame_count(16000)


@pytest.mark.unit
def test_padded_batch_equals_every_utterance_alone(model, waves):
    """Word error rates must not depend on the batch size."""
    batch = [*waves, waves[0][:400], waves[0][:0]]
    log_probs, frames = log_probs_of(model, *batch)
    assert frames == [frame_count(len(wave)) for wave in batch]
    for row, wave, count in zip(log_probs[:-1], batch[:-1], frames[:-1]):
        alone, _ = log_probs_of(model, wave)
        torch.testing.assert_close(row[:count], alone[0], rtol=1e-4, atol=2e-4)  # sums in another order


# --- Stock features --------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_vocabulary_can_be_changed(letters_path, tokenizer_dir, bpe_path, waves):
    """Stock speech_to_text_finetune.py does it for another language: a new output layer on the same encoder."""
    model = ASRModel.restore_from(str(letters_path), map_location="cpu")
    before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    model.change_vocabulary([" ", "ä", "ö"])
    log_probs, _ = log_probs_of(model, waves[0])
    assert log_probs.shape[-1] == 4
    assert all(torch.equal(value, before[key]) for key, value in model.encoder.state_dict().items())
    assert set(texts(model.transcribe(waves[:1], verbose=False))[0]) <= set(" äö")
    subwords = ASRModel.restore_from(str(bpe_path), map_location="cpu")
    subwords.change_vocabulary(str(tokenizer_dir), "bpe")
    assert log_probs_of(subwords, waves[0])[0].shape[-1] == 41


def batch_of(waves):
    length = torch.tensor([len(wave) for wave in waves])
    audio = torch.zeros(len(waves), int(length.max()))
    for row, wave in zip(audio, waves):
        row[: len(wave)] = torch.from_numpy(wave)
    return audio, length, torch.tensor([[20, 8, 5], [1, 2, 0], [26, 3, 3]]), torch.tensor([3, 2, 3])


def one_step(model, batch):
    """Metrics of one update of the stock training step, and the gradient of each parameter."""
    gradients = {}

    class Recorder(pl.Callback):
        def on_after_backward(self, trainer, module):
            gradients.update({name: p.grad is not None and p.grad.clone() for name, p in module.named_parameters()})

    trainer = quiet_trainer(callbacks=[Recorder()], max_steps=1, log_every_n_steps=1)
    model.set_trainer(trainer)
    model.setup_optimization({"name": "sgd", "lr": 0.0})
    model._train_dl = torch.utils.data.DataLoader([batch], batch_size=None)
    trainer.fit(model.train())
    return trainer.callback_metrics, gradients


def slow_ctc(log_probs_TV, targets):
    """Minus the log of the sum over all alignments, by the textbook's forward variables."""
    blank = log_probs_TV.shape[-1] - 1
    states = [blank]
    for target in targets:
        states += [target, blank]
    alpha = [log_probs_TV[0, states[0]], log_probs_TV[0, states[1]]]
    alpha += [torch.tensor(-torch.inf)] * (len(states) - 2)
    for frame in log_probs_TV[1:]:
        previous, alpha = alpha, []
        for index, state in enumerate(states):
            ways = [previous[index]] + ([previous[index - 1]] if index > 0 else [])
            if index > 1 and state != blank and state != states[index - 2]:
                ways.append(previous[index - 2])
            alpha.append(torch.logsumexp(torch.stack(ways), 0) + frame[state])
    return -torch.logsumexp(torch.stack(alpha[-2:]), 0)


@pytest.mark.unit
def test_training_step_is_ctc_of_every_utterance_alone(tiny_ctc, waves):
    """Loss of the stock training step: blank last, padding ignored, the mean over utterances; every weight learns."""
    model = tiny_ctc()
    batch = batch_of(waves)
    metrics, gradients = one_step(model, batch)
    expected = []
    for wave, targets, count in zip(waves, batch[2].tolist(), batch[3].tolist()):
        (log_probs_TV,), _ = log_probs_of(model, wave)
        expected.append(slow_ctc(log_probs_TV, targets[:count]))
    assert metrics["train_loss"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert [name for name, gradient in gradients.items() if gradient is False] == []
    constant = [name for name, gradient in gradients.items() if not gradient.any()]
    assert constant == ["encoder.mask_embedding"]  # nothing is masked here


@pytest.mark.unit
def test_intermediate_ctc_losses(tiny_ctc, waves):
    """``interctc`` of NeMo's configs: the losses of the blocks it names (from 0); the other weight to the last."""
    interctc = {"interctc": {"loss_weights": [0.2, 0.3], "apply_at_layers": [0, 2]}}
    model = tiny_ctc(interctc)
    batch = batch_of(waves)
    result, _ = one_step(model, batch)
    model.eval()
    with torch.no_grad():
        hidden, frames = model.encoder.hidden_states(batch[0][:, None], batch[1])
        losses = []
        for block in (1, 3, 4):  # from 1
            log_probs = model.decoder(encoder_output=hidden[block].transpose(1, 2))
            losses.append(
                torch.nn.functional.ctc_loss(
                    log_probs.transpose(0, 1), batch[2], frames, batch[3], blank=28, reduction="none"
                ).mean()
            )
    assert len({round(loss.item(), 2) for loss in losses}) == 3
    expected = 0.2 * losses[0] + 0.3 * losses[1] + 0.5 * losses[2]
    assert result["train_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert result["inter_ctc_loss_l2"].item() == pytest.approx(losses[1].item(), rel=1e-4)


@pytest.mark.integration
def test_onnx_takes_raw_waveforms_of_any_size(tiny_ctc, waves, tmp_path):
    """The exported graph: any batch, any length, padding and an empty row, as in torch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny_ctc()
    model.export(str(tmp_path / "ctc.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "ctc.onnx"), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    for batch in ([waves[0]], [waves[1], waves[0], waves[2]], [waves[0][:400]], [waves[0], waves[0][:0]]):
        audio, length = torch.zeros(len(batch), 1, max(map(len, batch))), [len(wave) for wave in batch]
        for row, wave in zip(audio, batch):
            row[0, : len(wave)] = torch.from_numpy(wave)
        found = session.run(None, dict(zip(names, (audio.numpy(), np.array(length)))))[0]
        expected, frames = log_probs_of(model, *batch)
        assert found.shape == expected.shape
        for row, other, count in zip(found, expected, frames):
            np.testing.assert_allclose(row[:count], other[:count].numpy(), rtol=1e-3, atol=1e-3)


# --- Fine-tuning -----------------------------------------------------------------------------------------------------


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
def test_options_of_finetuning_replace_those_of_the_file(path, overrides):
    """Masks, dropouts, frozen front end, data and optimizer are the experiment's; the rest is the file's."""
    trainer = quiet_trainer(max_steps=10)
    model = restore_for_finetuning(str(path), overrides, trainer)
    original = ASRModel.restore_from(str(path), map_location="cpu")
    assert type(model) is type(original)
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

    signal, length, tokens, token_counts = next(iter(model._train_dl))[:4]
    assert signal.shape[0] == len(length) == 2
    references = {line.split('"text": "')[1].split('"')[0] for line in open(overrides.train_ds.manifest_filepath)}
    for row, count in zip(tokens.tolist(), token_counts.tolist()):
        spelled = text_of(model, row[:count])
        assert spelled in references if "letters" in str(path) else spelled  # 40 pieces lack some letters
    restored_again = ModelPT.restore_from(str(path), map_location="cpu")  # the file itself is as it was
    assert restored_again.cfg.encoder.layerdrop == 0.0 and isinstance(restored_again.encoder, MSHuBERTEncoder)


@pytest.mark.integration
def test_the_seed_orders_the_data_and_nothing_else_does(letters_path, overrides):
    """Fine-tunings over seeds were one, and ranks of which one had drawn a number had other batches: DDP would hang."""
    overrides.train_ds.batch_size = 2

    def batches(seed):
        overrides.train_ds.seed = seed
        trainer = quiet_trainer(max_steps=10)
        loader = restore_for_finetuning(str(letters_path), overrides, trainer)._train_dl
        return [batch[1].tolist() for batch in loader]

    first = batches(1)
    random.random()
    assert batches(1) == first != batches(2)


@pytest.mark.unit
@pytest.mark.parametrize("training", [False, True])
def test_transcribe_leaves_the_mode_of_the_encoder(path, waves, training):
    """NeMo's leaves it in training mode: masks and layerdrop would be in every forward pass behind it."""
    model = ASRModel.restore_from(str(path), map_location="cpu").train(training)
    model.transcribe(waves[:1], verbose=False)
    assert model.encoder.training == training


@pytest.mark.unit
def test_a_frozen_encoder_goes_back_to_training(tiny_encoder):
    """In between it may transcribe; only then it may be left in evaluation mode."""
    encoder = tiny_encoder().train()
    encoder.freeze()
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    encoder.unfreeze(partial=True)
    assert encoder.training and all(module.training for module in encoder.modules())
    encoder.eval()
    with encoder.as_frozen():
        pass
    assert not encoder.training
    encoder.train().freeze()
    encoder.eval()  # whoever says so means it
    encoder.unfreeze(partial=True)
    assert not encoder.training


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


class HeardToTheEnd(Heard):
    """As NeMo's own callback, which saves once more when all updates are made."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / "end.ckpt")


@pytest.mark.integration
def test_a_finished_fine_tuning_goes_on_in_its_data(letters_path, overrides, tmp_path):
    """With more max_updates. Lightning takes the end of the updates for that of the epoch, so the rest of the epoch and
    the first batches of the next were left out."""

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
    """Preempted on two GPUs and resumed on one, it would hear half of the epoch twice; the other way round, leave out a
    part."""

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
        trainer = quiet_trainer(max_steps=10, limit_train_batches=1000000000)  # as in conf/finetune
        trainer.ckpt_path = checkpoint
        loader = iter(restore_for_finetuning(str(letters_path), overrides, trainer)._train_dl)
        return [next(loader)[2].tolist() for _ in range(3)]

    first = first_batches(None)
    assert first == first_batches(None) != first_batches("run--val_wer=0.5-step=10-last.ckpt")


@pytest.mark.integration
def test_letters_of_a_changed_vocabulary(letters_path, overrides, tmp_path):
    """NeMo's change_vocabulary leaves cfg.labels as it was: letters were trained as their neighbours."""
    model = ASRModel.restore_from(str(letters_path), map_location="cpu")
    model.change_vocabulary(new_vocabulary=[" ", "'", *string.ascii_lowercase])  # the same in another order
    model.save_to(str(tmp_path / "changed.nemo"))
    trainer = quiet_trainer(max_steps=10)
    model = restore_for_finetuning(str(tmp_path / "changed.nemo"), overrides, trainer)
    references = {line.split('"text": "')[1].split('"')[0] for line in open(overrides.train_ds.manifest_filepath)}
    for batch in model._train_dl:
        for row, count in zip(batch[2].tolist(), batch[3].tolist()):
            assert "".join(model.decoder.vocabulary[token] for token in row[:count]) in references


@pytest.mark.unit
def test_random_weights_differ_by_seed(ssl_path):
    """`ssl_to_ctc.py --seed`: restoring the pre-trained model seeded PyTorch anew, so all baselines were one."""
    weights = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        weights.append(ssl_to_ctc(str(ssl_path), from_scratch=True).encoder.state_dict())
    matrix = "layers.0.feed_forward.intermediate_dense.weight"
    matrix = matrix if matrix in weights[0] else next(n for n, value in weights[0].items() if value.ndim == 2)
    assert torch.equal(weights[0][matrix], weights[2][matrix]) and not torch.equal(
        weights[0][matrix], weights[1][matrix]
    )


@pytest.mark.integration
def test_an_unknown_option_of_the_encoder_is_refused(letters_path, overrides):
    """A misspelt option would otherwise be a hyper-parameter search over nothing."""
    overrides.encoder.mask_probability = 0.5
    with pytest.raises(ValueError, match=r"model.encoder: MSHuBERTEncoder has no options \['mask_probability'\]"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=10))


@pytest.mark.integration
def test_options_of_neither_fine_tuning_nor_nemo_are_refused(letters_path, overrides):
    """They were left out without a word: a model trained on scaled audio would have been fine-tuned on other audio."""
    overrides.preprocessor = {"normalize": "per_feature"}
    with pytest.raises(ValueError, match=r"model: fine-tuning has no options \['preprocessor'\]"):
        restore_for_finetuning(str(letters_path), overrides, quiet_trainer(max_steps=10))


@pytest.mark.integration
def test_rates_by_part_and_losses_of_blocks_below(letters_path, overrides):
    """NeMo's own options, which were left out without a word."""
    overrides.optim_param_groups = {"encoder": {"lr": 0.5}}
    overrides.interctc = {"loss_weights": [0.3], "apply_at_layers": [1]}
    trainer = quiet_trainer(max_steps=10)
    model = restore_for_finetuning(str(letters_path), overrides, trainer)
    assert sorted(group["initial_lr"] for group in model._optimizer.param_groups) == [0.125, 0.5]
    assert model.is_interctc_enabled()


@pytest.mark.integration
def test_fine_tuning_without_validation(letters_path, overrides):
    """validation_manifest=null, which pre-training takes, ended in a TypeError."""
    overrides.validation_ds.manifest_filepath = None
    trainer = quiet_trainer(max_steps=1)
    model = restore_for_finetuning(str(letters_path), overrides, trainer)
    trainer.fit(model)
    assert trainer.global_step == 1
