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

"""Choose the decoding weights of a model on its dev set, from cached log-probabilities."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence

from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.decoding.config import LexiconBeamConfig, write_config
from nemo_mshubert.decoding.error_rates import ErrorCounts, word_errors
from nemo_mshubert.decoding.greedy import greedy_text
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
from nemo_mshubert.decoding.log_probs import read_log_probs
from nemo_mshubert.decoding.parallel import ParallelDecoder
from nemo_mshubert.decoding.search import RANGES, Trial, plot_trials, require_ax, search
from nemo_mshubert.file_lock import alone
from nemo_mshubert.whole_files import PathLike


@dataclass(frozen=True)
class Tuning:
    """The result of tuning: word errors without LM, and all trials with the best of them."""

    greedy: ErrorCounts
    trials: List[Trial]

    @property
    def best(self) -> Trial:
        return min(self.trials, key=lambda trial: trial.wer)


def tune(
    config: LexiconBeamConfig,
    log_probs: Sequence[PathLike],
    output: PathLike,
    num_trials: int,
    seed: int,
    workers: int,
) -> Tuning:
    """Search the LM weight, word score and silence score with the lowest WER over all dev sets together.

    Args:
        config: LM, lexicon, beams, and the weights of the first trial.
        log_probs: files of `write_log_probs`.
        output: the YAML for the chosen config. Two more files have the same name with another ending in place of
            ``.yaml``: ``.trials.jsonl``, from which an interrupted search resumes, and ``.png``.
        workers: number of processes for decoding.

    Raises:
        ImportError: no Ax or no matplotlib.
        ValueError: the dev sets have different labels or no words, ``output`` is a folder, or as in
            `LexiconBeamSearchDecoder` and `search`.
        RuntimeError: another process is tuning into ``output``.
    """
    require_ax()
    if Path(output).is_dir():  # else it would fail only after all trials
        raise ValueError(f"{output}: a folder. Name a YAML in it as --output.")
    sets = [read_log_probs(path) for path in log_probs]
    for path, dev in zip(log_probs, sets):
        if dev.labels != sets[0].labels:
            raise ValueError(f"{path}: labels differ from those of {log_probs[0]}. Tune on sets of one model.")
    utterances = [pair for dev in sets for pair in zip(dev.utterances, dev.log_probs)]
    references = [reference for dev in sets for reference in dev.references]
    greedy_texts = [greedy_text(log_probs_TV, sets[0].labels) for _, log_probs_TV in utterances]
    greedy = word_errors(zip(references, greedy_texts))
    print(f"{len(utterances)} utterances; WER without LM: {100 * greedy.rate:.2f} %")

    with ParallelDecoder(LexiconBeamSearchDecoder(sets[0].labels, config), workers) as decoder:

        def wer(weights: Dict[str, float]) -> float:
            described = ", ".join(f"{name} {value:.2f}" for name, value in weights.items())
            found = decoder.decode_all(utterances, dataclasses.replace(config, **weights), progress=described)
            rate = word_errors((reference, best.text) for reference, best in zip(references, found)).rate
            print(f"WER {100 * rate:.2f} %: {described}")
            return rate

        trials_path = _beside(output, ".trials.jsonl")
        first = {name: getattr(config, name) for name in RANGES}
        lock = trials_path.with_name(f".{trials_path.name}.lock")
        with alone(lock, "searches into this file. Wait for it, or give another --output."):
            trials = search(wer, trials_path, _setup(config, log_probs, seed), first, num_trials, seed)
            tuning = Tuning(greedy, trials)
            comment = f"{len(trials)} trials: WER {100 * tuning.best.wer:.2f} %, {100 * greedy.rate:.2f} % without LM"
            write_config(output, dataclasses.replace(config, **tuning.best.weights), comment)
            plot_trials(trials, _beside(output, ".png"))
    return tuning


def _beside(output: PathLike, ending: str) -> Path:
    """``output`` with another ending. Only ``.yaml`` is replaced, so that searches for ``lr0.1`` and ``lr0.2`` have
    separate files."""
    path = Path(output)
    return path.with_name((path.stem if path.suffix in (".yaml", ".yml") else path.name) + ending)


def _setup(config: LexiconBeamConfig, log_probs: Sequence[PathLike], seed: int) -> Dict:
    """What trials depend on besides the weights, including the contents of the files. If any of it changes, it is
    another search."""
    fixed = {key: value for key, value in dataclasses.asdict(config).items() if key not in RANGES}
    files = {name: str(Path(fixed[name]).resolve()) for name in ("lm", "lexicon")}
    first = {f"first {name}": getattr(config, name) for name in RANGES}
    sets = [str(Path(path).resolve()) for path in log_probs]
    contents = {f"SHA-256 of {path}": file_digest(path) for path in [*files.values(), *sets]}
    return {**fixed, **files, **first, "log_probs": sets, **contents, "seed": seed}
