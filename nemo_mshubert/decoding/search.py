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

"""Resumable Bayesian optimisation of decoding weights with Ax; every trial is a line of JSON.

A proposal is a function of the seed and the finished trials alone: each step makes a new Ax client and gives it all of
them. So an interrupted search continues exactly as if it had not been interrupted.
"""

import json
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List

from nemo_mshubert.whole_files import PathLike, atomic_write

# fairseq examples/hubert/config/decode/ax_sweep/ngram.yaml
RANGES = {"lm_weight": (0.0, 8.0), "word_score": (-5.0, 5.0), "sil_score": (-10.0, 0.0)}
# The first trial has the config's own weights, the others are Sobol points; after them, the Gaussian process proposes.
INITIAL_TRIALS = 8


@dataclass(frozen=True)
class Trial:
    """Weights and their word error rate (0.05 is 5 %)."""

    lm_weight: float
    word_score: float
    sil_score: float
    wer: float

    @property
    def weights(self) -> Dict[str, float]:
        return {name: getattr(self, name) for name in RANGES}


def require_ax() -> None:
    """Raise ``ImportError`` with the command that installs Ax, before any slow work begins."""
    try:
        import ax.api.client  # noqa: F401
    except ImportError as error:
        raise ImportError(f'tuning needs Ax ({error}). Install it: pip install "nemo_mshubert[decoding]"') from error


def search(
    objective: Callable[[Dict[str, float]], float],
    trials_path: PathLike,
    setup: Dict[str, Any],
    first: Dict[str, float],
    num_trials: int,
    seed: int,
) -> List[Trial]:
    """Minimise ``objective(weights) -> WER`` over `RANGES`; trials in ``trials_path`` are not run again.

    Args:
        setup: JSON values that a resumed search must share, such as the LM, the dev set and the beam.
        first: the weights of the first trial.
        num_trials: number of trials of the whole search, including the finished ones.

    Returns:
        All trials in order; the best is ``min(trials, key=lambda trial: trial.wer)``.

    Raises:
        ValueError: ``trials_path`` holds trials of another setup.
    """
    require_ax()
    trials = read_trials(trials_path, setup) if Path(trials_path).exists() else []
    while len(trials) < num_trials:
        weights = _propose(trials, seed) if trials else first
        trials.append(Trial(**weights, wer=objective(weights)))
        _write_trials(trials_path, setup, trials)
    return trials[:num_trials]


def _propose(trials: List[Trial], seed: int) -> Dict[str, float]:
    from ax.api.client import Client
    from ax.api.configs import RangeParameterConfig
    from ax.utils.common.logger import set_ax_logger_levels

    set_ax_logger_levels(logging.WARNING)  # else Ax describes its strategy at every step
    client = Client(random_seed=seed)
    client.configure_experiment(
        [RangeParameterConfig(name=name, parameter_type="float", bounds=bounds) for name, bounds in RANGES.items()]
    )
    client.configure_optimization("-wer")
    client.configure_generation_strategy(
        initialization_budget=INITIAL_TRIALS, initialization_random_seed=seed, initialize_with_center=False
    )
    for trial in trials:
        client.complete_trial(client.attach_trial(trial.weights), raw_data={"wer": trial.wer})
    with _one_thread():
        (weights,) = client.get_next_trials(1).values()
    return {name: float(weights[name]) for name in RANGES}


@contextmanager
def _one_thread():
    """Use one thread: matrices of some 30 rows gain nothing from more, and rounding must not depend on the number of
    cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_trials(path: PathLike, setup: Dict[str, Any]) -> List[Trial]:
    """Trials of a file whose first line is ``setup``; raises ``ValueError`` for another setup or kind of file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        theirs, trials = json.loads(lines[0])["setup"], [Trial(**json.loads(line)) for line in lines[1:]]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: not a file of trials ({error!r}). Remove it to search anew.") from error
    differing = [key for key in {**theirs, **setup} if theirs.get(key) != setup.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path}:1: these trials are of {key} {theirs.get(key)!r}, this search is of {setup.get(key)!r}. Remove "
            "the file to search anew, or choose another output."
        )
    return trials


def _write_trials(path: PathLike, setup: Dict[str, Any], trials: List[Trial]) -> None:
    with atomic_write(path) as stream:
        for line in ({"setup": setup}, *map(asdict, trials)):
            stream.write(json.dumps(line) + "\n")


def plot_trials(trials: List[Trial], path: PathLike) -> None:
    """Plot WER over trials with the best so far, and WER over each weight; the suffix of ``path`` is the format."""
    from matplotlib.figure import Figure

    rates = [100 * trial.wer for trial in trials]
    best = min(range(len(trials)), key=rates.__getitem__)
    figure = Figure(figsize=(14, 3.5), layout="constrained")
    axes = figure.subplots(1, 1 + len(RANGES), sharey=True)
    axes[0].step(range(len(rates)), [min(rates[: end + 1]) for end in range(len(rates))], where="post", color="grey")
    columns = {"trial": list(range(len(trials)))}
    columns.update({name: [trial.weights[name] for trial in trials] for name in RANGES})
    for axis, (name, values) in zip(axes, columns.items()):
        axis.scatter(values, rates, s=14)
        axis.scatter(values[best], rates[best], s=60, facecolors="none", edgecolors="red")
        axis.set_xlabel(name)
    axes[0].set_ylabel("WER (%)")
    with atomic_write(path, "wb") as stream:
        figure.savefig(stream, format=Path(path).suffix[1:])
