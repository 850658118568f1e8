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

"""fairseq's layout, as fairseq, s3prl, Microsoft and the authors save it, and heads that only it has."""

import argparse
import sys
import types

import pytest
import torch
from omegaconf import OmegaConf

from nemo_mshubert.convert.checkpoint import ENGLISH_LETTERS, SPECIALS, CtcHead, PredictionHead
from nemo_mshubert.convert.conversion import read_checkpoint, write_checkpoint
from nemo_mshubert.convert.fairseq import (
    declared_architecture,
    from_fairseq,
    parse_conv_layers,
    read_fairseq,
    to_fairseq,
)
from nemo_mshubert.convert.huggingface import read_huggingface, write_huggingface
from tests.convert.conftest import FAMILIES, assert_same_weights, fairseq_options, spell_as_fairseq


@pytest.fixture
def dictionary(monkeypatch):
    """``dictionary(symbols)``: an object that is pickled as fairseq's Dictionary, a class that readers do not have."""
    module = types.ModuleType("fairseq.data.dictionary")

    class Dictionary:
        def __init__(self, symbols):
            self.symbols, self.count, self.bos_word = [*SPECIALS, *symbols], [1] * (len(symbols) + 4), "<s>"

    Dictionary.__module__, Dictionary.__qualname__ = module.__name__, "Dictionary"
    module.Dictionary = Dictionary
    for name in ("fairseq", "fairseq.data"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Dictionary


def heads_of(sets, width=8, d_model=24):
    """fairseq's tensors of untied heads, with four special rows per set."""
    rows = sum(size + 4 for size in sets)
    return {
        "final_proj.weight": torch.randn(width * len(sets), d_model),
        "final_proj.bias": torch.randn(width * len(sets)),
        "label_embs_concat": torch.rand(rows, width),
    }


# --- In --------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_equal_transformers(peer, difference, tmp_path, family):
    """The layout is spelled by hand in conftest, so the table cannot confirm its own mistakes."""
    theirs = peer(family)
    options = fairseq_options(theirs)
    content = {"args": None, "cfg": {"model": options, "task": {"normalize": True}}, "model": spell_as_fairseq(theirs)}
    torch.save(content, tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert difference(checkpoint, theirs) < 1e-4
    assert checkpoint.normalize is True and checkpoint.notes == []


@pytest.mark.unit
@pytest.mark.parametrize("container", ["plain", "namespace", "omegaconf", "s3prl", "s3prl-omegaconf", "flat"])
@pytest.mark.parametrize("legacy", [False, True])
def test_containers_of_the_config(peer, tmp_path, dictionary, container, legacy):
    """Old fairseq pickles argparse, new fairseq OmegaConf, s3prl and Microsoft their own; none of them is imported."""
    theirs = peer("hubert-large")
    state, options = spell_as_fairseq(theirs), fairseq_options(theirs)
    task = {"normalize": True, "labels": ["km"]}
    content = {
        "plain": {"cfg": {"model": options, "task": task}, "model": state},
        "namespace": {"args": argparse.Namespace(**options, **{**task, "task": "hubert_pretraining"}), "model": state},
        "omegaconf": {"cfg": OmegaConf.create({"model": options, "task": task}), "model": state},
        "s3prl": {"model_cfg": options, "task_cfg": task, "model_weight": state, "dictionaries_symbols": []},
        "s3prl-omegaconf": {
            "model_cfg": OmegaConf.create(options),
            "task_cfg": OmegaConf.create(task),
            "model_weight": state,
        },
        "flat": {"cfg": {**options, "normalize": True}, "model": state},
    }[container]
    content["task_state"] = {"dictionaries": [dictionary("abc")]}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    assert checkpoint.encoder["num_heads"] == 2 and checkpoint.encoder["pre_norm"] is True
    assert checkpoint.normalize is True and checkpoint.notes == []


@pytest.mark.unit
def test_bare_weights_are_read_with_assumptions(peer):
    """What the published models of this shape have, said aloud."""
    checkpoint = from_fairseq(spell_as_fairseq(peer("hubert-large")), "weights.pt")
    assert checkpoint.encoder["num_heads"] == 1 and checkpoint.encoder["pre_norm"] and checkpoint.normalize
    assert len(checkpoint.notes) == 3 and all(note.startswith("assumed") for note in checkpoint.notes)


@pytest.mark.unit
@pytest.mark.parametrize("layer", ["proj", "final_proj"])
@pytest.mark.parametrize("leaf, lost", [("weight", "bias"), ("bias", "weight")])
def test_half_a_head_is_named_as_fairseq_spells_it(peer, layer, leaf, lost):
    """A file that somebody cut: the remedy, not a KeyError."""
    state = {
        **spell_as_fairseq(peer("hubert-base")),
        f"{layer}.{leaf}": torch.zeros(8, 24),
        "label_embs_concat": torch.zeros(9, 8),
    }
    with pytest.raises(ValueError, match=f"model.pt: missing tensor {layer}.{lost}. Get its weights again"):
        from_fairseq(state, "model.pt")


@pytest.mark.unit
def test_fine_tuned_wrapper(peer, difference, tmp_path, dictionary):
    """``w2v_encoder.w2v_model.``; options of the encoder in w2v_args; the dictionary in the state of the task."""
    theirs = peer("wav2vec2-base")
    tensors = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in spell_as_fairseq(theirs).items()}
    tensors["w2v_encoder.proj.weight"], tensors["w2v_encoder.proj.bias"] = torch.randn(32, 24), torch.randn(32)
    content = {
        "cfg": {
            "model": {"_name": "wav2vec_ctc", "w2v_args": {"model": fairseq_options(theirs)}, "normalize": False},
            "task": {"normalize": False},
        },
        "model": tensors,
        "task_state": {"target_dictionary": dictionary(ENGLISH_LETTERS)},
    }
    torch.save(content, tmp_path / "model.pt")
    checkpoint = read_fairseq(tmp_path / "model.pt")
    assert difference(checkpoint, theirs) < 1e-4
    letters = checkpoint.ctc.letters()
    assert checkpoint.notes == [] and checkpoint.normalize is False
    assert torch.equal(letters.weight[-1], tensors["w2v_encoder.proj.weight"][0])  # <s> is the blank
    assert torch.equal(letters.bias[letters.labels.index("e")], tensors["w2v_encoder.proj.bias"][5])
    del content["task_state"]
    assert "assumed the letters of LibriSpeech" in from_fairseq(content, "model.pt").notes[0]
    content["task_state"] = {"target_dictionary": {"symbols": [*SPECIALS, "|", "a"]}}
    checkpoint = from_fairseq(content, "model.pt")
    assert checkpoint.notes == ["its dictionary of 6 symbols does not fit an output layer of 32 rows"]
    assert checkpoint.ctc.tokens is None
    del content["task_state"]
    tensors.update({"w2v_encoder.proj.weight": torch.randn(7, 24), "w2v_encoder.proj.bias": torch.randn(7)})
    checkpoint = from_fairseq(content, "model.pt")
    assert checkpoint.notes == [] and checkpoint.ctc.tokens is None


@pytest.mark.unit
def test_fine_tuned_wrapper_of_old_versions(peer, tmp_path):
    """Namespaces: the task is a name, w2v_args are flat, and only the wrapper says that audio is normalised."""
    theirs = peer("wav2vec2-base")
    tensors = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in spell_as_fairseq(theirs).items()}
    inner = argparse.Namespace(**fairseq_options(theirs))
    args = argparse.Namespace(task="audio_pretraining", arch="wav2vec_ctc", normalize=True, w2v_args=inner)
    torch.save({"args": args, "model": tensors}, tmp_path / "model.pt")
    checkpoint = read_fairseq(tmp_path / "model.pt")
    assert checkpoint.encoder["num_heads"] == 2 and checkpoint.normalize is True and checkpoint.notes == []


@pytest.mark.unit
def test_heads_of_the_authors_layout_are_split(peer):
    """MS-HuBERT in s3prl's file: stacked projections, stacked embeddings, four special rows per set."""
    theirs = peer("hubert-base")
    heads, sets = heads_of([12, 6, 3]), [12, 6, 3]
    symbols = [[*SPECIALS, *map(str, range(size))] for size in sets]
    content = {
        "model_cfg": fairseq_options(theirs),
        "task_cfg": {"normalize": False},
        "model_weight": {**spell_as_fairseq(theirs), **heads},
        "dictionaries_symbols": symbols,
    }
    checkpoint = from_fairseq(content, "iter3.pt")
    assert [len(head.embeddings) for head in checkpoint.prediction_heads] == sets and checkpoint.notes == []
    second = checkpoint.prediction_heads[1]
    assert torch.equal(second.weight, heads["final_proj.weight"][8:16])
    assert torch.equal(second.embeddings, heads["label_embs_concat"][16 + 4 : 16 + 4 + 6])
    two_as_one = [symbols[0] + symbols[1], symbols[2]]
    for wrong in (symbols[:2], two_as_one, [*symbols[:2], symbols[1]]):
        content["dictionaries_symbols"] = wrong
        with pytest.raises(ValueError, match="iter3.pt: final_proj .* do not fit dictionaries of .*Use the file that"):
            from_fairseq(content, "iter3.pt")
    content["dictionaries_symbols"] = symbols
    content["model_weight"] = {**content["model_weight"], "final_proj.weight": torch.zeros(25, 24)}
    with pytest.raises(ValueError, match=r"iter3.pt: final_proj \[25, 24\] and label_embs_concat .* do not fit"):
        from_fairseq(content, "iter3.pt")
    content["model_weight"].update(heads)
    del content["dictionaries_symbols"]
    with pytest.raises(ValueError, match="3 label sets share label_embs_concat"):
        from_fairseq(content, "iter3.pt")


@pytest.mark.unit
def test_tied_heads_share_their_projection(peer):
    """fairseq's default: one final_proj for every label set, each of which keeps its own embeddings."""
    theirs = peer("hubert-base")
    heads = {**heads_of([12, 6, 3]), "final_proj.weight": torch.randn(8, 24), "final_proj.bias": torch.randn(8)}
    content = {
        "model_cfg": fairseq_options(theirs),
        "task_cfg": {"normalize": False},
        "model_weight": {**spell_as_fairseq(theirs), **heads},
        "dictionaries_symbols": [[*SPECIALS, *map(str, range(size))] for size in (12, 6, 3)],
    }
    expected = [heads["label_embs_concat"][first:last] for first, last in ((4, 16), (20, 26), (30, 33))]
    for head, rows in zip(from_fairseq(content, "tied.pt").prediction_heads, expected, strict=True):
        assert torch.equal(head.weight, heads["final_proj.weight"])
        assert torch.equal(head.bias, heads["final_proj.bias"])
        assert torch.equal(head.embeddings, rows)


@pytest.mark.unit
def test_a_head_without_its_dictionary(peer):
    """Weights alone: a row too many or too few, and every label is another."""
    heads = heads_of([10])
    checkpoint = from_fairseq({**spell_as_fairseq(peer("hubert-base")), **heads}, "weights.pt")
    (head,) = checkpoint.prediction_heads
    assert torch.equal(head.weight, heads["final_proj.weight"]) and torch.equal(head.bias, heads["final_proj.bias"])
    assert torch.equal(head.embeddings, heads["label_embs_concat"][4:])
    assert "assumed that the first four rows of label_embs_concat are fairseq's special symbols" in checkpoint.notes


@pytest.mark.unit
def test_wav2vec2_heads_and_data2vec_teacher_are_dropped(peer):
    """They have no place here, and are named."""
    state = spell_as_fairseq(peer("wav2vec2-base"))
    state.update({"quantizer.vars": torch.zeros(1, 4, 2), "project_q.bias": torch.zeros(3), "_ema": {"a": 1}})
    state.update({f"final_proj.{leaf}": torch.zeros(3, 24) for leaf in ("weight", "bias")})
    notes = from_fairseq(state, "wav2vec_small.pt").notes
    assert notes[0] == "dropped quantizer.vars, project_q.bias, _ema"
    assert notes[-1] == "dropped final_proj.weight, final_proj.bias: no prediction heads of HuBERT"
    state = {
        **spell_as_fairseq(peer("hubert-base")),
        "label_embs_concat": torch.zeros(9, 8),
    }  # as fine-tuning leaves it
    notes = from_fairseq(state, "hubert_ft.pt").notes
    assert notes[-1] == "dropped label_embs_concat: no prediction heads of HuBERT"


@pytest.mark.unit
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(activation_fn="relu"), "activation_fn 'relu'.*Use another model"),
        (dict(layer_type="conformer"), "layer_type 'conformer'"),
        (dict(encoder_layers=4), "num_layers 4, its tensors say 3"),
        (dict(extractor_mode="layer_norm"), "conv_norm layer_norm"),
        (dict(conv_pos=32), r"pos_conv_kernel 32, its tensors say 16 \(encoder.pos_conv.0.weight_v: \[24, 6, 16\]\)"),
        (dict(conv_feature_layers="__import__('os').system('true')"), "cannot read conv_feature_layers"),
    ],
)
def test_config_of_another_model(peer, options, message):
    theirs = peer("hubert-base")
    content = {"cfg": {"model": {**fairseq_options(theirs), **options}}, "model": spell_as_fairseq(theirs)}
    with pytest.raises(ValueError, match=message):
        from_fairseq(content, "model.pt")


@pytest.mark.unit
def test_missing_tensor_is_named_as_fairseq_spells_it(peer):
    for name in ("encoder.pos_conv.0.weight_v", "feature_extractor.conv_layers.0.2.bias", "mask_emb"):
        state = spell_as_fairseq(peer("hubert-base"))
        del state[name]
        with pytest.raises(ValueError, match=f"missing tensors? {name}"):
            from_fairseq(state, "model.pt")
    state = spell_as_fairseq(peer("hubert-large"))
    del state["feature_extractor.conv_layers.2.2.1.bias"]
    with pytest.raises(ValueError, match="missing tensors feature_extractor.conv_layers.2.2.1.bias"):
        from_fairseq(state, "model.pt")


@pytest.mark.unit
def test_conv_layers_are_read_without_python():
    text = " [(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] + [(512,2,2)]"
    assert parse_conv_layers(text) == [[512, 10, 5]] + [[512, 3, 2]] * 4 + [[512, 2, 2]] * 2
    assert len(parse_conv_layers("[(512,10,5)] * 1000000000")) == 100  # not gigabytes
    for broken in ("[(512,10,5)] +", "open('x')", "[(512,10,5)] * 1e9", "[a]", "3 + [1]"):
        with pytest.raises(ValueError, match="cannot read conv_feature_layers .* Write it in the config as fairseq"):
            parse_conv_layers(broken)


@pytest.mark.unit
def test_defaults_of_wavlm_in_fairseqs_layout():
    """Those of WavLM's own code where its config leaves them out; another distance puts far frames elsewhere."""
    declared = declared_architecture({"relative_position_embedding": True}, "wavlm.pt")
    assert declared == {"position_buckets": 320, "position_max_distance": 1280}


# --- Out -------------------------------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("family", FAMILIES)
def test_what_we_write_is_spelled_like_fairseq(peer, save_peer, tmp_path, family):
    """Names, bits and options; and Hugging Face -> fairseq -> Hugging Face loses nothing."""
    theirs = peer(family)
    checkpoint = read_huggingface(save_peer(theirs, family))
    write_checkpoint(checkpoint, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert_same_weights(content["model"], spell_as_fairseq(theirs))
    options = content["cfg"]["model"]
    names = {"wavlm": "wavlm", "data2vec-audio": "data2vec_audio"}  # by which fairseq finds the class
    assert options["_name"] == names.get(theirs.config.model_type, "hubert")
    assert options.pop("gru_rel_pos", False) is family.startswith("wavlm")
    expected = fairseq_options(theirs)
    expected["conv_feature_layers"] = options["conv_feature_layers"]
    left_out = dict(pos_conv_depth=1, relative_position_embedding=False, num_buckets=320, max_distance=800)
    assert {**left_out, **options, "_name": expected["_name"]} == expected
    again = read_fairseq(tmp_path / "model.pt")
    write_huggingface(again, tmp_path / "ours")
    last = read_huggingface(tmp_path / "ours")
    assert_same_weights(last.weights, checkpoint.weights)
    assert last.encoder == checkpoint.encoder and last.normalize == checkpoint.normalize


@pytest.mark.unit
def test_heads_travel_bit_equal(folder):
    """Prediction heads have a place in fairseq's layout: special rows of zeros, of cosine 0 with everything."""
    checkpoint = read_huggingface(folder)
    checkpoint.prediction_heads = [
        PredictionHead(torch.randn(8, 24), torch.randn(8), torch.rand(size, 8)) for size in (10, 5)
    ]
    content = to_fairseq(checkpoint)
    assert content["model"]["label_embs_concat"].shape == (10 + 4 + 5 + 4, 8)
    assert not content["model"]["label_embs_concat"][:4].any()
    assert content["cfg"]["model"]["untie_final_proj"] is True and content["cfg"]["model"]["final_dim"] == 8
    for ours, again in zip(checkpoint.prediction_heads, from_fairseq(content, "x").prediction_heads, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, again))


@pytest.mark.unit
def test_letters_travel_bit_equal(folder):
    """fairseq's special rows are added so that they never win, and dropped again."""
    checkpoint = read_huggingface(folder)
    checkpoint.encoder["position_buckets"] = 0  # as in the config of a .nemo: no WavLM
    tokens = ["<pad>", "|", "b", "a"]
    checkpoint.ctc = CtcHead(torch.randn(4, 24), torch.randn(4) - 100, tokens)
    checkpoint.prediction_heads = [PredictionHead(torch.randn(8, 24), torch.randn(8), torch.rand(10, 8))]
    content = to_fairseq(checkpoint)
    assert content["dictionaries_symbols"] == [[*SPECIALS, "|", "a", "b"]]  # not the labels of the heads
    assert content["cfg"]["task"]["sample_rate"] == 16000 and "label_embs_concat" not in content["model"]
    model = content["cfg"]["model"]
    assert model["_name"] == "hubert_ctc" and model["w2v_args"]["model"]["_name"] == "hubert"
    assert model["w2v_args"]["model"]["encoder_layers"] == 3
    assert model["normalize"] is model["w2v_args"]["task"]["normalize"] is checkpoint.normalize
    logits = (
        torch.randn(7, 24) @ content["model"]["w2v_encoder.proj.weight"].T + content["model"]["w2v_encoder.proj.bias"]
    )
    assert logits.shape[1] == 4 + 3 and not set(logits.argmax(-1).tolist()) & {1, 2, 3}
    assert content["model"]["w2v_encoder.proj.bias"].half().isfinite().all()
    again = from_fairseq(content, "x").ctc.letters()
    for ours, other in zip(checkpoint.ctc.letters()[1:], again[1:]):
        assert torch.equal(ours, other)
    assert again.labels == [" ", "a", "b"]


@pytest.mark.unit
def test_a_file_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    """A model of before stays until the new one is there."""
    (tmp_path / "model.pt").write_bytes(b"before")
    monkeypatch.setattr("nemo_mshubert.convert.fairseq.to_fairseq", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_checkpoint(read_huggingface(folder), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == b"before"
