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

"""Speed of greedy CTC inference, audio files to text, compared with ``transformers.HubertForCTC`` of equal weights.

Both sides read the same files ahead with the same reader, and use the same batches by duration. Ours is what
scripts/evaluate.py runs (NeMo's model, forward pass and greedy decoding). Theirs is the documented use of
transformers: feature extractor (which pads the batch), forward pass (without a mask at base size), argmax, and the
tokenizer's ``batch_decode``.

At base size, the result of their model for an utterance depends on its padding, since the first norm sees it; ours
does not. Texts are therefore compared in batches of one utterance. In bf16 the two round differently, so some texts
differ.
"""

import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf
from transformers import HubertForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.benchmarks.labelling import first_seconds
from nemo_mshubert.benchmarks.measurement import Column, Row, median_seconds
from nemo_mshubert.benchmarks.pretraining_step import encoder_options, load_config
from nemo_mshubert.convert.huggingface import write_huggingface
from nemo_mshubert.convert.nemo import read_nemo
from nemo_mshubert.data.manifest import SAMPLE_RATE, read_manifest
from nemo_mshubert.decoding.acoustic import audio_batches, manifest_log_probs
from nemo_mshubert.decoding.evaluation import PRECISIONS, greedy_decoder
from nemo_mshubert.models.ctc import ctc_config
from nemo_mshubert.models.loading import restore_model, save_model
from nemo_mshubert.whole_files import PathLike

COLUMNS = [
    Column("row", "greedy CTC"),
    Column("precision", "precision"),
    Column("batch_seconds", "batch, s", ".0f"),
    Column("seconds", "seconds", ".2f"),
    Column("real_time_factor", "real-time factor", ".4f"),
    Column("time_over_ours", "time / ours", ".2f"),
    Column("same_texts", "texts as ours, alone", ".0%"),
]
Transcribe = Callable[[float], List[str]]  # seconds per batch -> texts in the order of the manifest


def benchmark(
    configs: Path,
    size: str,
    model: Optional[PathLike],
    manifest: PathLike,
    seconds: float,
    batch_seconds: float,
    precision: str,
    repeats: int,
    device: torch.device,
) -> List[Row]:
    """The rows.

    Args:
        configs: folder of ``mshubert_<size>.yaml``, for a model with random weights where ``model`` is None.
        model: ``.nemo`` of a letter CTC model.
        seconds: of audio to use, from the start of the manifest.
        batch_seconds: of padded audio in a batch.
        precision: a key of `PRECISIONS`, for the weights and activations of both models.
    """
    dtype = PRECISIONS[precision]
    entries = first_seconds(read_manifest(manifest), seconds)
    audio_seconds = sum(entry["duration"] for entry in entries)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(model) if model else save_random_model(configs, size, Path(folder) / "random.nemo")
        checkpoint = read_nemo(path)
        if checkpoint.ctc is None or checkpoint.ctc.letters() is None:
            raise ValueError(f"{path}: expected a CTC model over letters. Make one with scripts/ssl_to_ctc.py.")
        write_huggingface(checkpoint, Path(folder) / "transformers")
        calls: Dict[str, Transcribe] = {
            "ours": ours(path, entries, device, dtype),
            "transformers": theirs(Path(folder) / "transformers", entries, device, dtype),
        }
        texts = {name: call(0.0) for name, call in calls.items()}  # 0: each utterance is a batch
        measured = median_seconds(
            {name: lambda call=call: call(batch_seconds) for name, call in calls.items()}, repeats, device
        )
    return [
        {
            "row": name,
            "precision": precision,
            "batch_seconds": batch_seconds,
            "seconds": value,
            "real_time_factor": value / audio_seconds,
            "time_over_ours": value / measured["ours"],
            "same_texts": sum(a.strip() == b.strip() for a, b in zip(texts[name], texts["ours"])) / len(entries),
        }
        for name, value in measured.items()
    ]


def save_random_model(configs: Path, size: str, path: Path) -> Path:
    """Save a letter CTC model of that size. Its output layer has large weights, so that texts are not empty."""
    config = load_config(configs, size)
    encoder = {"_target_": "nemo_mshubert.modules.mshubert_encoder.MSHuBERTEncoder", **encoder_options(config)}
    preprocessor = OmegaConf.to_container(config.model.preprocessor, resolve=True)
    torch.manual_seed(0)
    model = EncDecCTCModel(ctc_config(preprocessor, encoder, ENGLISH_LABELS, None))
    torch.nn.init.normal_(model.decoder.decoder_layers[0].weight)
    save_model(model, path)
    return path


def ours(path: Path, entries: List[Dict[str, Any]], device: torch.device, dtype: torch.dtype) -> Transcribe:
    model = restore_model(path).to(device, dtype).eval()  # the preprocessor casts the audio
    decode = greedy_decoder(model).decode

    def transcribe(batch_seconds: float) -> List[str]:
        log_probs = manifest_log_probs(model, entries, batch_seconds, progress="ours")
        return decode([], [log_probs[index] for index in range(len(entries))])

    return transcribe


def theirs(folder: Path, entries: List[Dict[str, Any]], device: torch.device, dtype: torch.dtype) -> Transcribe:
    model = HubertForCTC.from_pretrained(folder).to(device, dtype).eval()
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)

    @torch.inference_mode()
    def transcribe(batch_seconds: float) -> List[str]:
        texts = [""] * len(entries)
        for batch, waves in audio_batches(entries, batch_seconds):
            inputs = extractor(waves, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
            mask = inputs.attention_mask.to(device) if extractor.return_attention_mask else None
            labels = model(inputs.input_values.to(device, dtype), attention_mask=mask).logits.argmax(dim=-1).cpu()
            frames = model._get_feat_extract_output_lengths(torch.tensor(list(map(len, waves)))).tolist()
            decoded = tokenizer.batch_decode([row[:count] for row, count in zip(labels, frames)])
            for index, text in zip(batch, decoded):
                texts[index] = text
        return texts

    return transcribe
