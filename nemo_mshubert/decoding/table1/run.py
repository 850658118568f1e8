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

"""Make all cells of Table 1: run each step that has not been run, and write the tables after each."""

from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from nemo_mshubert.decoding.table1.cells import Cells
from nemo_mshubert.decoding.table1.report import write_tables
from nemo_mshubert.decoding.table1.spec import ModelSpec, Table1Spec, check_inputs
from nemo_mshubert.decoding.table1.step import run_step


def chosen(
    spec: Table1Spec, models: Optional[Sequence[str]], splits: Optional[Sequence[str]]
) -> Tuple[List[ModelSpec], List[str]]:
    """The models and splits with these names, or all if None is given; raises ``ValueError`` for an unknown name."""
    for kind, names, known in (
        ("model", models, [model.name for model in spec.models]),
        ("split", splits, list(spec.splits)),
    ):
        unknown = sorted(set(names or ()) - set(known))
        if unknown:
            raise ValueError(f"no {kind} {', '.join(map(repr, unknown))}. There are: {', '.join(map(repr, known))}.")
    return (
        [model for model in spec.models if models is None or model.name in models],
        [split for split in spec.splits if splits is None or split in splits],
    )


def run_table1(
    spec: Table1Spec,
    repository: Path,
    models: Optional[Sequence[str]] = None,
    splits: Optional[Sequence[str]] = None,
) -> None:
    """Run every step that has not been run, split by split, and write the tables after each.

    Args:
        repository: folder of ``scripts/`` and ``conf/``.
        models, splits: names of those to run; all by default. The tables hold everything that has been run.

    Raises:
        FileNotFoundError, ValueError, ImportError: see `check_inputs`, which runs before any step, and `run_step`.
        RuntimeError: a script failed or was killed. Another call continues from there.
    """
    chosen_models, chosen_splits = chosen(spec, models, splits)
    conf = repository / "conf"
    check_inputs(spec, chosen_models, chosen_splits, conf)
    for split in chosen_splits:
        for model in chosen_models:
            for step in Cells(spec, model, split, conf).steps():
                run_step(step, repository / "scripts")
                write_tables(spec, conf)
