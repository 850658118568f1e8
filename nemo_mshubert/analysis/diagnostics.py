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

"""What a finished pre-training has learned: predictions per label set, and, for each layer, the similarity of the two
views and the agreement of clusters with phones.

predictions   masked and unmasked accuracy, loss, codes in use and entropies of each label set. This is the model's own
              validation, on any manifest with labels of its label maker.
views         cosine of the masked and the clean view after every block, at masked and at unmasked frames. `exchanged`:
              with Swap (section 2.2.1), as trained; `apart`: without exchange, as HuBERT and "- Swap" are trained.
pnmi          PNMI of k-means clusters of every layer with phones, on frames that k-means has not seen (HuBERT, figure
              2). `pnmi_chance`: the value that clusters without knowledge of phones reach on these frames.

<output>/models/<id>.json                   one model; if the file exists, the model is not measured again
<output>/diagnostics.json, diagnostics.png  all models of the call
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from nemo_mshubert.analysis.hidden_states import AllHiddenStates, groups_of
from nemo_mshubert.clustering.audio_windows import audio_windows, window_features
from nemo_mshubert.clustering.kmeans import assign, fit_kmeans, sample_frames
from nemo_mshubert.clustering.metrics import unit_agreement
from nemo_mshubert.data.alignments import Alignments, aligned_lines, check_aligned
from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.data.manifest import iter_manifest, utterance_id
from nemo_mshubert.device import one_device
from nemo_mshubert.markdown import Table, markdown_table
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.modules.frames import frame_count, valid_positions
from nemo_mshubert.modules.masking import span_mask
from nemo_mshubert.whole_files import PathLike, atomic_write, make_folder, write_json

logger = logging.getLogger(__name__)

Diagnosis = Dict[str, Any]
METHOD_VERSION = 1  # raise it when the same call no longer gives the same numbers
KINDS = ("masked", "unmasked")
SEED = 0  # for masks and k-means


def diagnose_models(
    models: Sequence[Tuple[str, PathLike]],
    manifest: PathLike,
    output: PathLike,
    alignments: Optional[Alignments] = None,
    clusters: int = 100,
    max_frames: int = 20_000,
    device: str = "cpu",
) -> List[Diagnosis]:
    """Diagnose every ``(name, .nemo)`` on a labelled manifest.

    Args:
        alignments: phone times, for the PNMI; without them the PNMI is left out.
        clusters: number of k-means clusters per layer.
        max_frames: aligned frames; half of them fit the k-means, the other half measure.

    Raises:
        FileNotFoundError, ValueError: no such file, not a pre-trained model, models of one name that differ in depth,
            labels of another label maker, unusable audio, an utterance that occurs twice, or too few aligned frames.
    """
    output, diagnoses = Path(output), []
    make_folder(output)  # first: if it cannot be made, no pass over the audio is wasted
    manifest_hash = _file_hash(manifest)
    if alignments is not None:
        check_aligned([manifest], alignments)
    depths: Dict[str, int] = {}
    for name, path in models:
        logger.info("%s: %s", name, path)
        model = load_pretrained(path).to(device)
        depth = len(model.encoder.layers)
        if depths.setdefault(name, depth) != depth:  # their curves have no mean; results so far are kept
            raise ValueError(
                f"{path}: {depth} layers, where another file of {name} has {depths[name]}. Give models of other "
                "depths other names."
            )
        settings = (METHOD_VERSION, manifest_hash, clusters, max_frames, alignments and alignments.digest())
        key = f"{weights_fingerprint(model)}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"
        stored = output / "models" / f"{key}.json"
        if not stored.is_file():
            measured = diagnose(model, manifest, alignments, clusters, max_frames)
            write_json(stored, measured)
        diagnoses.append({"name": name, "file": str(path), **json.loads(stored.read_text(encoding="utf-8"))})
        write_json(output / "diagnostics.json", {"manifest": str(manifest), "models": diagnoses})
    with atomic_write(output / "diagnostics.png", "wb") as stream:
        plot_diagnoses(diagnoses).savefig(stream, format="png", dpi=150)
    return diagnoses


def load_pretrained(path: PathLike) -> pl.LightningModule:
    """Load a pre-training model; raises ``ValueError`` for a CTC model, which has no label heads."""
    from nemo_mshubert.models.loading import restore_model  # imports NeMo, which takes seconds

    model = restore_model(path)
    if not hasattr(model, "label_heads"):
        raise ValueError(f"{path}: a {type(model).__name__}, expected a pre-trained model of scripts/pretrain.py.")
    return model.eval()


def diagnose(
    model: pl.LightningModule,
    manifest: PathLike,
    alignments: Optional[Alignments] = None,
    clusters: int = 100,
    max_frames: int = 20_000,
) -> Diagnosis:
    """All measurements of one model; see `diagnose_models`."""
    device = model.device
    diagnosis: Diagnosis = {"swap": bool(model.cfg.swap), "sets": validate(model, manifest)}
    model.to(device)  # Lightning leaves it on the CPU
    lines = list(iter_manifest(manifest))
    masking = model.cfg.masking
    diagnosis["views"] = view_cosines(
        model, lines, masking.mask_prob, masking.mask_length, with_exchange=model.cfg.swap
    )
    if alignments is not None:
        states = AllHiddenStates(model.encoder, model.preprocessor, model.device)
        layers = layer_pnmi(states, lines, alignments, clusters, max_frames)
        for key in ("pnmi", "pnmi_chance"):
            diagnosis[key] = [layer[key] for layer in layers]
        diagnosis.update(aligned_frames=layers[0]["aligned_frames"], clusters=clusters)
    return diagnosis


# --- Predictions -----------------------------------------------------------------------------------------------------


def validate(model: pl.LightningModule, manifest: PathLike) -> Dict[str, Dict[str, float]]:
    """The model's validation on ``manifest``: ``{clusters: {"masked_accuracy": ..., ...}}``."""
    model.setup_validation_data({**model.cfg.validation_ds, "manifest_filepath": str(manifest), "num_workers": 0})
    trainer = pl.Trainer(
        **one_device(str(model.device)),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    (metrics,) = trainer.validate(model, verbose=False)
    sets: Dict[str, Dict[str, float]] = {}
    for name, value in metrics.items():
        prefix, _, metric = name.partition("/")
        if metric and prefix != "val_views":
            sets.setdefault(prefix.removeprefix("val_"), {})[metric] = float(value)
    return sets


# --- Views -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def view_cosines(
    model: pl.LightningModule, lines, mask_prob: float, mask_length: int, with_exchange: bool
) -> Dict[str, Dict[str, List[float]]]:
    """Mean cosine between the masked and the clean view of a frame after blocks 0 (the input) to L.

    Returns:
        ``{"apart": {"masked": [L + 1], "unmasked": [L + 1]}}``, and with Swap also ``"exchanged"``.
    """
    encoder, num_states = model.encoder, len(model.encoder.layers) + 1
    modes = ("exchanged", "apart") if with_exchange else ("apart",)
    sums = {mode: np.zeros((len(KINDS), num_states)) for mode in modes}
    counts = np.zeros(len(KINDS))
    for signal, length, mask_BT in _masked_batches(model, lines, mask_prob, mask_length):
        layers = range(num_states)
        valid_BT = valid_positions(frame_count(length), mask_BT.shape[1])
        frames = (mask_BT, valid_BT & ~mask_BT)
        counts += [int(chosen.sum()) for chosen in frames]
        masked = encoder.forward_views(signal, length, mask_BT, layers, use_swap=False).tapped
        clean, _ = encoder.hidden_states(signal, length)
        pairs = {"apart": [(masked[layer][0], clean[layer]) for layer in layers]}
        if with_exchange:
            both = encoder.forward_views(signal, length, mask_BT, layers, use_swap=True).tapped
            pairs["exchanged"] = [tuple(both[layer]) for layer in layers]
        for mode in modes:
            cosines = [torch.cosine_similarity(*pair, dim=-1) for pair in pairs[mode]]  # [B, T] each
            sums[mode] += [[float(cosine[chosen].sum()) for cosine in cosines] for chosen in frames]
    means = {mode: total / counts[:, None] for mode, total in sums.items()}
    return {mode: dict(zip(KINDS, rows.tolist())) for mode, rows in means.items()}


def _masked_batches(model, lines, mask_prob: float, mask_length: int) -> Iterator[Tuple[Tensor, Tensor, Tensor]]:
    """Signals ``[B, 1, S]``, sample counts ``[B]`` and masks ``[B, T]``, which are the same at every call."""
    generator = torch.Generator().manual_seed(SEED)
    for window in audio_windows(lines):
        for group in groups_of(window):
            waves = [torch.from_numpy(utterance.samples) for utterance in group]
            length = torch.tensor([len(wave) for wave in waves])
            frames = [frame_count(samples) for samples in length.tolist()]
            mask_BT = span_mask(frames, mask_prob, mask_length, same_count=False, generator=generator)
            audio = nn.utils.rnn.pad_sequence(waves, batch_first=True).to(model.device)
            signal, length = model.preprocessor(input_signal=audio, length=length.to(model.device))
            yield signal, length, mask_BT.to(model.device)


# --- Clusters --------------------------------------------------------------------------------------------------------


def layer_pnmi(
    states: AllHiddenStates, lines, alignments: Alignments, clusters: int, max_frames: int
) -> List[Dict[str, Any]]:
    """`unit_agreement` of k-means clusters of layers 0 to L, fitted on one half of a sample of frames and measured on
    the other.

    Raises:
        ValueError: fewer than four aligned frames per cluster, or an aligned utterance that occurs twice.
    """
    aligned = list(aligned_lines(lines, alignments))
    frames = sample_frames(_frames_with_units(states, aligned, alignments), max_frames, SEED)
    if len(frames) < 4 * clusters:
        raise ValueError(
            f"{len(frames)} aligned frames in {len(aligned)} of {len(lines)} utterances are too few for {clusters} "
            "clusters. Give more aligned speech, lower --clusters, or raise --max_frames if that is what limits them."
        )
    frames = frames[np.random.default_rng(SEED).permutation(len(frames))]
    half = len(frames) // 2
    units = frames[half:, -1].astype(np.int64)
    agreements = []
    for features in np.split(frames[:, :-1], states.num_states, axis=1):
        centres = fit_kmeans(np.ascontiguousarray(features[:half]), clusters, seed=SEED)
        joint = np.zeros((len(alignments.names), clusters), np.int64)
        np.add.at(joint, (units, assign(features[half:], centres)), 1)
        agreements.append(unit_agreement(joint))
    return agreements


def _frames_with_units(states: AllHiddenStates, lines, alignments: Alignments) -> Iterator[np.ndarray]:
    """Aligned frames of each utterance, ``[T, (L + 1) D + 1]``: all hidden states, then the number of the unit."""
    for window in audio_windows(lines):
        for group in groups_of(window):
            for utterance, features in zip(group, window_features(group, states)):
                units = alignments.frame_units(utterance_id(utterance.entry), len(features))
                yield np.column_stack([features.cpu(), units])[units >= 0].astype(np.float32)


def _file_hash(path: PathLike) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such manifest. Make one with scripts/label.py make.")
    return file_digest(path)


# --- Results ---------------------------------------------------------------------------------------------------------


def plot_diagnoses(diagnoses: Sequence[Diagnosis]):
    """A `matplotlib.figure.Figure` of the view cosines, PNMI and chance PNMI over the layers, one colour per name.

    Several runs (seeds) of one name are shown as their mean and range.
    """
    from matplotlib.figure import Figure

    from nemo_mshubert.analysis.layer_axis import draw_layer_axis

    with_pnmi = any("pnmi" in diagnosis for diagnosis in diagnoses)
    figure = Figure(figsize=(5, 6.4 if with_pnmi else 3.2), layout="constrained")
    axes = figure.subplots(2 if with_pnmi else 1, 1, squeeze=False)[:, 0]
    for number, name in enumerate(dict.fromkeys(diagnosis["name"] for diagnosis in diagnoses)):
        runs = [diagnosis for diagnosis in diagnoses if diagnosis["name"] == name]
        style = {"color": f"C{number}", "marker": ".", "markersize": 5}
        for mode, line in (("apart", ":"), ("exchanged", "-")):
            cosines = [run["views"][mode]["masked"] for run in runs if mode in run["views"]]
            _draw_runs(axes[0], cosines, label=f"{name}, {mode}", linestyle=line, **style)
        for key, label, line in (("pnmi", name, "-"), ("pnmi_chance", f"{name}, by chance", ":")):
            _draw_runs(axes[-1], [run[key] for run in runs if key in run], label=label, linestyle=line, **style)
    axes[0].set_ylabel("cosine of the views, masked frames")
    if with_pnmi:
        axes[1].set_ylabel("PNMI of clusters with phones")
    for one in axes:
        draw_layer_axis(one)
        # above the axes: inside, it would hide curves
        one.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize=8)
    return figure


def _draw_runs(axes, curves: Sequence[Sequence[float]], color: str, **style) -> None:
    if curves:
        layers = range(len(curves[0]))
        axes.plot(layers, np.mean(curves, axis=0), color=color, **style)
        axes.fill_between(layers, np.min(curves, axis=0), np.max(curves, axis=0), color=color, alpha=0.2)


def prediction_table(diagnoses: Sequence[Diagnosis], title: str) -> Table:
    """One row per model and label set."""
    header = [
        "model",
        "set",
        "masked %",
        "unmasked %",
        "loss",
        "codes predicted",
        "label entropy",
        "predicted entropy",
    ]
    rows = []
    for diagnosis in diagnoses:
        for clusters, values in diagnosis["sets"].items():
            accuracies = [f"{100 * values[key]:.2f}" for key in ("masked_accuracy", "unmasked_accuracy")]
            entropies = [f"{values[key]:.2f}" for key in ("label_entropy_bits", "predicted_entropy_bits")]
            counts = [f"{values['loss']:.3f}", f"{values['predicted_codes']:.0f}"]
            rows.append([diagnosis["name"], clusters, *accuracies, *counts, *entropies])
    return Table(title, header, rows, (0,), "Entropies in bits, at masked frames.")


def diagnosis_table(diagnoses: Sequence[Diagnosis]) -> str:
    """Markdown: `prediction_table`, then the curves over the layers."""
    table = prediction_table(diagnoses, "Predictions")
    lines = [markdown_table(table.header, table.rows, table.text_columns), "", table.note]
    for diagnosis in diagnoses:
        curves = {
            f"cosine of the views, {mode}, {kind} frames": values
            for mode, kinds in diagnosis["views"].items()
            for kind, values in kinds.items()
        }
        if "pnmi" in diagnosis:
            curves[f"PNMI of {diagnosis['clusters']} clusters"] = diagnosis["pnmi"]
            curves[f"PNMI by chance, on {diagnosis['aligned_frames']} frames"] = diagnosis["pnmi_chance"]
        lines += ["", f"{diagnosis['name']}, layers 0 to {len(diagnosis['views']['apart']['masked']) - 1}:"]
        lines += [f"  {title}: {' '.join(f'{value:.3f}' for value in values)}" for title, values in curves.items()]
    return "\n".join(lines)
