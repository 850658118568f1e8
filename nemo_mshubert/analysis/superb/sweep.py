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

"""SUPERB's ASR and PR of one encoder, resumable: a probe per learning rate; the best on dev is tested (section 4.2).

    <output>/lr_<rate>/last.ckpt, best-*.ckpt      an interrupted probe continues from the last evaluation
    <output>/lr_<rate>/version_*/metrics.csv       loss and dev error of each session
    <output>/lr_<rate>/result.json                 a probe with this file is finished and not trained again
    <output>/superb.json, layer_weights.png        the sweep, and the results of the chosen probe on the test sets

A folder ``output`` belongs to one encoder, one set of data (transcripts and audio files) and one configuration. A call
with others is refused.
"""

import hashlib
import itertools
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.analysis.audio_source import audio_source
from nemo_mshubert.analysis.hidden_states import load_hidden_states
from nemo_mshubert.analysis.superb.batches import Targets, UtteranceBatches, endless, length_batches, loader
from nemo_mshubert.analysis.superb.features import FrozenFeatures
from nemo_mshubert.analysis.superb.plots import plot_layer_weights
from nemo_mshubert.analysis.superb.probe import DEV_ERROR, CtcProbe
from nemo_mshubert.analysis.superb.pronunciations import EspeakPronunciations, Pronunciations
from nemo_mshubert.callbacks.nonfinite_guard import NonfiniteGuard
from nemo_mshubert.callbacks.step_guard import NonFiniteTrainingError
from nemo_mshubert.data.audio import require_audio_file
from nemo_mshubert.data.manifest import Line, iter_manifest, utterance_id
from nemo_mshubert.decoding.error_rates import ErrorCounts
from nemo_mshubert.device import one_device
from nemo_mshubert.file_lock import alone
from nemo_mshubert.markdown import markdown_table
from nemo_mshubert.models.whole_checkpoints import WholeCheckpoints
from nemo_mshubert.whole_files import PathLike, atomic_write, remove_left_over, write_json

logger = logging.getLogger(__name__)

METHOD_VERSION = 1  # raise it when the same probe no longer gives the same scores, or `_claim` compares more
DEFAULT_PRECISION = "32-true"  # of a Lightning trainer
TASKS = {"asr": "WER", "pr": "PER"}
FALLBACKS = {None: lambda: None, "espeak": EspeakPronunciations}
LISTS = ("train_manifests", "dev_manifests", "test_manifests", "pronunciations", "learning_rates")

# --- Targets ---------------------------------------------------------------------------------------------------------


class Letters:
    """Tokens of the ASR task: letters, apostrophe and space."""

    vocabulary = ENGLISH_LABELS

    def tokens(self, text: str) -> List[int]:
        """Raises ``ValueError`` (of ``list.index``) for another letter."""
        return [self.vocabulary.index(letter) for letter in " ".join(text.lower().split())]


class Phones:
    """Tokens of the PR task."""

    def __init__(self, pronunciations: Pronunciations):
        self.pronunciations, self.vocabulary = pronunciations, pronunciations.vocabulary

    def tokens(self, text: str) -> List[int]:
        return [self.vocabulary.index(phone) for phone in self.pronunciations.of_text(text)]


def read_lines(manifests: Sequence[PathLike]) -> List[Line]:
    """Lines with a transcript and a duration. Audio files must exist, but are not read.

    Raises:
        FileNotFoundError, ValueError: no such manifest or audio file, no line, or one without transcript or duration.
    """
    lines = list(itertools.chain.from_iterable(map(iter_manifest, manifests)))
    for where, entry in lines:
        if not str(entry.get("text") or "").strip() or entry.get("duration") is None:
            raise ValueError(
                f'{where}: {utterance_id(entry)} lacks "text" or "duration". Add them or remove the line.'
            )
        require_audio_file(entry, f"{where}: {entry['audio_filepath']}")
    if not lines:
        raise ValueError(f"{', '.join(map(str, manifests))}: no utterances.")
    return lines


def make_targets(lines: List[Line], units) -> Targets:
    """Tokens of each line; raises ``ValueError`` naming the line if the task does not have one of its letters."""
    tokens = []
    for where, entry in lines:
        try:
            tokens.append(units.tokens(entry["text"]))
        except ValueError as error:
            raise ValueError(
                f"{where}: {utterance_id(entry)}: {error} of {''.join(units.vocabulary)!r}. Normalise the transcript, "
                "as LibriSpeech's are."
            ) from error
    return Targets(lines, tokens)


def make_units(config: DictConfig, splits: Dict[str, List[Line]]):
    """The tokens of the task. For phones, all words of all splits must have a pronunciation."""
    if config.task == "asr":
        return Letters()
    if not config.pronunciations:
        raise ValueError("pronunciations: phone recognition needs LibriSpeech's lexicon or CMUdict (a list of files).")
    pronunciations = Pronunciations(config.pronunciations, FALLBACKS[config.g2p](), config.stress)
    pronunciations.require(entry["text"] for lines in splits.values() for _, entry in lines)
    if pronunciations.guessed:
        logger.warning("%d words pronounced by %s, not by a file.", len(pronunciations.guessed), config.g2p)
    return Phones(pronunciations)


# --- One learning rate -----------------------------------------------------------------------------------------------


class ProbeData(pl.LightningDataModule):
    """Batches of the splits. Those of training are an endless stream; "epoch" e is its e-th ``eval_every`` updates."""

    def __init__(self, config: DictConfig, features: FrozenFeatures, splits: Dict[str, Targets]):
        super().__init__()
        self.config, self.features, self.splits = config, features, splits

    def _batches(self, split: str, halve_above_seconds: float = float("inf")) -> List[List[int]]:
        durations = [entry["duration"] for _, entry in self.splits[split].lines]
        return length_batches(durations, self.config.batch_size, halve_above_seconds)

    def _loader(self, split: str, batches: List[List[int]]):
        return loader(UtteranceBatches(self.splits[split], self.features), batches, self.config.num_workers)

    def train_dataloader(self):
        count = self.config.eval_every * self.config.accumulate
        first = self.trainer.current_epoch * count
        stream = endless(self._batches("train", self.config.halve_above_seconds or float("inf")), self.config.seed)
        return self._loader("train", list(itertools.islice(stream, first, first + count)))

    def val_dataloader(self):
        return self._loader("dev", self._batches("dev"))

    def loader_of(self, split: str):
        """Batches of a whole test set."""
        return self._loader(split, self._batches(split))


class BestProbe(ModelCheckpoint):
    """Keeps ``best-step=<update>.ckpt`` by dev error, and ``last.ckpt``, which knows the best one even if the folder
    was moved. Lightning would forget it then, and take the next one as the best."""

    def __init__(self, folder: Path):
        super().__init__(
            folder,
            "best-{step}",
            DEV_ERROR,
            mode="min",
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,  # else what a kill before `last` has left stays, beside a best-step=2-v1
        )

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        def here(path: str) -> str:
            return path and str(Path(self.dirpath) / Path(path).name)

        paths = {name: here(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        kept = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict({**state, **paths, "best_k_models": kept, "dirpath": self.dirpath})


def train_probe(config: DictConfig, rate: float, probe: CtcProbe, data: ProbeData, folder: Path) -> Dict[str, Any]:
    """Train with one learning rate, or resume. Returns its line of the sweep: the best dev error and its update."""
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    remove_left_over(folder)
    best = BestProbe(folder)
    trainer = pl.Trainer(
        **OmegaConf.to_container(config.trainer, resolve=True),
        **one_device(config.device),
        max_steps=config.updates,
        max_epochs=-1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[best, NonfiniteGuard(config.max_nonfinite_steps)],
        plugins=[WholeCheckpoints()],
        logger=pl.loggers.CSVLogger(folder, name=""),
        default_root_dir=folder,
    )
    last = folder / "last.ckpt"
    line: Dict[str, Any] = {"learning_rate": rate}
    try:
        trainer.fit(probe, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
        line.update(dev_error=float(best.best_model_score), checkpoint=Path(best.best_model_path).name)
        line["update"] = int(torch.load(best.best_model_path, map_location="cpu", weights_only=False)["global_step"])
    except NonFiniteTrainingError as error:
        line.update(dev_error=None, diverged=str(error))
    write_json(result, line)
    return line


# --- The sweep -------------------------------------------------------------------------------------------------------


def run_superb(config: DictConfig, features: Optional[FrozenFeatures] = None) -> Dict[str, Any]:
    """Probe ``config.model`` with every learning rate, and test the probe with the best dev error (``conf/superb``).

    Returns:
        the content of ``superb.json``.

    Raises:
        FileNotFoundError, ValueError: no such model or manifest, two manifests of one name, one value instead of a
            list, no usable learning rate, unusable lines, words without pronunciation, ``updates`` that are not
            evaluated, an ``output`` of another probe, or no learning rate that converges.
        RuntimeError: another process is using ``output``.
    """
    _check_config(config)
    lines = {"train": read_lines(config.train_manifests), "dev": read_lines(config.dev_manifests)}
    lines.update({str(Path(manifest).stem): read_lines([manifest]) for manifest in config.test_manifests})
    units = make_units(config, lines)
    splits = {name: make_targets(of_split, units) for name, of_split in lines.items()}
    features = features or FrozenFeatures(
        load_hidden_states(config.model, config.device), config.cache.folder, config.cache.gigabytes
    )
    output = Path(config.output)
    with alone(output / ".lock", "probes into this folder. Wait for it, or give another output."):
        return _run_sweep(config, features, units, splits, output)


def _run_sweep(
    config: DictConfig, features: FrozenFeatures, units, splits: Dict[str, Targets], output: Path
) -> Dict[str, Any]:
    identity = _claim(output, config, features, splits)
    for name, targets in splits.items():
        use = features.fill(targets.lines)
        logger.info("%s: %d of %d utterances cached, %.2f GB in all", name, use.cached, use.utterances, use.gigabytes)
    data = ProbeData(config, features, splits)
    sweep = []
    for rate in config.learning_rates:
        sweep.append(train_probe(config, rate, _probe(config, rate, features, units), data, _folder(output, rate)))
        logger.info("learning rate %g: %s", rate, sweep[-1])
    converged = [line for line in sweep if line["dev_error"] is not None]
    if not converged:
        raise ValueError(f"{output}: no learning rate of {list(config.learning_rates)} converges. Try lower ones.")
    best = min(converged, key=lambda line: line["dev_error"])
    rate = best["learning_rate"]
    probe = _probe(config, rate, features, units)
    checkpoint = torch.load(_folder(output, rate) / best["checkpoint"], map_location="cpu", weights_only=False)
    probe.load_state_dict(checkpoint["state_dict"])
    tests = {name: score_probe(probe, data, name) for name in splits if name not in ("train", "dev")}
    results = {**identity, "metric": TASKS[config.task], "sweep": sweep, "best": best, "tests": tests}
    results["layer_weights"] = probe.layer_weights()
    write_json(output / "superb.json", results)
    with atomic_write(output / "layer_weights.png", "wb") as stream:
        plot_layer_weights([results]).savefig(stream, format="png", dpi=150)
    return results


def _folder(output: Path, rate: float) -> Path:
    return output / f"lr_{rate:g}"


def _probe(config: DictConfig, rate: float, features: FrozenFeatures, units) -> CtcProbe:
    words = config.task == "asr"
    return CtcProbe(features, units.vocabulary, config.probe, learning_rate=rate, seed=config.seed, words=words)


def _check_config(config: DictConfig) -> None:
    if config.task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, found {config.task!r}.")
    if config.g2p not in FALLBACKS:
        raise ValueError(f"g2p: expected null or espeak, found {config.g2p!r}.")
    for key in LISTS:
        if config[key] is not None and not OmegaConf.is_list(config[key]):
            raise ValueError(f"{key}: expected a list, found {config[key]!r}. Write {key}=[{config[key]}].")
    rates = config.learning_rates
    if not rates or not all(isinstance(rate, (int, float)) and rate > 0 for rate in rates):
        raise ValueError(f"learning_rates={rates}: expected numbers above 0, at least one.")
    for key in ("updates", "eval_every", "batch_size", "accumulate"):
        if config[key] < 1:
            raise ValueError(f"{key}={config[key]}: expected 1 or more.")
    if config.updates % config.eval_every:
        raise ValueError(
            f"updates {config.updates} is no multiple of eval_every {config.eval_every}: what was trained behind the "
            "last evaluation would never be scored. Change one of them."
        )
    names = ["train", "dev", *(Path(manifest).stem for manifest in config.test_manifests)]
    if len(set(names)) < len(names):
        raise ValueError(
            f"test_manifests: results are told apart by file name, and of {names} two are equal. Rename a manifest."
        )


def _claim(output: Path, config: DictConfig, features: FrozenFeatures, splits: Dict[str, Targets]) -> Dict[str, Any]:
    """Write what is probed to ``probe.json``; raises ``ValueError`` if the folder belongs to something else."""
    plain = OmegaConf.to_container(config, resolve=True)
    method = (
        "task",
        "probe",
        "updates",
        "eval_every",
        "batch_size",
        "accumulate",
        "clip",
        "seed",
        "halve_above_seconds",
        "max_nonfinite_steps",
    )
    identity = {
        "name": config.name,
        "version": METHOD_VERSION,
        "model": str(config.model),
        "encoder": features.hidden_states.fingerprint,
        "normalized": features.hidden_states.normalized,
        "precision": str(plain["trainer"].get("precision") or DEFAULT_PRECISION),
        **{key: plain[key] for key in method},
        "data": {name: _data_digest(splits[name]) for name in ("train", "dev")},
        "utterances": {name: len(s.lines) for name, s in splits.items()},
    }
    path = output / "probe.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        compared = ("version", "encoder", "normalized", "precision", "data", *method)
        changed = [key for key in compared if found.get(key) != identity[key]]
        if changed:
            raise ValueError(f"{output}: holds a probe with other {', '.join(changed)}. Give another output folder.")
    write_json(path, identity)
    return identity


def _data_digest(targets: Targets) -> str:
    """16 hex digits that differ for other utterances, tokens or audio."""
    lines = [
        (utterance_id(entry), audio_source(entry), tokens) for (_, entry), tokens in zip(targets.lines, targets.tokens)
    ]
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:16]


@torch.inference_mode()
def score_probe(probe: CtcProbe, data: ProbeData, split: str) -> Dict[str, Any]:
    """Errors summed over a test set."""
    probe.eval().to(data.features.hidden_states.device)
    errors = ErrorCounts()
    for batch in data.loader_of(split):
        states = data.features.finish(batch.lines, batch.loaded)
        for tokens, best in zip(batch.tokens, probe.decode(*probe(states))):
            errors += probe.count_errors(tokens.tolist(), best)
    return {"rate": errors.rate, **errors._asdict()}


# --- Results ---------------------------------------------------------------------------------------------------------


def results_table(results: Dict[str, Any]) -> str:
    """Markdown: the sweep, then the test sets."""
    metric, best = results["metric"], results["best"]
    sweep = []
    for row in results["sweep"]:
        error = "diverged" if row["dev_error"] is None else f"{100 * row['dev_error']:.2f}"
        chosen = " (chosen)" if row == best else ""
        sweep.append((f"{row['learning_rate']:g}{chosen}", error, row.get("update", "")))
    tests = [
        (name, f"{100 * test['rate']:.2f}", *(test[key] for key in ErrorCounts._fields))
        for name, test in results["tests"].items()
    ]
    rates = markdown_table(("learning rate", f"dev {metric} %", "update"), sweep, text_columns=[])
    header = "test set", f"{metric} %", "sub", "ins", "del", "reference"
    return f"{rates}\n\n{markdown_table(header, tests, text_columns=[0])}"
