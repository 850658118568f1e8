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

"""Reads files of ``torch.save`` without running code in them.

A pickle names functions to call. This reader calls only functions that build tensors and containers. For classes of a
few packages that trainers leave in checkpoints (configs, dictionaries) it substitutes a `Stub`. It refuses every other
name before it is called. torch's own ``weights_only`` loader would also refuse the configs, and fairseq's configs need
fairseq.
"""

import codecs
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Sequence

import torch

from nemo_mshubert.whole_files import PathLike

# Classes of these packages become stubs: their state is kept, but none of their code runs.
STUBBED_PACKAGES = (
    "argparse",
    "enum",
    "examples",  # fairseq's
    "fairseq",
    "hydra",
    "numpy",
    "omegaconf",
    "pathlib",
    "s3prl",
    "typing",
)


class Stub:
    """Stands for an object whose class is not loaded. It keeps the arguments and the state, and does nothing."""

    def __new__(cls, *arguments, **_):
        self = super().__new__(cls)
        self.arguments = arguments
        self.state: Any = None
        return self

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        """Of a class of dictionaries; no reader asks what is in it."""

    def extend(self, values):
        """Of a class of lists."""


def plain(value: Any) -> Any:
    """Turn stubs into dictionaries, lists and scalars: argparse namespaces, OmegaConf containers, enums, ..."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not isinstance(value, Stub):
        return value
    state = value.state
    if isinstance(state, dict):
        for content in ("_content", "_val"):  # OmegaConf's containers and nodes
            if content in state:
                return plain(state[content])
        return {key: plain(item) for key, item in state.items() if key != "_parent"}
    return plain(value.arguments[0]) if value.arguments else None  # an enum


def load_torch_file(path: PathLike) -> Any:
    """The content of a ``torch.save`` file, on the CPU, with stubs in place of objects of `STUBBED_PACKAGES`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the pickle asks for code, or the file is cut short or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    with named_errors(path, "torch.save"):
        _refuse_torchscript(path)
        return torch.load(path, map_location="cpu", pickle_module=_RestrictedPickle, weights_only=False)


@contextmanager
def named_errors(path: Path, writer: str) -> Iterator[None]:
    """Turn any error while reading a pickle into a ``ValueError`` that names the file and the program that should have
    written it."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # torch, numpy and pickle raise a dozen types on broken files
        raise ValueError(
            f"{path}: cut short, or not a file of {writer} ({type(error).__name__}: {error}). Get it again."
        ) from error


class Refused(Exception):
    """The pickle asks for a name that is not allowed. Raised before anything is called."""


def stub_class(module: str, name: str, packages: Sequence[str]) -> type:
    """A subclass of `Stub` that takes the place of a class of ``packages``, under its name.

    Raises:
        Refused: the name belongs to another package, or is an attribute of a class.
    """
    if module.split(".")[0] in packages and "." not in name:
        return type(name, (Stub,), {"__module__": module})
    raise Refused(
        f"its pickle asks for {module}.{name}, which no checkpoint of weights needs. Nothing was executed. If you "
        "trust its origin, save its tensors alone from within the program that made it."
    )


def _reconstruct(cls: type, base: type, state: Any) -> Any:
    """copyreg._reconstructor, only for stubs."""
    if not (isinstance(cls, type) and issubclass(cls, Stub)):
        raise Refused(f"its pickle reconstructs {cls!r}. It was not made by a trainer; do not trust it.")
    return cls()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """_codecs.encode, by which old pickles represent bytes."""
    return codecs.latin_1_encode(text)[0]


class _RestrictedUnpickler(pickle.Unpickler):
    """Resolves names in `_TYPES` and `_FUNCTIONS`, dtypes, and names that become stubs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TYPES:
            return _TYPES[module, name]
        if (module, name) in _FUNCTIONS:  # wrapped, since a pickle can set attributes of what it gets
            return lambda *arguments: _FUNCTIONS[module, name](*arguments)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return stub_class(module, name, STUBBED_PACKAGES)


class _RestrictedPickle:
    """The part of the pickle module that torch.load uses."""

    __name__ = "restricted_pickle"
    Unpickler = _RestrictedUnpickler

    @staticmethod
    def load(file, **options) -> Any:
        return _RestrictedUnpickler(file, **options).load()


_BUILTINS = (set, frozenset, dict, list, tuple, int, float, bool, complex, str, bytes, bytearray, slice, range, object)
_TYPES: Dict[tuple, type] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _BUILTINS},
    ("__builtin__", "long"): int,
    ("__builtin__", "unicode"): str,  # how protocol 2 spells it, torch.save's
    ("__builtin__", "xrange"): range,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}
_FUNCTIONS: Dict[tuple, Callable] = {
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstruct,
    ("copy_reg", "_reconstructor"): _reconstruct,
    ("operator", "getitem"): Stub,  # typing.Dict[str, int] and the like
    ("_operator", "getitem"): Stub,
}


def _refuse_torchscript(path: Path) -> None:
    """Refuse TorchScript archives, which torch.load would pass to another loader."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise Refused("a TorchScript program, not weights. Save its state_dict() instead.")
