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

"""Converted models in the pipeline: the `.nemo` is taken by the same commands as our own."""

import json
import runpy
from types import SimpleNamespace

import pytest
import torch
from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig
from omegaconf import OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.convert import conversion
from nemo_mshubert.convert.checkpoint import PredictionHead
from nemo_mshubert.convert.conversion import read_checkpoint, write_checkpoint
from nemo_mshubert.convert.huggingface import read_huggingface
from nemo_mshubert.convert.model_card import Facts
from nemo_mshubert.convert.publishing import publish
from nemo_mshubert.decoding.evaluation import load_ctc_model
from nemo_mshubert.models.ctc import ssl_to_ctc
from nemo_mshubert.models.loading import load_encoder, restore_model, save_model
from tests.conftest import REPOSITORY
from tests.convert.conftest import ENGLISH, FAMILIES, assert_same_weights


@pytest.mark.unit
@pytest.mark.parametrize("family", ["hubert-base", "wav2vec2-lv60k", "wavlm-large", "data2vec-audio"])
def test_round_trip_is_bit_equal(peer, save_peer, tmp_path, family):
    """Into a `.nemo` and out again; the encoder loads as label.py and fit_kmeans.py load it."""
    checkpoint = read_huggingface(save_peer(peer(family), family))
    said = write_checkpoint(checkpoint, tmp_path / "model.nemo")
    assert "output layer random" in said
    assert_same_weights(load_encoder(tmp_path / "model.nemo").state_dict(), checkpoint.weights)
    model = restore_model(tmp_path / "model.nemo")
    assert list(model.decoder.vocabulary) == ENGLISH_LABELS
    assert model.preprocessor.normalized is FAMILIES[family][2]
    again = read_checkpoint(tmp_path / "model.nemo")
    assert_same_weights(again.weights, checkpoint.weights)
    written = {key: again.encoder[key] for key in checkpoint.encoder}
    assert written == checkpoint.encoder and again.normalize == checkpoint.normalize


@pytest.mark.unit
def test_letters_of_a_ctc_model_in_nemos_order(peer, save_peer, tmp_path, audio):
    """A converted CTC model transcribes at once: its log-probabilities are those of transformers, reordered."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=32, pad_token_id=0)
    with torch.no_grad():
        theirs.lm_head.bias[1:4] = -1e4  # as after training: special symbols never win
    checkpoint = read_huggingface(save_peer(theirs, "hubert-base", ENGLISH))
    assert "28 letters, its output layer converted" in write_checkpoint(checkpoint, tmp_path / "ctc.nemo")
    model = restore_model(tmp_path / "ctc.nemo").eval()
    signal, length = audio[0][:1], audio[1][:1]
    with torch.no_grad():
        ours, _, _ = model(input_signal=signal, input_signal_length=length)
        expected = theirs(signal).logits.log_softmax(-1)
    rows = [ENGLISH.index(label.upper().replace(" ", "|")) for label in model.decoder.vocabulary] + [0]
    torch.testing.assert_close(ours, expected[..., rows], rtol=1e-4, atol=1e-4)
    again = read_checkpoint(tmp_path / "ctc.nemo").ctc.letters()
    assert again.labels == ENGLISH_LABELS and torch.equal(again.weight, checkpoint.ctc.letters().weight)


@pytest.mark.unit
def test_letters_of_another_language(peer, save_peer, tmp_path):
    """Not the English ones, to which its rows would not fit."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=4, pad_token_id=0)
    checkpoint = read_huggingface(save_peer(theirs, "hubert-base", ["<pad>", "|", "Ö", "B"]))
    said = write_checkpoint(checkpoint, tmp_path / "ctc.nemo")
    assert said == "CTC over 3 letters, its output layer converted"
    model = restore_model(tmp_path / "ctc.nemo")
    assert list(model.decoder.vocabulary) == [" ", "b", "ö"]
    assert torch.equal(model.decoder.decoder_layers[0].weight[..., 0], theirs.lm_head.weight[[1, 3, 2, 0]])


@pytest.mark.unit
def test_a_model_without_letters_is_the_same_each_time(folder, ssl_path, monkeypatch):
    """Or two fine-tunings of it could not be compared. The caller's own random numbers stay, too; what was assumed is
    logged; the preprocessor is that of our configs, by which NeMo computes the times of words."""
    (folder / "preprocessor_config.json").unlink()
    said = []
    monkeypatch.setattr(conversion, "logging", SimpleNamespace(warning=said.append))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model = restore_model(folder)
    assert torch.equal(torch.rand(4), expected)
    assert_same_weights(restore_model(folder).state_dict(), model.state_dict())
    assumed, output_layer = said[:2]
    assert assumed.startswith(f"{folder}: assumed raw audio")
    assert output_layer == f"{folder}: CTC over 28 letters, its output layer random: fine-tune it before decoding"
    assert model.cfg.preprocessor == {**restore_model(ssl_path).cfg.preprocessor, "normalize": None}


@pytest.mark.unit
@pytest.mark.parametrize("letters", ["ABCÄ'", "abcA"])
def test_letters_of_a_nemo_stay_as_they_are(ssl_path, tmp_path, letters):
    """A model that writes capitals would write small letters elsewhere, which count as errors in its references."""
    save_model(ssl_to_ctc(str(ssl_path), letters=letters), tmp_path / "capitals.nemo")
    head = read_checkpoint(tmp_path / "capitals.nemo").ctc.letters()
    assert sorted(head.labels) == sorted(" " + letters)
    model = restore_model(tmp_path / "capitals.nemo")
    rows = [list(model.decoder.vocabulary).index(label) for label in head.labels]
    assert torch.equal(head.weight[:-1], model.decoder.decoder_layers[0].weight[rows, :, 0])
    write_checkpoint(read_checkpoint(tmp_path / "capitals.nemo"), tmp_path / "theirs")
    vocabulary = json.loads((tmp_path / "theirs" / "vocab.json").read_text(encoding="utf-8"))
    assert set(vocabulary) == {"<pad>", "|", *letters}


@pytest.mark.unit
def test_ssl_to_ctc_takes_a_converted_model(peer, save_peer, tmp_path):
    checkpoint = read_huggingface(save_peer(peer("wavlm-base"), "wavlm-base"))
    write_checkpoint(checkpoint, tmp_path / "wavlm.nemo")
    model = ssl_to_ctc(str(tmp_path / "wavlm.nemo"))
    assert_same_weights(model.encoder.state_dict(), checkpoint.weights)
    save_model(model, tmp_path / "ctc.nemo")
    assert_same_weights(load_encoder(tmp_path / "ctc.nemo").state_dict(), checkpoint.weights)


@pytest.mark.unit
def test_a_nemo_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.nemo").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="model.nemo: cannot be restored"):
        read_checkpoint(tmp_path / "model.nemo")


@pytest.mark.unit
def test_an_output_layer_over_other_tokens_is_said_to_be_lost(peer, save_peer, bpe_path, tmp_path):
    """Nothing said so; and the random one in its place could be evaluated."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=4, pad_token_id=0)
    folder = save_peer(theirs, "hubert-base", ["<pad>", "|", "aa", "b"])
    checkpoint = read_huggingface(folder)
    assert (
        "random: fine-tune it before decoding (the one of the checkpoint is over tokens of several characters ('aa'))"
        in (write_checkpoint(checkpoint, tmp_path / "ours.nemo"))
    )
    assert write_checkpoint(checkpoint, tmp_path / "ours").endswith("over tokens of several characters ('aa') dropped")
    with pytest.raises(ValueError, match="peer: has no output layer over letters.*Fine-tune it"):
        load_ctc_model(str(folder), "cpu")
    (note,) = read_checkpoint(bpe_path).notes
    assert note == "its output layer is over word pieces, which only .nemo files have a place for"


@pytest.mark.unit
def test_adapters_have_no_place_elsewhere(letters_path, tmp_path):
    """The error was about surplus tensors, or torch's own."""
    model = restore_model(letters_path)
    model.add_adapter("encoder:german", OmegaConf.structured(LinearAdapterConfig(in_features=24, dim=4)))
    save_model(model, tmp_path / "adapted.nemo")
    with pytest.raises(ValueError, match=r"adapted.nemo: has adapters \(german\), for which no other format"):
        read_checkpoint(tmp_path / "adapted.nemo")
    with pytest.raises(ValueError, match=r"adapted.nemo: has adapters \(german\), which a new model"):
        ssl_to_ctc(str(tmp_path / "adapted.nemo"))
    facts = Facts("cc-by-4.0", ["synthetic speech"], "en", {})
    assert publish(tmp_path / "adapted.nemo", tmp_path / "published", facts) == ["README.md", "published.nemo"]


@pytest.mark.unit
def test_heads_without_a_place_are_said_to_be_dropped(folder, tmp_path):
    checkpoint = read_huggingface(folder)
    checkpoint.prediction_heads = [PredictionHead(torch.randn(8, 24), torch.randn(8), torch.rand(10, 8))]
    assert "1 prediction heads dropped" in write_checkpoint(checkpoint, tmp_path / "ours")
    assert write_checkpoint(checkpoint, tmp_path / "ours.pt").endswith("1 prediction heads")
    assert "1 prediction heads dropped" in write_checkpoint(checkpoint, tmp_path / "ours.nemo")


@pytest.mark.integration
def test_prediction_heads_of_our_pretraining_model(tiny_config, tmp_path):
    """Our own model in fairseq's layout: all heads, bit by bit."""
    from nemo_mshubert.models import MSHuBERTModel

    model = MSHuBERTModel(tiny_config().model)
    save_model(model, tmp_path / "ssl.nemo")
    write_checkpoint(read_checkpoint(tmp_path / "ssl.nemo"), tmp_path / "ssl.pt")
    heads = read_checkpoint(tmp_path / "ssl.pt").prediction_heads
    assert len(heads) == len(model.label_heads.heads)
    for head, ours in zip(heads, model.label_heads.heads.values()):
        assert torch.equal(head.weight, ours.final_proj.weight) and torch.equal(head.bias, ours.final_proj.bias)
        assert torch.equal(head.embeddings, ours.label_embeddings)


@pytest.mark.unit
def test_command_line(folder, tmp_path, monkeypatch, capsys):
    """The script prints what it wrote and assumed, and fails with the name of what is wrong."""
    monkeypatch.chdir(tmp_path)

    def convert(*arguments):
        monkeypatch.setattr("sys.argv", ["convert_checkpoint.py", *map(str, arguments)])
        runpy.run_path(str(REPOSITORY / "scripts" / "convert_checkpoint.py"), run_name="__main__")
        return capsys.readouterr().out

    assert "wrote hubert.pt: fairseq encoder" in convert("--input", folder, "--output", "hubert.pt")
    convert("--input", "hubert.pt", "--from", "fairseq", "--output", "again", "--to", "huggingface")
    assert_same_weights(read_huggingface(tmp_path / "again").weights, read_huggingface(folder).weights)
    with pytest.raises(ValueError, match="again: a folder; name the file of fairseq in it"):
        convert("--input", "again", "--from", "fairseq", "--output", "x.nemo")
    (tmp_path / "again" / "again.nemo").write_bytes(b"beside it, as published")
    convert("--input", "again", "--from", "huggingface", "--output", "chosen", "--to", "huggingface")
    assert_same_weights(read_huggingface(tmp_path / "chosen").weights, read_huggingface(folder).weights)
    (folder / "preprocessor_config.json").unlink()
    assert "note: assumed raw audio" in convert("--input", folder, "--output", "hubert.nemo")
    with pytest.raises(ValueError, match="unknown tensors"):
        convert("--input", "hubert.pt", "--from", "torchaudio", "--output", "x.nemo")
    assert not (tmp_path / "x.nemo").exists()
