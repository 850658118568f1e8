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

"""Reads published k-means files, as fairseq's ``learn_kmeans.py`` writes them with ``joblib.dump``, without running
code in them.

Such a file is a pickle with the bytes of its arrays in between. joblib's own reader parses it, but we resolve every
name that the pickle asks for: array descriptions and dtypes are real; classes of scikit-learn, numpy and SciPy are
stubs that keep their state and do nothing; everything else is refused before it is called.
"""

from pathlib import Path
from typing import Any

import numpy as np
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler

from nemo_mshubert.clustering.features import FeatureDescription
from nemo_mshubert.clustering.hierarchy import check_cluster_counts, compose_tables
from nemo_mshubert.clustering.label_maker import LabelMaker, is_pickle
from nemo_mshubert.convert.pickles import Refused, Stub, named_errors, stub_class
from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.whole_files import PathLike

STUBBED_PACKAGES = ("_codecs", "numpy", "scipy", "sklearn")


def label_maker_of_joblib(path: PathLike, features: FeatureDescription) -> LabelMaker:
    """A label maker with published centres; its ``label`` gives the same labels as fairseq's ``dump_km_label.py``.

    Args:
        path: file of ``joblib.dump``.
        features: the features that the centres were fitted on; the file does not say.

    Raises:
        FileNotFoundError, ValueError: as `read_joblib_kmeans`, or centres and features differ in width.
    """
    centres = read_joblib_kmeans(path)
    if centres.shape[1] != features.dimension:
        raise ValueError(
            f"{path}: centres of {centres.shape[1]} dimensions do not fit {features.name}. Use the encoder and the "
            "layer that the k-means was fitted on."
        )
    check_cluster_counts([len(centres)])
    sets = {len(centres): centres}
    origin = {"file": Path(path).name, "sha256": file_digest(path)}
    return LabelMaker(sets, compose_tables(sets), features, "nested", seed=0, versions=origin)


def read_joblib_kmeans(path: PathLike) -> np.ndarray:
    """The centres, float32 ``[K, D]``, of a pickled ``KMeans`` or ``MiniBatchKMeans``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the pickle asks for code; the file is cut short or compressed; it holds no k-means.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such k-means file.")
    content = _load(path)
    centres = content.state.get("cluster_centers_") if _is_kmeans(content) else None
    if not isinstance(centres, np.ndarray) or centres.ndim != 2 or centres.dtype.kind != "f":
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a fitted k-means of scikit-learn.")
    centres = centres.astype(np.float32)
    if not np.isfinite(centres).all():
        raise ValueError(f"{path}: cluster_centers_ holds NaN or infinity. Get another file.")
    return centres


def _load(path: Path) -> Any:
    if not is_pickle(path):
        raise ValueError(
            f"{path}: neither a k-means file of scripts/fit_kmeans.py nor an uncompressed one of joblib. If joblib "
            "compressed it, load and dump it with compress=0 where you trust it."
        )
    with open(path, "rb") as stream, named_errors(path, "joblib"):
        return _RestrictedUnpickler(str(path), stream, ensure_native_byte_order=True).load()


def _is_kmeans(content: Any) -> bool:
    return isinstance(content, Stub) and type(content).__name__.endswith("KMeans") and isinstance(content.state, dict)


class _RestrictedUnpickler(NumpyUnpickler):
    """joblib's reader, with names resolved by us."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return type(name, (_PlainArray,), {})  # new each time, since a pickle can set its attributes
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        return stub_class(module, name, STUBBED_PACKAGES)


class _PlainArray(NumpyArrayWrapper):
    """Reads an array whose bytes follow in the file. Arrays of objects, which would be more pickles, are refused."""

    def read(self, unpickler: NumpyUnpickler, ensure_native_byte_order: bool) -> np.ndarray:
        if not isinstance(self.dtype, np.dtype) or self.dtype.hasobject:
            raise Refused("one of its arrays holds objects, which a k-means has none of. Nothing was executed.")
        return self.read_array(unpickler, ensure_native_byte_order)
