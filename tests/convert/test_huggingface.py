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

"""Hugging Face folders: equal hidden states in, loadable classes out, nothing lost in between."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nemo_mshubert.convert.checkpoint import CtcHead
from nemo_mshubert.convert.huggingface import read_huggingface, write_huggingface
from tests.convert.conftest import ENGLISH, FAMILIES, assert_same_weights, make_encoder

# --- In --------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_transformers(peer, save_peer, difference, family):
    """Every peer that the paper compares."""
    theirs = peer(family)
    checkpoint = read_huggingface(save_peer(theirs, family))
    assert difference(checkpoint, theirs) < 1e-4
    assert checkpoint.normalize is FAMILIES[family][2]
    assert checkpoint.ctc is None and checkpoint.notes == []


BASE = {
    "hubert": dict(num_attention_heads=12),
    "wav2vec2": {},
    "wavlm": {},
    "data2vec-audio": dict(conv_bias=False),
}


@pytest.mark.unit
@pytest.mark.parametrize("model_type", BASE)
def test_base_size_equals_transformers(model_type, tmp_path):
    """The sizes of published weights: every hidden state, of an utterance alone and of one padded in a batch."""
    torch.manual_seed(3)
    theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type, **BASE[model_type]))
    theirs.eval().save_pretrained(tmp_path)
    checkpoint = read_huggingface(tmp_path)
    assert checkpoint.encoder["num_heads"] == 12 and checkpoint.encoder["conv_layers"][0] == [512, 10, 5]
    encoder, signal = make_encoder(checkpoint), torch.randn(2, 5000)
    signal[1, 4000:] = 0
    with torch.no_grad():
        padded, frames = encoder.hidden_states(signal[:, None], torch.tensor([5000, 4000]))
        alone, _ = encoder.hidden_states(signal[1:, None, :4000], torch.tensor([4000]))
        expected = theirs(signal[1:, :4000], output_hidden_states=True).hidden_states
    assert len(alone) == len(padded) == len(expected) == 13 and frames.tolist() == [15, 12]
    for ours, ours_padded, other in zip(alone, padded, expected):
        assert (ours - other).abs().max() < 1e-4
        assert (ours_padded[1, :12] - other[0]).abs().max() < 1e-4


@pytest.mark.unit
@pytest.mark.parametrize("family", ["hubert-large", "wav2vec2-lv60k", "wavlm-large"])
def test_padded_batches_equal_theirs(peer, save_peer, audio, family):
    """Their own padded batches, where their models are made for them: with LayerNorms in the front end and a mask."""
    theirs, (signal, length) = peer(family), audio
    encoder = make_encoder(read_huggingface(save_peer(theirs, family)))
    mask = (torch.arange(signal.shape[1]) < length[:, None]).long()
    with torch.no_grad():
        states, frames = encoder.hidden_states(signal[:, None], length)
        expected = theirs(signal, attention_mask=mask).last_hidden_state
    for ours, other, count in zip(states[-1], expected, frames):
        assert (ours[:count] - other[:count]).abs().max() < 1e-4


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["ForCTC", "ForPreTraining"])
def test_encoder_of_other_classes(peer, save_peer, difference, kind):
    """Prefixes are stripped; wav2vec 2.0's quantiser has no place here and is named as dropped."""
    theirs = peer("wav2vec2-base", kind)
    checkpoint = read_huggingface(save_peer(theirs, "wav2vec2-base"))
    assert difference(checkpoint, theirs.wav2vec2) < 1e-4
    if kind == "ForPreTraining":
        assert "quantizer.codevectors" in checkpoint.notes[0]
    else:
        assert checkpoint.ctc.tokens is None and checkpoint.ctc.letters() is None


@pytest.mark.unit
@pytest.mark.parametrize("spelling", ["bin", "weight_g", "sharded", "half"])
def test_files_of_older_versions(peer, folder, spelling):
    """Both weight norms, pickled and sharded weights; half precision becomes fp32."""
    expected = read_huggingface(folder).weights
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if spelling == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif spelling == "sharded":
        names = sorted(state)
        shards = {"model-00001-of-00002.safetensors": names[:20], "model-00002-of-00002.safetensors": names[20:]}
        for shard, part in shards.items():
            save_file({name: state[name] for name in part}, folder / shard)
        index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif spelling == "half":
        expected = {name: tensor.half().float() for name, tensor in expected.items()}
        save_file({name: tensor.half() for name, tensor in state.items()}, folder / "model.safetensors")
    else:
        old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        for new, name in old.items():
            key = f"encoder.pos_conv_embed.conv.{new}"
            if key in state:
                state[f"encoder.pos_conv_embed.conv.{name}"] = state.pop(key)
        assert "encoder.pos_conv_embed.conv.weight_g" in state
        save_file(state, folder / "model.safetensors")
    assert_same_weights(read_huggingface(folder).weights, expected)


@pytest.mark.unit
def test_mask_embedding_may_be_absent_where_the_config_masks_nothing(peer, save_peer):
    """transformers creates none for models that are fine-tuned without masks."""
    checkpoint = read_huggingface(save_peer(peer("hubert-base", mask_time_prob=0.0), "hubert-base"))
    assert 0 <= checkpoint.weights["mask_embedding"].min() < checkpoint.weights["mask_embedding"].max() < 1
    assert "random mask embedding" in checkpoint.notes[0]


@pytest.mark.unit
def test_letters_of_a_ctc_model(peer, save_peer, audio):
    """NeMo's order, lower case, the blank last; logits of a letter stay its own."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=32, pad_token_id=0)
    checkpoint = read_huggingface(save_peer(theirs, "hubert-base", ENGLISH))
    letters = checkpoint.ctc.letters()
    assert letters.labels == [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]
    with torch.no_grad():
        hidden = theirs.hubert(audio[0][:1]).last_hidden_state
        expected, ours = theirs.lm_head(hidden), hidden @ letters.weight.T + letters.bias
    assert torch.allclose(ours[..., -1], expected[..., 0], atol=1e-5)
    for row, token in enumerate(ENGLISH[4:], start=4):
        label = token.replace("|", " ").lower()
        assert torch.allclose(ours[..., letters.labels.index(label)], expected[..., row], atol=1e-5), token


@pytest.mark.unit
@pytest.mark.parametrize("marker", ["<mask>", "[MASK]"])
def test_markers_are_no_letters(peer, save_peer, marker):
    """One of them, and the trained output layer was replaced by a random one."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=33, pad_token_id=0)
    letters = read_huggingface(save_peer(theirs, "hubert-base", [*ENGLISH, marker])).ctc.letters()
    assert letters.labels == [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]


@pytest.mark.unit
def test_rows_are_those_of_the_tokenizer(peer, save_peer):
    """As notebooks fine-tune: [PAD] last, a space of its own, a letter added later. Other rows write other letters."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=8, pad_token_id=0)  # stale: "b" is there
    folder = save_peer(theirs, "hubert-base")
    vocabulary = {token: row for row, token in enumerate(["b", "a", "_", "[UNK]", "[PAD]"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    names = dict(unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="_")
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **names)
    tokenizer.add_tokens(["ö"])  # behind <s> and </s>, and in no vocab.json
    tokenizer.save_pretrained(folder)
    letters = read_huggingface(folder).ctc.letters()
    assert letters.labels == [" ", "a", "b", "ö"]
    rows = tokenizer.convert_tokens_to_ids(["_", "a", "b", "ö", "[PAD]"])
    assert rows == [2, 1, 0, 7, 4]
    assert torch.equal(letters.weight, theirs.lm_head.weight[rows])
    assert torch.equal(letters.bias, theirs.lm_head.bias[rows])


@pytest.mark.unit
def test_the_blank_is_the_pad_that_the_tokenizer_added(peer, save_peer):
    """A vocabulary without one, and a config of before: "b" became the blank, and was in no text."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=8, pad_token_id=0)
    folder = save_peer(theirs, "hubert-base")
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(["b", "a", "|", "c"])}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id > 3
    letters = read_huggingface(folder).ctc.letters()
    assert letters.labels == [" ", "a", "b", "c"]
    assert torch.equal(letters.weight[-1], theirs.lm_head.weight[tokenizer.pad_token_id])


@pytest.mark.unit
def test_names_in_the_tokenizer_and_the_blank_in_the_config(peer, save_peer):
    """UNK is of no letters although it looks so; the pad token is in no file; the last row has no token at all. Read
    otherwise, the trained output layer would be replaced by a random one, or another row would be the blank."""
    theirs = peer("hubert-base", "ForCTC", vocab_size=6, pad_token_id=3)
    folder = save_peer(theirs, "hubert-base")
    vocabulary = {token: row for row, token in enumerate(["|", "a", "b", "<blank>", "UNK"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": {"content": "UNK"}}))
    (folder / "processor_config.json").write_text("{}")  # without a feature extractor
    letters = read_huggingface(folder).ctc.letters()
    assert letters.labels == [" ", "a", "b"]
    assert torch.equal(letters.weight, theirs.lm_head.weight[:4])


@pytest.mark.unit
@pytest.mark.parametrize("normalize", [False, True])
def test_the_feature_extractor_inside_a_processor(folder, normalize):
    """Where transformers 5 keeps it; without it, a wav2vec 2.0 base would hear audio of another scale."""
    (folder / "preprocessor_config.json").unlink()
    nested = {"feature_extractor": {"do_normalize": normalize, "sampling_rate": 16000}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    checkpoint = read_huggingface(folder)
    assert checkpoint.normalize is normalize and checkpoint.notes == []
    nested["feature_extractor"]["sampling_rate"] = 8000
    (folder / "processor_config.json").write_text(json.dumps(nested))
    with pytest.raises(ValueError, match="expects 8000 Hz"):
        read_huggingface(folder)


@pytest.mark.unit
def test_a_vocabulary_per_language_gives_the_encoder(peer, save_peer):
    """MMS: which language the output layer is of, the folder does not say."""
    folder = save_peer(peer("hubert-base", "ForCTC", vocab_size=8), "hubert-base")
    (folder / "vocab.json").write_text(json.dumps({"eng": {"a": 0}, "deu": {"b": 0}}))
    assert read_huggingface(folder).ctc.tokens is None


@pytest.mark.unit
def test_contentvec_gives_its_encoder(peer, save_peer, difference):
    """As published for transformers: a projection beside the encoder, without the labels that it is for."""
    theirs = peer("hubert-base")
    theirs.final_proj = torch.nn.Linear(24, 16)
    checkpoint = read_huggingface(save_peer(theirs, "hubert-base"))
    assert difference(checkpoint, theirs) < 1e-4 and any("final_proj" in note for note in checkpoint.notes)


@pytest.mark.unit
@pytest.mark.parametrize(
    "tokens, labels",
    [
        (["<pad>", "|", "b", "A"], [" ", "a", "b"]),  # mixed case without collisions
        (["<pad>", "|", "a", "A"], [" ", "A", "a"]),  # case matters
        (["<pad>", "<unk>", "ä", "|"], [" ", "ä"]),
        (["<pad>", "|", "I", "İ", "Ş"], [" ", "i", "ı", "ş"]),  # Turkish
        (["<pad>", "|", "I", "İ", "i", "ı"], [" ", "I", "i", "İ", "ı"]),
        (["<pad>", "|", "A", "İ"], [" ", "A", "İ"]),  # whose small letter would be two characters
        (["<pad>", "|", "aa", "b"], None),  # phones
        (["<pad>"], None),
        (None, None),
    ],
)
def test_which_vocabularies_are_letters(tokens, labels):
    """Anything else gets a random output layer in a .nemo, and is said to."""
    size = len(tokens or "abc")
    letters = CtcHead(torch.randn(size, 4), torch.randn(size), tokens).letters()
    assert (letters and letters.labels) == labels


@pytest.mark.unit
def test_turkish_rows_stay_with_their_letters():
    """I and İ became i and two characters: no transcript of the model had a dotless i."""
    tokens = ["<pad>", "|", "İ", "B", "I"]
    head = CtcHead(torch.randn(5, 4), torch.randn(5), tokens)
    letters = head.letters()
    for label, row in (("ı", 4), ("i", 2), ("b", 3), (" ", 1)):
        assert torch.equal(letters.weight[letters.labels.index(label)], head.weight[row])
        assert letters.bias[letters.labels.index(label)] == head.bias[row]
    assert torch.equal(letters.weight[-1], head.weight[0])


@pytest.mark.unit
@pytest.mark.parametrize("keeps_case", [False, True])
@pytest.mark.parametrize("tokens", [["<pad>", "|", "a", " "], ["<pad>", "a", "|", "a"]])
def test_two_rows_of_one_letter_are_refused(tokens, keeps_case):
    """One was dropped without a word, and which of them the model writes nobody knows."""
    head = CtcHead(torch.randn(4, 4), torch.randn(4), tokens, keeps_case=keeps_case)
    with pytest.raises(ValueError, match="rows 1 and 3 of the output layer, '.*', are one letter.*of its own"):
        head.letters()
    pieces = CtcHead(torch.randn(5, 4), torch.randn(5), [*tokens, "aa"], keeps_case=keeps_case)
    assert pieces.letters() is None


# --- Out -------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_equal(peer, save_peer, tmp_path, family):
    """Their class loads what we write without a missing or surplus key, and holds the same bits."""
    theirs = peer(family)
    checkpoint = read_huggingface(save_peer(theirs, family))
    write_huggingface(checkpoint, tmp_path / "ours")
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert type(model).__name__ == type(theirs).__name__.replace("Wav2Vec2", "Hubert")
    assert_same_weights(model.state_dict(), theirs.state_dict())
    again = read_huggingface(tmp_path / "ours")
    assert_same_weights(again.weights, checkpoint.weights)
    assert again.encoder == checkpoint.encoder and again.normalize == checkpoint.normalize


@pytest.mark.unit
@pytest.mark.parametrize("family", ["hubert-large", "wavlm-large", "data2vec-audio"])
def test_ctc_class_with_its_processor(peer, save_peer, tmp_path, audio, family):
    """``Wav2Vec2Processor`` and ``AutoModelForCTC`` transcribe with the files as they are."""
    theirs = peer(family, "ForCTC", vocab_size=32, pad_token_id=0)
    checkpoint = read_huggingface(save_peer(theirs, family, ENGLISH))
    write_huggingface(checkpoint, tmp_path / "ours")
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "ours")
    model, info = transformers.AutoModelForCTC.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(model) is type(theirs) and not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.architectures == [type(theirs).__name__]  # the class that pipelines load
    inputs = processor(audio[0][0].numpy(), sampling_rate=16000, return_tensors="pt")
    assert inputs.input_values.std().item() == pytest.approx(1.0, abs=1e-3)  # large: normalised
    with torch.no_grad():
        logits, expected = model(inputs.input_values).logits, theirs(inputs.input_values).logits
    assert torch.allclose(logits[..., 0], expected[..., 0], atol=1e-4)
    assert torch.allclose(logits[..., 2], expected[..., ENGLISH.index("A")], atol=1e-4)
    vocabulary = sorted(processor.tokenizer.get_vocab().items(), key=lambda item: item[1])
    rows = [ENGLISH.index(token if token == "<pad>" else token.upper()) for token, _ in vocabulary]
    assert len(rows) == logits.shape[-1] == 29 and torch.allclose(logits, expected[..., rows], atol=1e-4)
    assert processor.tokenizer.decode([2, 3, 0, 3, 1, 28]) == "abb '"
    blank = processor.tokenizer.convert_tokens_to_ids("<pad>")  # their CTC loss takes the config's for the blank
    assert model.config.pad_token_id == blank and model.config.vocab_size == len(vocabulary)
    again = read_huggingface(tmp_path / "ours").ctc.letters()
    assert torch.equal(again.weight, checkpoint.ctc.letters().weight)
    assert torch.equal(again.bias, checkpoint.ctc.letters().bias)


@pytest.mark.unit
@pytest.mark.parametrize("family", ["hubert-base", "wav2vec2-base", "wavlm-base", "hubert-large", "wavlm-large"])
def test_processor_gives_a_mask_where_the_model_wants_one(peer, save_peer, tmp_path, audio, family):
    """Without it, a large model hears the padding of its neighbours; base models are trained without."""
    write_huggingface(read_huggingface(save_peer(peer(family), family)), tmp_path / "ours")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ours")
    long, short = (audio[0][row, : audio[1][row]].numpy() for row in (0, 1))
    together = extractor([long, short], sampling_rate=16000, padding=True, return_tensors="pt")
    if family.endswith("-base"):
        assert "attention_mask" not in together
        return
    assert together.attention_mask.sum(-1).tolist() == [12000, 6500]
    model = transformers.AutoModel.from_pretrained(tmp_path / "ours").eval()
    alone = extractor(short, sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        padded, expected = model(**together).last_hidden_state[1], model(**alone).last_hidden_state[0]
    torch.testing.assert_close(padded[: len(expected)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_a_folder_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    """Nothing is overwritten, nothing half-written stays."""
    checkpoint = read_huggingface(folder)
    with pytest.raises(FileExistsError, match="is not empty"):
        write_huggingface(checkpoint, folder)
    monkeypatch.setattr("nemo_mshubert.convert.huggingface._feature_extractor_config", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_huggingface(checkpoint, tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peer"]
