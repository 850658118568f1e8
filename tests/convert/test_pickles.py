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

"""A pickle is a program. These are run by the standard loader, and refused by ours before anything happens."""

import collections
import os
import pickle
import subprocess
import zipfile
from typing import Dict

import numpy
import pytest
import torch

from nemo_mshubert.convert.conversion import read_checkpoint
from nemo_mshubert.convert.pickles import Stub, load_torch_file, plain


class Attack:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def attacks(witness):
    """Calls that would create the file ``witness``."""
    command = f"touch {witness}"
    return {
        "os.system": Attack(os.system, command),
        "subprocess": Attack(subprocess.check_call, ["touch", str(witness)]),
        "eval": Attack(eval, f"open({str(witness)!r}, 'w')"),
        "exec": Attack(exec, f"open({str(witness)!r}, 'w')"),
        "open": Attack(open, str(witness), "w"),
        "import": Attack(__import__, "antigravity"),
        "getattr": Attack(getattr, "text", "upper"),
        "load": Attack(torch.storage._load_from_bytes, pickle.dumps(Attack(os.system, command))),
        "torch.load": Attack(torch.load, str(witness)),
        "hub": Attack(torch.hub.load, "a", "b"),
        "map": Attack(map, os.system, [command]),
    }


@pytest.mark.unit
@pytest.mark.parametrize("name", attacks(""))
@pytest.mark.parametrize("layout", ["zip", "legacy", "bare"])
def test_code_is_refused_and_not_run(tmp_path, name, layout):
    """Wherever it hides: among weights or in the config."""
    witness, path = tmp_path / "witness", tmp_path / "model.pt"
    content = {"model": {"mask_emb": torch.zeros(3)}, "cfg": {"model": [attacks(witness)[name]]}}
    if layout == "bare":
        path.write_bytes(pickle.dumps(content["cfg"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(
        ValueError, match="model.pt: its pickle asks for .* Nothing was executed|model.pt: cut short"
    ) as error:
        read_checkpoint(path)
    assert not witness.exists()
    if layout != "bare":
        assert "Nothing was executed" in str(error.value) and "cut short" not in str(error.value)


@pytest.mark.unit
def test_the_attack_works_on_the_standard_loader(tmp_path):
    """Or the test above proves nothing."""
    witness = tmp_path / "witness"
    torch.save({"model": attacks(witness)["os.system"]}, tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert witness.exists()


@pytest.mark.unit
def test_a_stub_runs_nothing(tmp_path):
    """Objects of stubbed packages keep their state; a function of such a package is not called either."""
    path = tmp_path / "model.pt"
    torch.save({"scale": numpy.float64(3.0), "call": Attack(numpy.save, tmp_path / "witness", [1])}, path)
    content = load_torch_file(path)
    assert isinstance(content["call"], Stub) and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="gone.pt: no such file"):
        load_torch_file(tmp_path / "gone.pt")


def zip_of(pickled, path):
    """A file of torch.save around hand-written opcodes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/version", "3\n")
    return path


@pytest.mark.unit
@pytest.mark.parametrize(
    "module, name",
    [("numpy", "os.system"), ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch", "load"), ("torch", "hub")],
)
def test_attributes_of_what_is_known_are_refused(tmp_path, module, name):
    """Protocol 4 can name ``numpy.os.system``; of torch itself, a pickle gets dtypes, and not its loaders."""
    strings = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    path = zip_of(b"\x80\x04" + strings + b"\x93.", tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"its pickle asks for {module}.{name}"):
        load_torch_file(path)


@pytest.mark.unit
def test_a_pickle_cannot_change_our_functions(tmp_path):
    """Opcode BUILD sets attributes of a function it was given."""
    pickled = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00evilK\x01sb."
    load_torch_file(zip_of(pickled, tmp_path / "model.pt"))
    assert not hasattr(torch._utils._rebuild_tensor_v2, "evil")


@pytest.mark.unit
@pytest.mark.parametrize("named", [b"__builtin__\nobject", b"collections\nOrderedDict", b"torch\nfloat32"])
def test_nothing_but_stubs_is_reconstructed(tmp_path, named):
    """Protocol 0 makes objects of a class, a base and its value. Those of trainers keep their state as stubs; a real
    class would lose the value without a word."""

    def pickled(named, module=b"copy_reg"):
        return b"c" + module + b"\n_reconstructor\n(c" + named + b"\nc__builtin__\nobject\nNtR(dVa\nI1\nsb."

    for module in (b"copy_reg", b"copyreg"):  # Python 2 and 3
        path = zip_of(pickled(b"fairseq.meters\nTimeMeter", module), tmp_path / "model.pt")
        assert load_torch_file(path).state == {"a": 1}
    with pytest.raises(ValueError, match="model.pt: its pickle reconstructs .* do not trust it"):
        load_torch_file(zip_of(pickled(named), tmp_path / "model.pt"))


@pytest.mark.unit
def test_weights_saved_on_a_gpu(tmp_path):
    """As nearly all published files are; read on a computer without one, or where it is full."""
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "cpu.pt")
    with zipfile.ZipFile(tmp_path / "cpu.pt") as saved, zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for name in saved.namelist():
            archive.writestr(name, saved.read(name).replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0"))
    weight = load_torch_file(tmp_path / "model.pt")["weight"]
    assert weight.device.type == "cpu" and weight.tolist() == [0, 1, 2]


@pytest.mark.unit
def test_tensors_and_containers_are_real(tmp_path):
    """Equal to what the standard loader gives, shared storage, dtypes and all."""
    base = torch.arange(12.0)
    content = {
        "parameter": torch.nn.Parameter(base.view(3, 4)),
        "view": base.view(3, 4)[1:, ::2],
        "half": base.half(),
        "bfloat": base.to(torch.bfloat16),
        "integers": torch.tensor([1, 2]),
        "ordered": collections.OrderedDict(a=1),
        "set": {1, 2},
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cuda", 1),
        "default": collections.defaultdict(int, a=1),
        "builtins": [frozenset({1}), slice(1, 2), range(3), bytearray(b"a"), True, 1.5, "a"],
        "bytes": b"\x00\xff",
        "complex": 1j,
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
        torch.save(content, tmp_path / "model.pt", **options)
        loaded = load_torch_file(tmp_path / "model.pt")
        for name, value in content.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype, name
            else:
                assert loaded[name] == value and type(loaded[name]) is type(value), name


@pytest.mark.unit
@pytest.mark.parametrize("protocol", [2, 4])
def test_annotations_become_stubs(tmp_path, protocol):
    """OmegaConf keeps the types of fields of fairseq's configs; protocol 2 spells str as Python 2 did. Refused, and
    with them every checkpoint that holds such a config."""
    torch.save({"field": Dict[str, int]}, tmp_path / "model.pt", pickle_protocol=protocol)
    assert isinstance(load_torch_file(tmp_path / "model.pt")["field"], Stub)


@pytest.mark.unit
def test_torchscript_is_refused(tmp_path):
    """torch.load would hand it to another loader."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="a TorchScript program, not weights"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.unit
@pytest.mark.parametrize("module", ["examples.hubert.tasks", "hydra.core.config", "s3prl.task.dump", "pathlib"])
def test_classes_of_trainers_become_stubs(tmp_path, module):
    """A file of a trainer with a class of its own beside the weights, which would be refused whole."""
    path = zip_of(b"\x80\x02c" + module.encode() + b"\nThing\n)\x81.", tmp_path / "model.pt")
    assert isinstance(load_torch_file(path), Stub)


@pytest.mark.unit
@pytest.mark.parametrize("filling", [b"K\x01a", b"(K\x01K\x02e", b"K\x01K\x02s", b"(K\x01K\x02u"])
def test_lists_and_dictionaries_of_trainers_become_stubs(tmp_path, filling):
    """Of a class of their own, which the opcodes APPEND, APPENDS, SETITEM and SETITEMS fill."""
    path = zip_of(b"\x80\x02cfairseq.data\nThing\n)\x81" + filling + b".", tmp_path / "model.pt")
    assert isinstance(load_torch_file(path), Stub)


@pytest.mark.unit
def test_plain_values():
    """Enums are pickled as calls of their class with a value; unknown objects become dictionaries of their state."""
    choice, other = Stub("layer_norm"), Stub()
    other.__setstate__({"a": [choice], "_parent": other})
    assert plain({"x": other, "y": (1, None)}) == {"x": {"a": ["layer_norm"]}, "y": [1, None]}
    assert plain(Stub()) is None
