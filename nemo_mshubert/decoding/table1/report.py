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

"""Table 1 from the results on disk, next to the paper's numbers: as Markdown, LaTeX, and CSV with all counts."""

import csv
import io
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from nemo_mshubert.decoding.results import read_results
from nemo_mshubert.decoding.table1.cells import Cells
from nemo_mshubert.decoding.table1.reported import REPORTED, SETS
from nemo_mshubert.decoding.table1.spec import Table1Spec
from nemo_mshubert.decoding.table1.step import Step, is_current, is_finished
from nemo_mshubert.markdown import markdown_table
from nemo_mshubert.whole_files import atomic_write

ABSENT = "-"


class Cell(NamedTuple):
    """One model, split and set: the paper's WER in percent, and our results from `evaluate.py`, if there are any."""

    split: str
    method: str
    evaluation_set: str
    reported: Optional[float]
    ours: Optional[Dict[str, Any]]
    outdated: bool = False  # there are results, but for settings or files other than the spec's

    @property
    def wer(self) -> Optional[float]:
        """Our WER with LM, in percent."""
        return 100 * self.ours["lexicon_beam"]["wer"] if self.ours else None


def table_cells(spec: Table1Spec, conf: Path) -> Iterator[Cell]:
    """All cells, row by row. Each split has the paper's methods in the paper's order, with our results for models of
    the same name, and then the other models of ``spec``.

    Args:
        conf: the folder with the recipes.
    """
    models = {model.name: model for model in spec.models}
    for split in dict.fromkeys([*REPORTED, *spec.splits]):
        reported = REPORTED.get(split, {})
        ours = list(models) if split in spec.splits else []
        for method in dict.fromkeys([*reported, *ours]):
            numbers = dict(zip(SETS, reported.get(method, ())))
            for name in dict.fromkeys([*SETS, *spec.sets]):
                cell = Cell(split, method, name, numbers.get(name), None)
                if method in ours and name in spec.sets:
                    cell = _with_results(cell, spec, Cells(spec, models[method], split, conf).steps_of(name))
                yield cell


def _with_results(cell: Cell, spec: Table1Spec, steps: List[Step]) -> Cell:
    folder = steps[-1].folder
    if not is_finished(folder):
        return cell
    if not all(map(is_current, steps)):
        return cell._replace(outdated=True)
    results = read_results(folder / "results.json").results
    return cell._replace(ours=results[Path(spec.sets[cell.evaluation_set]).stem])


def _rows(cells: List[Cell]) -> Dict[tuple, List[Cell]]:
    """``(split, method)`` -> its cells, in the order of the sets."""
    rows: Dict[tuple, List[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.split, cell.method), []).append(cell)
    return rows


def _number(value: Optional[float], digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _numbers(row: List[Cell]) -> List[str]:
    """The reported and our number for each set in turn; the paper prints one digit."""
    return [text for cell in row for text in (_number(cell.reported, 1), _number(cell.wer, 2))]


def wer_table(cells: List[Cell]) -> str:
    """WER in percent, with two columns per set, the paper's and ours. Outdated results are left out, and listed below
    the table."""
    rows = _rows(cells)
    sets = [cell.evaluation_set for cell in next(iter(rows.values()))]
    columns = [f"{name} {whose}" for name in sets for whose in ("reported", "ours")]
    numbers = [(split, method, *_numbers(row)) for (split, method), row in rows.items()]
    lines = [markdown_table(("split", "model", *columns), numbers, text_columns=[0, 1])]
    outdated = [f"{cell.method}, {cell.split}, {cell.evaluation_set}" for cell in cells if cell.outdated]
    if outdated:
        lines += ["", f"Left out, of other settings or files than the spec names now: {'; '.join(outdated)}."]
    return "\n".join(lines) + "\n"


def latex_table(cells: List[Cell]) -> str:
    """The same table as a LaTeX ``tabular`` for the package booktabs."""
    rows = _rows(cells)
    sets = [cell.evaluation_set for cell in next(iter(rows.values()))]
    lines = [r"\begin{tabular}{l" + "rr" * len(sets) + "}", r"\toprule"]
    lines.append(" & ".join(["", *(rf"\multicolumn{{2}}{{c}}{{{_escape(name)}}}" for name in sets)]) + r" \\")
    lines.append(" & ".join(["Method", *["reported & ours"] * len(sets)]) + r" \\")
    previous = None
    for (split, method), row in rows.items():
        if split != previous:
            lines += [r"\midrule", rf"\multicolumn{{{1 + 2 * len(sets)}}}{{l}}{{\textit{{{_escape(split)}}}}} \\"]
            previous = split
        lines.append(" & ".join([_escape(method), *_numbers(row)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escape(text: str) -> str:
    return "".join("\\" + letter if letter in "&%$#_{}" else letter for letter in text)


CSV_COLUMNS = (
    "split,model,set,reported_wer,wer,greedy_wer,cer,utterances,words,substitutions,insertions,deletions".split(",")
)


def csv_table(cells: List[Cell]) -> str:
    """One line per cell. Rates are in percent, and empty if there is no number. Counts are those of the decoding with
    LM."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for cell in cells:
        values: List[Any] = [cell.split, cell.method, cell.evaluation_set, cell.reported]
        if cell.ours:
            best, words = cell.ours["lexicon_beam"], cell.ours["lexicon_beam"]["words"]
            rates = (best["wer"], cell.ours["greedy"]["wer"], best["cer"])
            values += [f"{100 * rate:.3f}" for rate in rates]
            values += [best["utterances"], words["reference_length"]]
            values += [words["substitutions"], words["insertions"], words["deletions"]]
        writer.writerow(values + [None] * (len(CSV_COLUMNS) - len(values)))
    return stream.getvalue()


def write_tables(spec: Table1Spec, conf: Path) -> str:
    """Write ``table1.md``, ``.csv`` and ``.tex`` into the output folder; returns the Markdown."""
    cells = list(table_cells(spec, conf))
    markdown = wer_table(cells)
    for suffix, text in (("md", markdown), ("csv", csv_table(cells)), ("tex", latex_table(cells))):
        with atomic_write(Path(spec.output) / f"table1.{suffix}") as stream:
            stream.write(text)
    return markdown
