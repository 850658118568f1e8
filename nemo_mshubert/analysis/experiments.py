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

"""Reads experiments of NeMo's exp_manager: settings, and the TensorBoard files of all resumed sessions joined."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_mshubert.whole_files import PathLike

Curve = Dict[int, float]  # value by step, in order of steps; as in TensorBoard, step 0 is the first update
Scalars = Dict[str, Curve]

OWN_TAGS = re.compile(r"(train|val)_(loss|wer|(\d+|views)/.+)|learning_rate|grad_norm|nonfinite_steps|feature_penalty")
STEP_SECONDS = "micro_batch_seconds"  # logged by callbacks.data_wait
SET_TAG = re.compile(r"(?:train|val)_(\d+)/")
SEED = re.compile(r"[_-]?seed[_-]?\d+")
EVENT_FILES = "events.out.tfevents.*"


@dataclass
class Experiment:
    """Scalars of one experiment folder of NeMo's exp_manager."""

    name: str
    scalars: Scalars
    settings: Dict[str, Any] = field(default_factory=dict)  # from hparams.yaml, "model.encoder.dropout": 0.1, ...
    step_seconds: Optional[float] = None  # median of a training step

    @property
    def label_sets(self) -> List[int]:
        """Cluster counts of a pre-training's label sets, most clusters first; empty for a fine-tuning."""
        found = {int(match.group(1)) for match in map(SET_TAG.match, self.scalars) if match}
        return sorted(found, reverse=True)

    @property
    def group(self) -> str:
        """The name without its seed: runs of one group are drawn in one colour."""
        return SEED.sub("", self.name)

    def curve(self, tag: str, scale: float = 1.0) -> Curve:
        """The tag's finite values times ``scale``; empty if it was never logged."""
        return {step: scale * value for step, value in self.scalars.get(tag, {}).items() if math.isfinite(value)}


def read_experiments(run: PathLike) -> List[Experiment]:
    """All experiments below ``run`` that logged something, in the order in which they started."""
    run, files_of = Path(run), {}
    for file in run.rglob(f"version_*/{EVENT_FILES}"):
        files_of.setdefault(file.parent.parent, []).append(file)
    # events.out.tfevents.<seconds since 1970>.<host>...
    folders = sorted(files_of, key=lambda folder: (min(file.name.split(".")[3] for file in files_of[folder]), folder))
    experiments = []
    for folder in folders:
        files = sorted(files_of[folder], key=_session_order)
        sessions = [read_event_file(file) for file in files]
        times = [seconds for session in sessions for seconds in session.pop(STEP_SECONDS, {}).values()]
        name = folder.name if folder == run else folder.relative_to(run).as_posix()
        settings = next(filter(None, (read_settings(file.with_name("hparams.yaml")) for file in files[::-1])), {})
        step_seconds = float(np.median(times)) if times else None
        experiments.append(Experiment(name, join_sessions(sessions), settings, step_seconds))
    return [experiment for experiment in experiments if experiment.scalars]


def _session_order(file: Path):
    number = file.parent.name.removeprefix("version_")
    return (int(number) if number.isdigit() else math.inf, file.name)  # version_10 is after version_9


def read_event_file(path: PathLike) -> Scalars:
    """The scalars of one TensorBoard file that this package logs; of a truncated file, those that are complete."""
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0}, purge_orphaned_data=False)  # 0: keep all
    accumulator.Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if OWN_TAGS.fullmatch(tag) or tag == STEP_SECONDS]
    return {tag: {event.step: event.value for event in accumulator.Scalars(tag)} for tag in tags}


def read_settings(path: Path) -> Dict[str, Any]:
    """Leaves of an experiment's ``hparams.yaml`` by dotted name; empty if there is no such file. Raises ``ValueError``
    if it is not YAML."""
    if not path.is_file():
        return {}
    try:
        return dict(_leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error}). Remove it; the report does without.") from error


def _leaves(node: Any, name: str = "") -> Iterator[Tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif node is not None:
        yield name, node


def join_sessions(sessions: Iterable[Scalars]) -> Scalars:
    """Join sessions by step, oldest first. Values that an older one logged at or after a newer one's first step are
    dropped.

    A session that was killed may have logged updates beyond its last checkpoint; the resumed session repeated them.

        version_0   9 19 29 39 49            killed; its last checkpoint is of update 30
        version_1            39 49 59 69
        joined      9 19 29 39 49 59 69      39 and 49 as in version_1, even for tags that it has not logged yet
    """
    joined: Scalars = {}
    for session in sessions:
        first = min((step for curve in session.values() for step in curve), default=math.inf)
        joined = {tag: {step: curve[step] for step in curve if step < first} for tag, curve in joined.items()}
        for tag, curve in session.items():
            joined.setdefault(tag, {}).update(curve)
    return {tag: dict(sorted(curve.items())) for tag, curve in joined.items() if curve}
