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

"""Settings of the lexicon beam search, which tuning writes and evaluation reads; defaults are in conf/decode."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Type, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nemo_mshubert.whole_files import PathLike, atomic_write

Config = TypeVar("Config")  # a dataclass


@dataclass(frozen=True)
class LexiconBeamConfig:
    """Settings without defaults: these are in ``conf/decode/lexicon_beam.yaml``, with their meaning and source."""

    lm: str
    lexicon: str
    lm_weight: float
    word_score: float
    sil_score: float
    beam_size: int
    beam_threshold: float
    beam_size_token: Optional[int]

    def __post_init__(self):
        letters = 1 if self.beam_size_token is None else self.beam_size_token
        if self.beam_size < 1 or not self.beam_threshold > 0 or letters < 1:
            raise ValueError(
                f"beam_size {self.beam_size}, beam_threshold {self.beam_threshold}, beam_size_token "
                f"{self.beam_size_token}: all must be positive (beam_size_token may be null for all letters)."
            )
        for name in ("lm_weight", "word_score", "sil_score"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)}: expected a finite number.")


def read_config(path: PathLike, **overrides: Any) -> LexiconBeamConfig:
    """Read a YAML as written by `write_config`; ``overrides`` that are not ``None`` replace its values.

    Raises:
        FileNotFoundError: no such YAML.
        ValueError: a value is missing, unknown, or of the wrong type; names the file and the key.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    return read_structured(
        path,
        LexiconBeamConfig,
        "Start from conf/decode/lexicon_beam.yaml.",
        "Name the files in the YAML or as arguments.",
        given,
    )


def read_structured(
    path: PathLike, schema: Type[Config], start: str, remedy: str, given: Optional[Mapping[str, Any]] = None
) -> Config:
    """Read a YAML as a dataclass.

    Args:
        start: remedy if there is no file, for the error message.
        remedy: remedy if values are missing, for the error message.
        given: values that replace those of the file.

    Raises:
        FileNotFoundError, ValueError: as in `read_config`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file. {start}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path), given or {})
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"{', '.join(missing)} not set. {remedy}")
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:  # OSError: of a number alone
        raise ValueError(f"{path}: {error}") from error


def write_config(path: PathLike, config: LexiconBeamConfig, comment: str) -> None:
    """Write ``config`` as YAML below a line with ``comment``. LM and lexicon become absolute paths, valid in any
    working directory."""
    values = {**asdict(config), "lm": str(Path(config.lm).resolve()), "lexicon": str(Path(config.lexicon).resolve())}
    with atomic_write(path) as stream:
        stream.write(f"# {comment}\n{OmegaConf.to_yaml(OmegaConf.create(values))}")
