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

"""A summary of the manifests of a corpus, for the person who has prepared it."""

from typing import Any, Dict, List


def hours_table(manifests: Dict[str, List[Dict[str, Any]]], groups: str, key: str, lines: str) -> str:
    """A text table with the hours of each manifest, its number of different values of ``key``, and its number of
    lines; ``groups`` and ``lines`` are the titles of the last two columns."""
    width = max(18, *(len(name) + 2 for name in manifests))
    rows = [f"{'manifest':<{width}}{'hours':>9}{groups:>10}{lines:>12}"]
    for name, entries in manifests.items():
        hours = sum(entry["duration"] for entry in entries) / 3600
        rows.append(f"{name:<{width}}{hours:>9.2f}{len({entry[key] for entry in entries}):>10}{len(entries):>12}")
    return "\n".join(rows)
