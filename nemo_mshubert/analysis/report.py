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

"""The report on one or more runs, finished or not: tables as Markdown, and everything as one HTML file."""

import base64
from html import escape
from typing import List, Optional

from nemo_mshubert.analysis.curves import Plot, comparison_plots, learning_rate_plot, pretraining_plots, wer_plot
from nemo_mshubert.analysis.findings import sections
from nemo_mshubert.analysis.report_tables import clock, missing_parts, score_tables, setup_tables
from nemo_mshubert.analysis.run_folder import Run
from nemo_mshubert.markdown import Table, markdown_table

SHOWN_ALONE = 2  # up to so many pre-trainings have their own plots; more share plots

# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown_report(run: Run) -> str:
    """The tables for a terminal, and a list of the missing parts."""
    found = [table for section in sections(run.findings) for table in section.tables]
    parts = [_titled(table) for table in [*score_tables(run), *setup_tables(run), *found]]
    return "\n\n".join([*parts, *(f"*{sentence}*" for sentence in missing_parts(run))])


def _titled(table: Table) -> str:
    parts = [f"**{table.title}**", markdown_table(table.header, table.rows, table.text_columns), table.note]
    return "\n\n".join(filter(None, parts))


# --- HTML ------------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 66rem; margin: auto; padding: 1rem }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #e5e5e5 }
th { background: #f6f6f6; vertical-align: bottom }
td.number, th.number { text-align: right }
td { white-space: nowrap }
td:first-child, th:first-child { position: sticky; left: 0; background: #fff }
th:first-child { background: #f6f6f6 }
.missing { background: #fff6e0; padding: .5rem .8rem; border-left: 4px solid #e0a000 }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)) }
.plots { gap: 1rem; margin: 1rem 0 }
figure { margin: 0 }
img { width: 100%; height: auto }
figcaption, .note { font-size: .85rem; color: #555 }
pre { background: #f6f6f6; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
"""


def html_report(run: Run) -> str:
    """One HTML page without references to other files or hosts."""
    title = f"Report of {escape(run.name)}"
    head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = [f"<h1>{title}</h1>", _missing_html(run), *(_html_table(table) for table in score_tables(run))]
    for section in sections(run.findings):
        body += [f"<h2>{escape(section.title)}</h2>", _plots_html(section.plots)]
        body += [_html_table(table, "h3") for table in section.tables]
    body += [_html_table(table) for table in setup_tables(run)]
    body += [_pretraining_html(run), _finetuning_html(run), _stages_html(run)]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"
    )


def _missing_html(run: Run) -> str:
    sentences = missing_parts(run)
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    summary = f"<summary>Not here: {len(sentences)} parts that a whole quickstart has</summary>"
    return f'<details class="missing">\n{summary}\n<ul>\n{items}\n</ul>\n</details>' if sentences else ""


def _html_table(table: Table, heading: str = "h2") -> str:
    def row(cells: List[str], tag: str) -> str:
        numbers = ["" if column in table.text_columns else ' class="number"' for column in range(len(cells))]
        made = (f"<{tag}{number}>{escape(cell)}</{tag}>" for number, cell in zip(numbers, cells))
        return f"<tr>{''.join(made)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<{heading}>{escape(table.title)}</{heading}>\n<div class="scroll">\n'
        f"<table>\n<thead>{row(table.header, 'th')}</thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table>\n</div>{note}"
    )


def _pretraining_html(run: Run) -> str:
    if not run.pretrainings:
        return ""
    parts = [
        "<h2>Pre-training</h2>",
        '<p class="note">Thin lines: single batches of training. Markers: validation.</p>',
    ]
    if len(run.pretrainings) > SHOWN_ALONE:
        parts[1] = '<p class="note">Validations; a colour per configuration, a line per seed.</p>'
        parts.append(_plots_html(comparison_plots(run.pretrainings)))
    for experiment in run.pretrainings if len(run.pretrainings) <= SHOWN_ALONE else ():
        parts.append(f"<h3>{escape(experiment.name)}</h3>")
        skipped = list(experiment.curve("nonfinite_steps").values())[-1:]
        if skipped and skipped[0]:
            parts.append(f"<p>{skipped[0]:.0f} updates were skipped for gradients that were not finite.</p>")
        parts.append(_plots_html(pretraining_plots(experiment)))
    return "\n".join([*parts, _plots_html([learning_rate_plot(run.pretrainings, "pre-training")])])


def _finetuning_html(run: Run) -> str:
    plots = [wer_plot(run.finetunings), learning_rate_plot(run.finetunings, "fine-tuning")]
    return "\n".join(["<h2>Fine-tuning</h2>", _plots_html(plots)]) if run.finetunings else ""


def _plots_html(plots: List[Optional[Plot]]) -> str:
    figures = []
    for plot in filter(None, plots):
        source = f"data:image/png;base64,{base64.b64encode(plot.png).decode('ascii')}"
        caption = escape(plot.caption)
        image = f'<img alt="{caption}" src="{source}">'
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>" if figures else ""


def _stages_html(run: Run) -> str:
    if not run.stages:
        return ""
    parts = ["<h2>The stages by hand</h2>", "<p>These commands, in this order, made this run.</p>"]
    for number, stage in enumerate(run.stages, start=1):
        parts.append(f"<h3>{number}. {escape(stage.name)} ({clock(stage.seconds)})</h3>")
        parts.append(f"<pre><code>{escape(stage.command)}</code></pre>")
    return "\n".join(parts)
