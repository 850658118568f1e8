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

"""The specification of Table 1: a YAML that names encoders, fine-tuning splits, evaluation sets and language model."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

from omegaconf import MISSING

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.data.transcripts import check_transcripts
from nemo_mshubert.decoding.config import read_config, read_structured
from nemo_mshubert.decoding.references import read_references
from nemo_mshubert.decoding.search import require_ax
from nemo_mshubert.whole_files import PathLike


def folder_name(name: str) -> str:
    """``name`` reduced to letters, digits and underscores: "- Swap" becomes "Swap"."""
    return re.sub(r"\W+", "_", name).strip("_")


@dataclass
class ModelSpec:
    """A row: an encoder and how it is fine-tuned."""

    name: str = MISSING  # the paper's name, if the row is to stand next to the paper's numbers
    ssl: str = MISSING  # .nemo for scripts/ssl_to_ctc.py
    from_scratch: bool = False  # use its architecture with random weights
    overrides: List[str] = field(default_factory=list)  # for scripts/finetune_ctc.py


@dataclass
class SplitSpec:
    """A block of rows: data and recipe of a fine-tuning."""

    config: str = MISSING  # name in conf/finetune
    train_manifest: str = MISSING
    train_tars: Optional[str] = None
    overrides: List[str] = field(default_factory=list)


@dataclass
class Table1Spec:
    """See ``conf/table1/librispeech.yaml``, which gives the meaning and source of every value."""

    data: Optional[str] = None  # for ${data} in the paths below
    output: str = MISSING
    lm: str = MISSING
    lexicon: str = MISSING
    validation_set: str = MISSING
    tune_on: List[str] = MISSING
    trials: int = MISSING
    dev_beam: int = MISSING
    test_beam: int = MISSING
    dev_sets: Dict[str, str] = MISSING
    test_sets: Dict[str, str] = MISSING
    overrides: List[str] = MISSING
    models: List[ModelSpec] = MISSING
    splits: Dict[str, SplitSpec] = MISSING

    @property
    def sets(self) -> Dict[str, str]:
        """Evaluation sets, dev sets first: name -> manifest."""
        return {**self.dev_sets, **self.test_sets}

    def split_folder(self, model: ModelSpec, split: str) -> Path:
        """The folder for everything of ``model`` fine-tuned on ``split``."""
        return Path(self.output) / folder_name(model.name) / folder_name(split)

    def set_folder(self, model: ModelSpec, split: str, name: str) -> Path:
        """The folder with the results on the evaluation set ``name``: a cell of the table."""
        return self.split_folder(model, split) / "sets" / folder_name(name)


def read_spec(path: PathLike) -> Table1Spec:
    """Read and check the YAML.

    Raises:
        FileNotFoundError: no such YAML.
        ValueError: a value is missing, unknown, of the wrong type, or contradicts another; names file and key.
    """
    example = "conf/table1/librispeech.yaml"
    spec = read_structured(path, Table1Spec, f"Start from {example}.", f"See {example}.")
    _check_names(spec, str(path))
    return spec


def _check_names(spec: Table1Spec, where: str) -> None:
    for kind, names in (
        ("models", [model.name for model in spec.models]),
        ("splits", list(spec.splits)),
        ("dev_sets and test_sets", [*spec.dev_sets, *spec.test_sets]),
        ("the file names of dev_sets", [Path(manifest).stem for manifest in spec.dev_sets.values()]),
    ):
        folders = [folder_name(name) for name in names]
        for name, folder in zip(names, folders):
            if not folder or folders.count(folder) > 1:
                raise ValueError(f"{where}: {kind}: {name!r} needs a name of its own in letters and digits.")
    unknown = sorted({spec.validation_set, *spec.tune_on} - set(spec.dev_sets))
    if unknown or not spec.tune_on:
        raise ValueError(
            f"{where}: validation_set and tune_on name sets of dev_sets ({', '.join(spec.dev_sets)}), "
            f"not {', '.join(unknown) or 'none'}."
        )
    if min(spec.trials, spec.dev_beam, spec.test_beam) < 1:
        raise ValueError(f"{where}: trials, dev_beam and test_beam must be positive.")


def check_inputs(spec: Table1Spec, models: List[ModelSpec], splits: List[str], conf: Path) -> None:
    """Find now what would otherwise end a step after days: missing files, lines that cannot be evaluated, and texts or
    an LM in another alphabet.

    Args:
        models, splits: those that will be run.
        conf: the folder with ``finetune/*.yaml`` and ``decode/lexicon_beam.yaml``.

    Raises:
        FileNotFoundError, ValueError: names the file and the remedy.
        ImportError: no Ax, or no flashlight-text.
    """
    require_ax()
    from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder

    for model in models:
        if not Path(model.ssl).is_file():
            raise FileNotFoundError(
                f"{model.ssl}: no such encoder for {model.name!r}. Make it with scripts/pretrain.py or "
                "scripts/convert_checkpoint.py, or leave the model out with --models."
            )
    for name, split in spec.splits.items():  # all splits, since the tables include all
        recipe = conf / "finetune" / f"{split.config}.yaml"
        if not recipe.is_file():
            raise FileNotFoundError(f"{recipe}: no such recipe for the split {name!r}. Correct its config.")
    for name in splits:
        if spec.splits[name].train_tars is None:
            check_transcripts(spec.splits[name].train_manifest, ENGLISH_LABELS)
    for manifest in spec.sets.values():
        read_references(manifest, ENGLISH_LABELS)
    LexiconBeamSearchDecoder(
        ENGLISH_LABELS, read_config(conf / "decode/lexicon_beam.yaml", lm=spec.lm, lexicon=spec.lexicon)
    )
