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

"""What is wrong with a checkpoint is said by the name of the tensor or the field, in the spelling of its file."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nemo_mshubert.convert import tables
from nemo_mshubert.convert.conversion import read_checkpoint, write_checkpoint
from nemo_mshubert.convert.huggingface import hugging_face_family, read_huggingface
from nemo_mshubert.modules.state_dicts import listed
from tests.convert.conftest import make_peer, spell_as_fairseq


@pytest.fixture
def edit(folder):
    """``edit(change)``: apply ``change`` to the state dict in the folder, and give the folder."""

    def apply(change):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")
        return folder

    return apply


@pytest.fixture
def configure(folder):
    """``configure(field=value)`` in config.json."""

    def apply(**fields):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))
        return folder

    return apply


NAMES = [
    "masked_spec_embed",
    "feature_extractor.conv_layers.6.conv.weight",
    "feature_extractor.conv_layers.0.layer_norm.bias",
    "feature_projection.projection.weight",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
    "encoder.layers.1.attention.k_proj.bias",
    "encoder.layers.2.final_layer_norm.weight",
]


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
def test_missing_tensor(edit, name):
    with pytest.raises(ValueError, match="peer") as error:
        read_huggingface(edit(lambda state: state.pop(name)))
    assert name in str(error.value) and "missing tensor" in str(error.value)


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
def test_wrong_shape(edit, name):
    def cut(state):
        state[name] = state[name][:-1].clone()

    with pytest.raises(ValueError) as error:
        read_huggingface(edit(cut))
    message = str(error.value)
    assert name in message and ("expected" in message or "its tensors say" in message)


@pytest.mark.unit
def test_wrong_number_of_dimensions(edit):
    def flatten(state):
        state["feature_projection.projection.weight"] = state["feature_projection.projection.weight"].flatten()

    with pytest.raises(ValueError, match=r"feature_projection.projection.weight is \[384\], expected 2 dimensions"):
        read_huggingface(edit(flatten))


@pytest.mark.unit
@pytest.mark.parametrize("name", ["encoder.layers.0.adapter.weight", "encoders.0.layer_norm.weight", "spk.weight"])
def test_unknown_tensor(edit, name):
    def add(state):
        state[name] = torch.zeros(3)

    message = (
        f"peer: unknown tensors {name}. It is not of the Hugging Face layout.*with scripts/convert_checkpoint.py --f"
    )
    with pytest.raises(ValueError, match=message):
        read_huggingface(edit(add))


@pytest.mark.unit
@pytest.mark.parametrize("name", ["feature_extractor.conv_layers.3.conv.bias", "encoder.layers.2.attention.q_proj"])
def test_surplus_tensor(edit, name):
    """Names that exist elsewhere, but not in this model."""

    def add(state):
        state[name] = torch.zeros(16)

    with pytest.raises(ValueError, match=f"surplus tensors {name}"):
        read_huggingface(edit(add))


@pytest.mark.unit
def test_two_tensors_for_one_place(edit):
    def add(state):
        state["hubert.encoder.layer_norm.bias"] = torch.zeros(24)

    message = "peer: (hubert.)?encoder.layer_norm.bias and another tensor are both layer_norm.bias. Remove the copy"
    with pytest.raises(ValueError, match=message):
        read_huggingface(edit(add))


@pytest.mark.unit
def test_half_an_output_layer_and_another_rate(edit, folder):
    """What is beside the encoder."""

    def add(state):
        state["lm_head.weight"] = torch.zeros(5, 24)

    preprocessor = folder / "preprocessor_config.json"
    own = json.loads(preprocessor.read_text())
    preprocessor.write_text(json.dumps({**own, "sampling_rate": 8000}))
    with pytest.raises(ValueError, match="expects 8000 Hz; our encoder 16000 Hz. Use a model of 16000 Hz"):
        read_huggingface(folder)
    preprocessor.write_text(json.dumps(own))
    with pytest.raises(ValueError, match="missing tensor lm_head.bias. Get its weights again"):
        read_huggingface(edit(add))
    with pytest.raises(ValueError, match="peer: lm_head.bias holds NaN or infinity"):
        read_huggingface(edit(lambda state: state.update({"lm_head.bias": torch.full((5,), torch.nan)})))


@pytest.mark.unit
def test_strides_that_nothing_tells(tmp_path):
    """No tensor shows them; HuBERT's, taken for those of another front end, would give frames of another length."""
    path = tmp_path / "weights.pt"
    torch.save(spell_as_fairseq(make_peer("hubert-base", conv_kernel=(10, 3, 3, 3, 3, 3, 2))), path)
    with pytest.raises(ValueError, match=r"weights.pt: kernels \[10, 3, 3, 3, 3, 3, 2\] are not HuBERT's, so the str"):
        read_checkpoint(path)


@pytest.mark.unit
def test_names_of_fairseq_both_ways():
    """A part that is dropped keeps the name that it has in the file; weight norms are spelled as fairseq does."""
    table, tensors = tables.fairseq_table("group_norm"), torch.arange(3.0)
    names = ["quantizer.weight_proj.bias", "w2v_model.quantizer.vars", "w2v_model.encoder.pos_conv.0.weight_g"]
    mapped, dropped = table.to_ours(dict(zip(names, tensors)), "model.pt")
    assert dropped == names[:2]
    assert mapped == {"pos_conv_embed.conv.parametrizations.weight.original0": tensors[2]}
    assert table.to_theirs(mapped) == {"encoder.pos_conv.0.weight_g": tensors[2]}
    assert table.their_name("pos_conv_embed.conv.parametrizations.weight.original1") == "encoder.pos_conv.0.weight_v"
    assert table.their_name("pos_conv_embed.conv.bias") == "encoder.pos_conv.0.bias"


@pytest.mark.unit
@pytest.mark.parametrize("name", ["Hugging Face", "fairseq", "torchaudio"])
def test_layers_from_the_tenth_and_parts_without_a_place(name):
    """Published models have 12 layers or more; the others of these tests have three."""
    table = getattr(tables, f"{name.replace(' ', '_').lower()}_table")()
    for layer in (9, 10, 23, 47):
        ours = f"layers.{layer}.attention.q_proj.weight"
        theirs = table.their_name(ours)
        assert f".layers.{layer}." in theirs
        assert list(table.to_ours({theirs: torch.zeros(1)}, "model.pt")[0]) == [ours]
    with pytest.raises(ValueError, match=f"The {name} layout has no place for our tensor speaker.weight"):
        table.to_theirs({"speaker.weight": torch.zeros(1)})
    assert table.spell("speaker.weight") == "speaker.weight"  # in a message about it


@pytest.mark.unit
@pytest.mark.parametrize("number, more", [(4, ""), (5, ""), (6, " and 1 more"), (9, " and 4 more")])
def test_long_lists_of_names_are_cut(number, more):
    """All of few names; "and 0 more" sends its reader after nothing."""
    names = list("abcdefghi")[:number]
    assert listed(names) == ", ".join(names[:5]) + more


@pytest.mark.unit
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights(edit, value):
    def spoil(state):
        state["encoder.layers.1.feed_forward.output_dense.weight"][3, 2] = value

    with pytest.raises(ValueError, match="encoder.layers.1.feed_forward.output_dense.weight holds NaN or infinity"):
        read_huggingface(edit(spoil))


@pytest.mark.unit
@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(model_type="bert"), "model_type 'bert'; expected one of hubert.*Name the folder of a model"),
        (dict(model_type="wav2vec2-conformer"), "model_type 'wav2vec2-conformer'"),
        (dict(hidden_act="relu"), "hidden_act 'relu'; our encoder has 'gelu' only. Use another model"),
        (dict(feat_extract_activation="relu"), "feat_extract_activation 'relu'"),
        (dict(layer_norm_eps=1e-12), "layer_norm_eps 1e-12; our encoder has 1e-05 only"),
        (dict(feat_proj_layer_norm=False), "feat_proj_layer_norm False"),
        (dict(add_adapter=True), "add_adapter True"),
        (dict(conv_pos_batch_norm=True), "conv_pos_batch_norm True"),
        (dict(num_hidden_layers=4), r"num_layers 4, its tensors say 3 \(encoder.layers.3.*: absent"),
        (dict(num_hidden_layers=2), r"num_layers 2, its tensors say 3 \(encoder.layers.2.*: \[24, 24\]"),
        (dict(intermediate_size=48), r"d_inner 48, its tensors say 40 \(encoder.layers.0.*intermediate.*: \[40, 24\]"),
        (dict(feat_extract_norm="layer"), "conv_norm layer_norm, its tensors say group_norm"),
        (dict(conv_kernel=[10, 3, 3, 3, 3, 3, 2]), r"its config says conv_layers.*conv_layers.5.*: \[16, 16, 2\]"),
        (dict(num_attention_heads=5), "24 is not divisible by num_heads 5"),
    ],
)
def test_config_of_another_model(configure, fields, message):
    with pytest.raises(ValueError, match=message):
        read_huggingface(configure(**fields))


@pytest.mark.unit
def test_what_neither_tensors_nor_config_say_is_assumed_and_reported(configure, folder):
    """Heads, the order of norms, and whether audio is normalised."""
    config = json.loads((folder / "config.json").read_text())
    for field in ("num_attention_heads", "do_stable_layer_norm"):
        del config[field]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink()
    checkpoint = read_huggingface(folder)
    assert checkpoint.encoder["num_heads"] == 1 and checkpoint.encoder["pre_norm"] is False
    assert [note.split(",")[0] for note in checkpoint.notes] == [
        "assumed 1 attention heads",
        "assumed post-LN blocks",
        "assumed raw audio",
    ]


@pytest.mark.unit
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_safetensors(folder, share):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="model.safetensors: cut short"):
        read_huggingface(folder)


@pytest.mark.unit
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_torch_file(tmp_path, share, legacy):
    path = tmp_path / "weights.pt"
    torch.save(spell_as_fairseq(make_peer("hubert-base")), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="weights.pt: cut short, or not a file of torch.save"):
        read_checkpoint(path)


@pytest.mark.unit
def test_damaged_table_of_contents(tmp_path):
    """The zip archive of a ``.pt`` ends with a table of its contents. Where that is damaged, users see which of their
    files it is and what to do, not an error of Python's zip reader."""
    path = tmp_path / "weights.pt"
    torch.save(spell_as_fairseq(make_peer("hubert-base")), path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first one
    content[entry : entry + 4] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="weights.pt: cut short, or not a file of torch.save"):
        read_checkpoint(path)


@pytest.mark.unit
def test_broken_json_and_missing_files(folder, tmp_path):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not JSON"):
        read_huggingface(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: expected a JSON object, found list. Get it again"):
        read_huggingface(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        read_huggingface(folder)
    (folder / "config.json").write_text('{"model_type": "hubert"}')
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors or pytorch_model.bin"):
        read_huggingface(folder)
    with pytest.raises(FileNotFoundError, match="nothing.pt: no such file or folder. Correct the path"):
        read_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.unit
def test_other_families(tmp_path):
    """A text model, something that is no dictionary, and a file whose folder is needed."""
    bert = transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    torch.save(bert.state_dict(), tmp_path / "bert.pt")
    for source in ("auto", "torchaudio"):
        with pytest.raises(ValueError, match="unknown tensors embeddings.word_embeddings.weight"):
            read_checkpoint(tmp_path / "bert.pt", source)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, expected a dictionary of weights. Use the file"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list.pt: holds a list, expected a state dict"):
        read_checkpoint(tmp_path / "list.pt", "torchaudio")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="tensor.pt: holds a Tensor, expected a dictionary of weights. Use the file"):
        read_checkpoint(tmp_path / "tensor.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    for name in ("model.safetensors", "pytorch_model.bin"):
        with pytest.raises(ValueError, match="give its folder"):
            read_checkpoint(tmp_path / name)


@pytest.mark.unit
def test_confused_projections_are_caught(peer, folder, difference, monkeypatch):
    """The parity tests can fail: q and k swapped in the table are off by far more than 1e-4."""
    rows = dict(tables.HUGGING_FACE)
    q, k = (f"encoder.layers.{{}}.attention.{name}_proj" for name in "qk")
    rows[q], rows[k] = rows[k], rows[q]
    monkeypatch.setattr(tables, "HUGGING_FACE", rows)
    assert difference(read_huggingface(folder), peer("hubert-base")) > 1e-2


@pytest.mark.unit
def test_no_class_for_a_mixture(folder, tmp_path):
    """An encoder of ours that transformers lacks is refused, not approximated."""
    checkpoint = read_huggingface(folder)
    checkpoint.encoder["pos_conv_depth"] = 3
    with pytest.raises(ValueError, match="No class of transformers"):
        write_checkpoint(checkpoint, tmp_path / "ours")


@pytest.mark.unit
@pytest.mark.parametrize("changes", [{"pre_norm": True}, {"position_buckets": 320}, {"conv_norm": "group_norm"}])
def test_no_data2vec_with_parts_of_others(changes):
    """Their class would load such weights and compute something else."""
    data2vec = {"pos_conv_depth": 2, "pre_norm": False, "conv_norm": "layer_norm"}
    assert hugging_face_family(data2vec) == "data2vec-audio"
    with pytest.raises(ValueError, match="No class of transformers"):
        hugging_face_family({**data2vec, **changes})
