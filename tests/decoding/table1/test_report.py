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

"""Table 1 as printed: the paper's numbers as it prints them, ours from the counts on disk, never one for the other."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_mshubert.decoding.evaluation import error_summary
from nemo_mshubert.decoding.results import Source, Stored, write_results
from nemo_mshubert.decoding.table1.cells import Cells
from nemo_mshubert.decoding.table1.report import (
    Cell,
    csv_table,
    latex_table,
    table_cells,
    wer_table,
    write_tables,
)
from nemo_mshubert.decoding.table1.reported import REPORTED, SETS
from nemo_mshubert.decoding.table1.spec import read_spec
from nemo_mshubert.decoding.table1.step import STEP_FILE, write_record

pytestmark = pytest.mark.unit
CONF = Path(__file__).parents[3] / "conf"


def test_reported_numbers_are_those_of_the_paper(shared_data):
    """Read from the paper's text, where it lies beside the real speech."""
    paper = shared_data.parent / "reference" / "ms-hubert-paper.txt"
    if not paper.is_file():
        pytest.skip(f"no paper in {paper}")
    table, split = {}, None
    for line in paper.read_text(encoding="utf-8").splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 6:
            continue
        if fields[0].endswith("hr"):
            split = table.setdefault(fields[0].removesuffix("r"), {})
        elif split is not None:
            numbers = tuple(None if number == "-" else float(number) for number in fields[1:5])
            split[fields[0].split(" [")[0]] = numbers
    assert table == REPORTED
    assert [list(methods) for methods in table.values()] == [list(methods) for methods in REPORTED.values()]


def test_rows_that_are_compared_are_those_of_the_paper():
    """Written off the paper's Table 1, which is not where the tests of a release run."""
    rows = {
        ("1h", "HuBERT"): (5.6, 10.9, 6.1, 11.3),
        ("1h", "MS-HuBERT"): (5.6, 10.9, 5.9, 11.3),
        ("1h", "- Swap"): (5.9, 11.6, 6.2, 12.3),
        ("10h", "HuBERT"): (3.9, 9.0, 4.3, 9.4),
        ("10h", "MS-HuBERT"): (3.6, 8.5, 4.1, 8.8),
        ("10h", "- Swap"): (3.8, 8.6, 4.1, 9.2),
        ("100h", "HuBERT"): (2.7, 7.8, 3.4, 8.1),
        ("100h", "MS-HuBERT"): (2.4, 7.1, 3.0, 7.2),
        ("100h", "- Swap"): (2.6, 6.9, 3.1, 7.4),
        ("960h", "MS-HuBERT"): (1.8, 5.1, 2.4, 5.5),
    }
    methods = ("HuBERT", "MS-HuBERT", "- Swap")
    found = {(split, name): row for split, table in REPORTED.items() for name, row in table.items() if name in methods}
    assert found == rows and SETS == ("dev-clean", "dev-other", "test-clean", "test-other")


@pytest.fixture
def spec(write_spec, tmp_path):
    """MS-HuBERT and a baseline on 1h; test-clean of MS-HuBERT is done: 2 errors in 5 words, 3 without LM."""
    for name in ("ssl.nemo", "train.json", "dev.json", "test.json", "lm.arpa", "lm.lexicon"):
        (tmp_path / name).write_text(name)
    ssl = str(tmp_path / "ssl.nemo")
    models = [{"name": "baseline_1", "ssl": ssl}, {"name": "MS-HuBERT", "ssl": ssl}]
    spec = read_spec(write_spec(models=models))
    folder = spec.set_folder(spec.models[1], "1h", "test-clean")
    folder.mkdir(parents=True)
    lines = [{"text": "the cat sat"}, {"text": "a dog"}]
    results = {
        "lexicon_beam": error_summary(lines, ["the bat sat", "a big dog"]),
        "greedy": error_summary(lines, ["the bat", "a big dog"]),
    }
    stored = Stored("m.nemo", "0", {"test": Source("test.json", "1")}, {"test": results})
    write_results(folder / "results.json", stored)
    finish(spec)
    return spec


def finish(spec):
    """Record that all steps of the cell that is done have ended well."""
    for step in Cells(spec, spec.models[1], "1h", CONF).steps_of("test-clean"):
        write_record(step.folder, step.record, finished=True)


def test_markdown_has_both_columns_and_every_method(spec):
    lines = wer_table(list(table_cells(spec, CONF))).splitlines()
    assert lines[0] == "| split | model | " + " | ".join(f"{name} reported | {name} ours" for name in SETS) + " |"
    assert "| 1h | MS-HuBERT | 5.6 | - | 10.9 | - | 5.9 | 40.00 | 11.3 | - |" in lines
    assert "| 1h | WavLM | - | - | - | - | 5.7 | - | 10.8 | - |" in lines
    assert "| 1h | baseline_1 | - | - | - | - | - | - | - | - |" in lines
    assert "| 960h | MS-HuBERT | 1.8 | - | 5.1 | - | 2.4 | - | 5.5 | - |" in lines
    methods = [line.split(" | ")[1] for line in lines if line.startswith("| 1h")]
    assert methods == ["wav2vec 2.0", "HuBERT", "WavLM", "data2vec", "MS-HuBERT", "- Swap", "baseline_1"]
    assert len({line.count("|") for line in lines}) == 1


def test_csv_holds_the_counts(spec):
    rows = list(csv.DictReader(io.StringIO(csv_table(list(table_cells(spec, CONF))))))
    assert len(rows) == 4 * (sum(map(len, REPORTED.values())) + 1)
    (row,) = [row for row in rows if row["wer"]]
    assert row == {
        **{"split": "1h", "model": "MS-HuBERT", "set": "test-clean", "reported_wer": "5.9"},
        **{"wer": "40.000", "greedy_wer": "60.000", "cer": "31.250", "utterances": "2", "words": "5"},
        **{"substitutions": "1", "insertions": "1", "deletions": "0"},
    }


def test_latex_has_as_many_columns_as_it_declares(spec):
    """One `&` too many and the paper does not compile."""
    text = latex_table(list(table_cells(spec, CONF)))
    rows = [line for line in text.splitlines() if "&" in line]
    assert {line.count("&") for line in rows[1:]} == {8} and rows[0].count("&") == 4
    assert text.count(r"\multicolumn{2}{c}") == 4 and r"\begin{tabular}{lrrrrrrrr}" in text
    assert r"MS-HuBERT & 5.6 & - & 10.9 & - & 5.9 & 40.00 & 11.3 & - \\" in rows and r"baseline\_1 & - & -" in text
    assert all(line.endswith(r"\\") for line in rows)


def test_a_cell_that_was_not_finished_is_not_in_the_table(spec):
    """Results of an evaluation that is being run again with other weights."""
    record = spec.set_folder(spec.models[1], "1h", "test-clean") / STEP_FILE
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    assert all(cell.ours is None for cell in table_cells(spec, CONF))
    record.unlink()
    assert all(cell.ours is None for cell in table_cells(spec, CONF))


MADE_ANEW = ["CTC model made anew", "model made anew", "log-probabilities made anew", "tuning made anew"]  # by step


@pytest.mark.parametrize("change", ["beam", "set", "lm", *MADE_ANEW, "data gone"])
def test_results_of_other_settings_are_left_out_and_named(spec, tmp_path, change):
    """A row of the old LM beside one of the new, and a KeyError hours later where a manifest had been renamed."""
    if change == "beam":
        spec = replace(spec, test_beam=9)
    elif change == "set":
        (tmp_path / "test_v2.json").write_text("test.json")
        spec = replace(spec, test_sets={"test-clean": str(tmp_path / "test_v2.json")})
    elif change == "lm":
        (tmp_path / "lm.arpa").write_text("another")
    elif change in MADE_ANEW:
        step = Cells(spec, spec.models[1], "1h", CONF).steps()[MADE_ANEW.index(change)]
        write_record(step.folder, step.record, finished=True)
    else:
        (tmp_path / "train.json").unlink()
    cells = list(table_cells(spec, CONF))
    assert all(cell.ours is None for cell in cells)
    note = "Left out, of other settings or files than the spec names now: MS-HuBERT, 1h, test-clean.\n"
    assert wer_table(cells).endswith(f"|\n\n{note}")


def test_sets_of_other_corpora_have_columns_of_their_own(write_spec, tmp_path):
    spec = read_spec(write_spec(test_sets={"voices": "voices.json"}))
    write_tables(spec, CONF)
    written = [(tmp_path / "out" / f"table1.{suffix}").read_text() for suffix in ("md", "csv", "tex")]
    assert "| voices reported | voices ours |" in written[0] and "1h,MS-HuBERT,voices,,,," in written[1]
    assert r"\multicolumn{2}{c}{voices}" in written[2]


def test_kinds_of_errors_have_columns_of_their_own():
    """A model that drops words would look like one that makes them up."""
    lines = [{"text": "a"}, {"text": "b"}, {"text": "c d e"}]
    results = {name: error_summary(lines, ["x", "b y z", ""]) for name in ("lexicon_beam", "greedy")}
    (row,) = csv.DictReader(io.StringIO(csv_table([Cell("1h", "MS-HuBERT", "test-clean", None, results)])))
    assert (row["substitutions"], row["insertions"], row["deletions"]) == ("1", "2", "3")


def test_latex_takes_any_name():
    """A split or set with an underscore, and the paper does not compile. Models of one split are one block."""
    text = latex_table([Cell("1h_new", method, "dev#2", 5.0, None) for method in ("50% & more", "{a}$")])
    assert text.count(r"\midrule") == 1 and r"\multicolumn{3}{l}{\textit{1h\_new}} \\" in text
    assert r"\multicolumn{2}{c}{dev\#2}" in text
    assert r"50\% \& more & 5.0 & - \\" in text and r"\{a\}\$ & 5.0 & - \\" in text


@pytest.mark.parametrize(
    "name", ["ssl.nemo", "train.json", "dev.json", "clean.json", "test.json", "lm.arpa", "lm.lexicon"]
)
def test_results_of_files_that_have_changed_are_left_out(spec, tmp_path, name):
    """A row would mix an encoder, a lexicon or a set of today with those that the other rows are of."""
    (tmp_path / "clean.json").write_text("clean.json")
    dev_sets = {**spec.dev_sets, "dev-clean": str(tmp_path / "clean.json")}
    spec = replace(spec, dev_sets=dev_sets, tune_on=["dev-clean"])
    finish(spec)
    assert any(cell.ours for cell in table_cells(spec, CONF))
    (tmp_path / name).write_text("another")
    assert not any(cell.ours for cell in table_cells(spec, CONF))
