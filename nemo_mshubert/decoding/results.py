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

"""``results.json`` of scripts/evaluate.py: the error rates of one model on one or more manifests."""

import json
from pathlib import Path
from typing import Any, Dict, NamedTuple

from nemo_mshubert.data.digest import file_digest
from nemo_mshubert.markdown import markdown_table
from nemo_mshubert.whole_files import PathLike, write_json

Results = Dict[str, Dict[str, Dict[str, Any]]]  # name of a manifest -> decoding -> summary


class Source(NamedTuple):
    """A manifest at the time of its evaluation."""

    path: str
    sha256: str


class Stored(NamedTuple):
    """The content of a results.json.

    Attributes:
        model: name of the model.
        weights: `weights_fingerprint` of the model.
        manifests: by their file names without suffix.
        results: by the same names.
    """

    model: str
    weights: str
    manifests: Dict[str, Source]
    results: Results


def source_of(manifest: PathLike) -> Source:
    """Path and content digest of a manifest."""
    return Source(str(Path(manifest).resolve()), file_digest(manifest))


def read_results(path: PathLike) -> Stored:
    """Read a results.json; raises ``FileNotFoundError``, or ``ValueError`` for another kind of file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file. Write it with scripts/evaluate.py.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        manifests = {name: Source(**source) for name, source in content["manifests"].items()}
        stored = Stored(content["model"], content["weights"], manifests, content["results"])
        results_table(stored.results)  # reads every number, so that a missing one is found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a results.json of scripts/evaluate.py ({error!r}). If it was one, remove it or choose "
            "another --output, and evaluate anew."
        ) from error
    return stored


def earlier_results(path: PathLike, model: str, weights: str) -> Stored:
    """The results in ``path`` for the model with these weights, under any name; none if there is no such file.

    Raises:
        ValueError: ``path`` holds results of another model, or something else.
    """
    if not Path(path).is_file():
        return Stored(model, weights, {}, {})
    stored = read_results(path)
    if stored.weights != weights:
        raise ValueError(
            f"{path}: holds results of {stored.model}, whose weights (or their --precision) are not those of this "
            "model. Choose another --output, or remove that folder."
        )
    return stored._replace(model=model)


def require_same_set(path: PathLike, stored: Stored, name: str, source: Source) -> None:
    """Raise ``ValueError`` if ``path`` has the results of another set under ``name``.

    A manifest that was moved or copied is the same set, and so is one that was rewritten in its place.
    """
    known = stored.manifests.get(name)
    if known and known.path != source.path and known.sha256 != source.sha256:
        raise ValueError(
            f"{path}: its {name!r} is {known.path}, whose results and predictions those of {source.path} would "
            "replace. Choose another --output, or rename the manifest."
        )


def with_new(stored: Stored, name: str, source: Source, found: Dict[str, Dict[str, Any]]) -> Stored:
    """``stored`` with the results ``found`` for each decoder; those of other decoders stay if the manifest is the
    same."""
    known = stored.manifests.get(name)
    others = stored.results[name] if known and known.sha256 == source.sha256 else {}
    results = {**stored.results, name: {**others, **found}}
    return stored._replace(manifests={**stored.manifests, name: source}, results=results)


def write_results(path: PathLike, stored: Stored) -> None:
    """Write what `read_results` reads."""
    manifests = {name: source._asdict() for name, source in stored.manifests.items()}
    write_json(path, {**stored._asdict(), "manifests": manifests})


def results_table(results: Results) -> str:
    """The results as a Markdown table."""
    rows = []
    for manifest, by_decoder in results.items():
        for decoder, summary in by_decoder.items():
            words = summary["words"]
            counts = [words[key] for key in ("substitutions", "insertions", "deletions")]
            rates = f"{100 * summary['wer']:.2f}", *counts, f"{100 * summary['cer']:.2f}"
            rows.append((manifest, decoder, summary["utterances"], words["reference_length"], *rates))
    header = "manifest", "decoding", "utterances", "words", "WER %", "sub", "ins", "del", "CER %"
    return markdown_table(header, rows, text_columns=[0, 1])
