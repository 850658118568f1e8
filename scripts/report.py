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

"""Report on one or more runs, finished or not: prints Markdown tables, and writes curves and commands to an HTML file.

    python scripts/report.py --run exp/quickstart --output exp/quickstart/report.html
    python scripts/report.py --run exp/compare exp/other --output report.html

A run is a folder made by quickstart.sh or compare_pretraining.sh, or any folder that holds experiments or results of
analyze_cca.py, superb.py, diagnose.py or benchmark.py (benchmark*.json). The report names the parts that have not run
and leaves them out. The HTML file needs no network and no other file.
"""

import argparse
import sys

from nemo_mshubert.whole_files import atomic_write


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="+", required=True, help="folders")
    parser.add_argument("--output", required=True, help="HTML file")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    # after the options, so that --help need not wait for these imports
    from nemo_mshubert.analysis.report import html_report, markdown_report
    from nemo_mshubert.analysis.run_folder import read_runs

    try:
        run = read_runs(args.run)
        markdown, html = markdown_report(run), html_report(run)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(markdown)
    with atomic_write(args.output) as stream:
        stream.write(html)
    print(f"\nCurves and commands: {args.output}")


if __name__ == "__main__":
    main()
