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

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from nemo.collections.asr.models import ASRModel, EncDecCTCModel, EncDecCTCModelBPE
from omegaconf import OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.convert.nemo import read_nemo
from nemo_mshubert.decoding.error_rates import error_counts
from nemo_mshubert.models.ctc import ssl_to_ctc
from nemo_mshubert.models.finetuning import restore_for_finetuning
from nemo_mshubert.models.loading import load_encoder, restore_model, save_model
from nemo_mshubert.modules.frames import frame_count
from tests.conftest import quiet_trainer

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


def pad_batch(waves):
    """Samples ``[B, S]`` and counts ``[B]``."""
    rows = [torch.as_tensor(wave) for wave in waves]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def log_probs_of(model, *waves):
    """Log-probabilities ``[B, T, V + 1]`` and frame counts of one padded batch."""
    audio, length = pad_batch(waves)
    with torch.no_grad():
        log_probs, frames, _ = model.eval()(input_signal=audio, input_signal_length=length)
    return log_probs, frames.tolist()


def collapse(log_probs_TV):
    """Greedy CTC by hand: ``(token, first frame)`` of every run that is not blank."""
    best = log_probs_TV.argmax(dim=-1).tolist()
    blank = log_probs_TV.shape[-1] - 1
    runs = [(token, frame) for frame, token in enumerate(best) if frame == 0 or token != best[frame - 1]]
    return [(token, frame) for token, frame in runs if token != blank]


def text_of(model, tokens):
    return (
        model.tokenizer.ids_to_text(tokens)
        if hasattr(model, "tokenizer")
        else "".join(ENGLISH_LABELS[t] for t in tokens)
    )


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
        baseline = ssl_to_ctc(str(ssl_path), directory and str(directory), from_scratch=True)
        assert "pretraining_labels" in model.cfg and "pretraining_labels" not in baseline.cfg  # for the model card
        scratch = baseline.encoder.state_dict()
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
    with pytest.raises(ValueError, match=r"\['a', '\\u0308'\] are there twice"):  # which look like two letters
        ssl_to_ctc(str(ssl_path), letters="ba\u0308oa\u0308")
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


# --- Other architectures ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock_path(tmp_path_factory):
    """``.nemo`` of a CTC model with an encoder of NeMo's."""
    block = {"filters": 8, "repeat": 1, "kernel": [3], "stride": [1], "dilation": [1], "dropout": 0.0}
    modules = "nemo.collections.asr.modules."
    config = {
        "sample_rate": 16000,
        "labels": ENGLISH_LABELS,
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
            "num_classes": len(ENGLISH_LABELS),
            "vocabulary": ENGLISH_LABELS,
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
        with pytest.raises(ValueError, match="broken.nemo: cannot be restored as a NeMo model.*copied whole"):
            function(str(tmp_path / "broken.nemo"))
        with pytest.raises(FileNotFoundError, match="gone.nemo: no such file"):
            function(str(tmp_path / "gone.nemo"))
    with pytest.raises(ValueError, match="broken.nemo: cannot be restored as a NeMo model.*copied whole"):
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
    return *pad_batch(waves), torch.tensor([[20, 8, 5], [1, 2, 0], [26, 3, 3]]), torch.tensor([3, 2, 3])


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
        audio, length = pad_batch(batch)
        found = session.run(None, dict(zip(names, (audio[:, None].numpy(), length.numpy()))))[0]
        expected, frames = log_probs_of(model, *batch)
        assert found.shape == expected.shape
        for row, other, count in zip(found, expected, frames):
            np.testing.assert_allclose(row[:count], other[:count].numpy(), rtol=1e-3, atol=1e-3)


# --- Modes of the encoder --------------------------------------------------------------------------------------------


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
    encoder.train().freeze()
    encoder.freeze()  # twice is once
    encoder.unfreeze(partial=True)
    assert encoder.training
    encoder.eval().freeze()
    encoder.train()  # this, too
    encoder.unfreeze(partial=True)
    assert encoder.training
    encoder.eval().freeze()
    encoder.unfreeze()
    assert encoder.training  # as NeMo's
