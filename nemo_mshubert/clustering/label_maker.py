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

"""The label maker: everything needed to label audio in the same way again, in one file with its own id."""

import hashlib
import json
import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np
from torch import Tensor

from nemo_mshubert.clustering.features import FeatureDescription
from nemo_mshubert.clustering.hierarchy import coarsen, compose_tables, fit_hierarchy
from nemo_mshubert.clustering.kmeans import assign
from nemo_mshubert.whole_files import PathLike, atomic_write

FORMAT = "nemo_mshubert label maker 1"
ASSIGNMENTS = ("nested", "nearest")
LIBRARIES = ("numpy", "scikit-learn", "torch", "lhotse", "scipy")
FEATURES_DIFFER = "Use the encoder and the layer that its k-means was fitted with, or fit a k-means on this encoder."
# Of damaged files; zipfile's own are also RuntimeErrors, as of a compression that it does not know.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
SCALING_DIFFERS = (
    "Encoder and layer are the same, but only for one of them is every utterance scaled to unit variance first. Give "
    "the file of the encoder that its k-means was fitted with, or fit the k-means again."
)


@dataclass(frozen=True, eq=False)
class LabelMaker:
    """The centres of every label set, and the rule that turns frames into labels.

    Attributes:
        centres: ``{clusters: float32 [clusters, D]}``, finest first.
        tables: ``{clusters: uint16 [K_finest]}`` map a finest label to the set's; the finest set's is the identity.
        features: the features that the centres were fitted on.
        assignment: "nested": a coarse label is the label of the fine centre, and only the finest set is stored;
            "nearest": each set takes the nearest of its own centres, and all sets are stored.
        seed: of k-means and of the sample of frames.
        versions: of the libraries that made it; also the file or label maker that its centres were taken from.
    """

    centres: Dict[int, np.ndarray]
    tables: Dict[int, np.ndarray]
    features: FeatureDescription
    assignment: str
    seed: int
    versions: Dict[str, str]

    @property
    def sets(self) -> List[int]:
        """Numbers of clusters, finest first."""
        return list(self.centres)

    @property
    def stored_sets(self) -> List[int]:
        """The sets that `label` returns."""
        return self.sets[:1] if self.assignment == "nested" else self.sets

    @cached_property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of all that determines labels: centres, tables, features and assignment."""
        digest = hashlib.sha256(json.dumps([asdict(self.features), self.assignment, self.sets]).encode())
        for clusters in self.sets:
            digest.update(self.centres[clusters].astype("<f4").tobytes())
            digest.update(self.tables[clusters].astype("<u2").tobytes())
        return digest.hexdigest()[:16]

    def check_features(self, features: FeatureDescription) -> None:
        """Raise ``ValueError`` unless the centres were fitted on ``features``."""
        if features != self.features:
            raise ValueError(
                f"label maker {self.id} was fitted on {self.features.name}, not on {features.name}. "
                f"{SCALING_DIFFERS if self.features.differs_in_scaling(features) else FEATURES_DIFFER}"
            )

    def label(self, features: Union[np.ndarray, Tensor]) -> Dict[int, np.ndarray]:
        """Labels ``{clusters: uint16 [T]}`` of ``stored_sets`` for features ``[T, D]``, computed on their device."""
        return {clusters: assign(features, self.centres[clusters]) for clusters in self.stored_sets}

    def expand(self, finest_labels: np.ndarray) -> Dict[int, np.ndarray]:
        """Labels ``{clusters: uint16 [T]}`` of all sets, looked up in the tables by the finest set's labels."""
        return {clusters: table[finest_labels] for clusters, table in self.tables.items()}

    def save(self, path: PathLike) -> None:
        """Write an ``.npz`` without pickled objects, whole or not at all."""
        header = {
            "format": FORMAT,
            "id": self.id,
            "sets": self.sets,
            "assignment": self.assignment,
            "features": asdict(self.features),
            "seed": self.seed,
            "versions": self.versions,
        }
        centres = {f"centres_{clusters}": array for clusters, array in self.centres.items()}
        tables = {f"table_{clusters}": array for clusters, array in self.tables.items()}
        with atomic_write(path, "wb") as stream:
            np.savez(stream, header=np.array(json.dumps(header)), **centres, **tables)

    @classmethod
    def load(cls, path: PathLike) -> "LabelMaker":
        """Read a k-means file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a k-means file, was written by joblib, is truncated, or does not match its id.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such k-means file. Make one with scripts/fit_kmeans.py.")
        if is_pickle(path):
            raise ValueError(
                f"{path}: a k-means of joblib, which does not say what it was fitted on. Use the k-means file "
                "that `label.py make` left beside the labels: <output>.kmeans.npz, <output> without its suffix."
            )
        try:
            header, arrays = _read(path)
            maker = cls(
                centres={clusters: arrays[f"centres_{clusters}"] for clusters in header["sets"]},
                tables={clusters: arrays[f"table_{clusters}"] for clusters in header["sets"]},
                features=FeatureDescription(**header["features"]),
                assignment=header["assignment"],
                seed=header["seed"],
                versions=header["versions"],
            )
            stated_id = header["id"]
        except READ_ERRORS as error:
            raise ValueError(
                f"{path}: not a k-means file of scripts/fit_kmeans.py, or truncated ({error}). Give the .npz that it "
                "wrote, or copy it again."
            ) from error
        if maker.id != stated_id:
            raise ValueError(f"{path}: says id {stated_id} but holds {maker.id}: edited or damaged. Copy it again.")
        return maker


def is_own(path: PathLike) -> bool:
    """Whether ``path`` is one of our k-means files, or is named like one."""
    return zipfile.is_zipfile(path) or Path(path).suffix == ".npz"


def is_pickle(path: PathLike) -> bool:
    """Whether ``path`` is an uncompressed joblib file, as published k-means models are; ours are zip archives."""
    if not Path(path).is_file():
        return False  # loading it will report the missing file
    with open(path, "rb") as stream:
        return stream.read(1) == pickle.PROTO


def fit_label_maker(
    frames: np.ndarray,
    cluster_counts: Sequence[int],
    features: FeatureDescription,
    assignment: str = "nested",
    backend: str = "auto",
    seed: int = 0,
) -> LabelMaker:
    """Fit the hierarchy of ``cluster_counts`` (strictly descending) on ``frames [N, D]``; see `LabelMaker`."""
    _check_assignment(assignment)
    centres = fit_hierarchy(frames, cluster_counts, backend, seed)
    return LabelMaker(centres, compose_tables(centres), features, assignment, seed, _versions())


def coarsen_label_maker(
    maker: LabelMaker, cluster_counts: Sequence[int], assignment: str, backend: str, seed: int
) -> LabelMaker:
    """A label maker with the finest set of ``maker``, and coarser sets of ``cluster_counts`` fitted on its centres as
    in `fit_label_maker`. The coarser sets of ``maker`` are dropped. The labels of the finest set do not change."""
    _check_assignment(assignment)
    centres = coarsen(maker.centres[maker.sets[0]], cluster_counts, backend, seed)
    origin = {**maker.versions, **_versions(), "finest set of": maker.id}
    return LabelMaker(centres, compose_tables(centres), maker.features, assignment, seed, origin)


def _check_assignment(assignment: str) -> None:
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment {assignment!r}: expected one of {', '.join(ASSIGNMENTS)}.")


def _versions() -> Dict[str, str]:
    return {library: version(library) for library in LIBRARIES}


def _read(path: PathLike) -> Tuple[Dict[str, Any], Dict[str, np.ndarray]]:
    """Header and arrays of a k-means file."""
    with open(path, "rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("no .npz")
        stream.seek(0)
        file = np.load(stream, allow_pickle=False)
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays["header"]))
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}, expected {FORMAT!r}")
    return header, arrays
