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

"""The model card: what a model is, what it was trained on and how well it performs, for people and for the hub."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence

import torch
from huggingface_hub import EvalResult, ModelCardData
from nemo.collections.asr.models import EncDecCTCModel
from nemo.core.classes import ModelPT
from omegaconf import OmegaConf

from nemo_mshubert.decoding.results import Results, results_table
from nemo_mshubert.models.ctc import pretraining_labels
from nemo_mshubert.modules.fingerprint import weights_fingerprint
from nemo_mshubert.package_info import __version__
from nemo_mshubert.whole_files import PathLike

PAPER = """@inproceedings{yadav2024mshubert,
  title = {{MS-HuBERT}: Mitigating Pre-training and Inference Mismatch in Masked Language Modelling methods for
           learning Speech Representations},
  author = {Yadav, Hemant and Sitaram, Sunayana and Shah, Rajiv Ratn},
  booktitle = {Interspeech},
  year = {2024},
  note = {arXiv:2406.05661}
}"""


@dataclass
class Facts:
    """Facts that a model file does not contain.

    Attributes:
        licence: the hub's identifier, e.g. ``cc-by-4.0``.
        data: one sentence per corpus, for pre-training and for fine-tuning.
        language: code, e.g. ``en``.
        results: of scripts/evaluate.py.
        evaluated: `weights_fingerprint` of the model with these results; None if there are no results.
    """

    licence: str
    data: Sequence[str]
    language: str = "en"
    results: Results = field(default_factory=dict)
    evaluated: Optional[str] = None


def require_results_of(model: ModelPT, facts: Facts, where: PathLike) -> None:
    """Raise ``ValueError`` if ``facts.results`` belong to another model than this one, whose name is ``where``."""
    precisions = (torch.float32, torch.bfloat16)  # the precisions of scripts/evaluate.py
    if facts.evaluated and all(facts.evaluated != weights_fingerprint(model, each) for each in precisions):
        raise ValueError(
            f"{where}: the results are of a model with other weights. Evaluate this one with scripts/evaluate.py into "
            "a folder of its own, and give the results.json in it, or leave --results out."
        )


def model_card(model: ModelPT, name: str, facts: Facts, has_transformers_files: bool) -> str:
    """Markdown with the hub's YAML header; ``name`` is the name of the folder and of the ``.nemo`` in it."""
    sections = [
        f"# {name}",
        _what_it_is(model),
        "## Use",
        _use(model, name, has_transformers_files),
        "## Data",
        "\n".join(f"- {sentence}" for sentence in facts.data),
        *_labels(model),
        "## Results",
        results_table(facts.results) if facts.results else "None were given.",
        "## Config",
        f"```yaml\n{OmegaConf.to_yaml(_network(model))}```",
        "## Licence",
        facts.licence,
        "## Citation",
        f"```bibtex\n{PAPER.strip()}\n```",
    ]
    header = _header(model, name, facts, has_transformers_files)
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _header(model: ModelPT, name: str, facts: Facts, has_transformers_files: bool) -> ModelCardData:
    results = [
        EvalResult(
            task_type="automatic-speech-recognition",
            dataset_type=manifest,
            dataset_name=manifest,
            metric_type="wer",
            metric_name=f"WER %, {decoder}",
            metric_value=round(100 * summary["wer"], 2),
        )
        for manifest, by_decoder in facts.results.items()
        for decoder, summary in by_decoder.items()
    ]
    return ModelCardData(
        language=facts.language,
        license=facts.licence,
        library_name="nemo",
        pipeline_tag="automatic-speech-recognition" if _is_ctc(model) else "feature-extraction",
        tags=["NeMo", "speech", "hubert", "ms-hubert", *(["transformers"] if has_transformers_files else [])],
        model_name=name,
        eval_results=results or None,
    )


def _what_it_is(model: ModelPT) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    if not _is_ctc(model):
        return f"A pre-trained speech encoder with its prediction heads, {millions:.1f} M parameters."
    outputs = f"{len(model.decoder.vocabulary)} {'word pieces' if hasattr(model, 'tokenizer') else 'letters'}"
    return f"A CTC speech recogniser over {outputs} around a pre-trained encoder, {millions:.1f} M parameters."


def _use(model: ModelPT, name: str, has_transformers_files: bool) -> str:
    call = 'print(model.transcribe(["speech.wav"])[0].text)' if _is_ctc(model) else "encoder = model.encoder"
    base = "ASRModel" if _is_ctc(model) else "ModelPT"
    module = "nemo.collections.asr.models" if _is_ctc(model) else "nemo.core.classes"
    text = (
        "With `nemo_mshubert` installed (`pip install .` in its source tree, which brings NVIDIA NeMo; version "
        f"{__version__} wrote this card). Nothing of it has to be imported. `ORGANISATION` is whose repository this "
        "is:\n\n"
        f"```python\nfrom {module} import {base}\n\n"
        f'model = {base}.from_pretrained("ORGANISATION/{name}")  # or {base}.restore_from("{name}.nemo")\n{call}\n```'
    )
    if has_transformers_files:
        kind = "AutoModelForCTC" if _is_ctc(model) and not hasattr(model, "tokenizer") else "AutoModel"
        text += (
            f"\n\nWith transformers:\n\n```python\nfrom transformers import {kind}\n\n"
            f'model = {kind}.from_pretrained("ORGANISATION/{name}")\n```'
        )
    return text


def _labels(model: ModelPT) -> List[str]:
    """A heading and a sentence about the pseudo-labels, if the model file describes them."""
    origin = pretraining_labels(model)
    if origin is None:
        return []
    sets = ", ".join(map(str, origin["sets"]))
    sentence = f"k-means sets of {sets} clusters of {origin['features']}; label maker {origin['label_maker']}."
    return ["## Labels of the pre-training", sentence]


def _network(model: ModelPT) -> Dict[str, Any]:
    config = OmegaConf.to_container(model.cfg, resolve=True)
    return {part: config[part] for part in ("preprocessor", "encoder", "decoder") if part in config}


def _is_ctc(model: ModelPT) -> bool:
    return isinstance(model, EncDecCTCModel)
