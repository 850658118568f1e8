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

"""``results.json`` of scripts/evaluate.py: the error rates of one model, on one manifest after another."""

import json
from pathlib import Path
from typing import Any, Dict

from nemo_mshubert.data.manifest import PathLike, atomic_write

Results = Dict[str, Dict[str, Dict[str, Any]]]  # name of a manifest -> decoding -> summary


def earlier_results(path: PathLike, weights: str) -> Results:
    """What ``path`` holds of the model with these weights (`encoder_fingerprint`); nothing where there is no such file.

    Raises:
        ValueError: it holds results of another model, or something else.
    """
    if not Path(path).is_file():
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        model, theirs, results = content["model"], content.get("weights"), dict(content["results"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not a results.json of scripts/evaluate.py ({error!r}). Remove it or choose another --output."
        ) from error
    if theirs != weights:
        raise ValueError(
            f"{path}: holds results of {model}, whose weights (or their --precision) are not those of this model. "
            "Choose another --output, or remove that folder."
        )
    return results


def write_results(path: PathLike, model: str, weights: str, results: Results) -> None:
    """Write ``results`` of the model of this name with these weights."""
    with atomic_write(path) as stream:
        json.dump({"model": model, "weights": weights, "results": results}, stream, indent=2)


def results_table(results: Results) -> str:
    """Markdown table."""
    header = "| manifest | decoding | utterances | words | WER % | sub | ins | del | CER % |"
    rows = [header, "|---|---|---|---|---|---|---|---|---|"]
    for manifest, by_decoder in results.items():
        for decoder, summary in by_decoder.items():
            words = summary["words"]
            rows.append(
                f"| {manifest} | {decoder} | {summary['utterances']} | {words['reference_length']} | "
                f"{100 * summary['wer']:.2f} | {words['substitutions']} | {words['insertions']} | "
                f"{words['deletions']} | {100 * summary['cer']:.2f} |"
            )
    return "\n".join(rows)
