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

"""README, docs and shell scripts name scripts, options and configs that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "scripts").glob("*.sh")),
    ROOT / "Jenkinsfile",
]
COMMAND = re.compile(r"python (scripts/\w+\.py)((?:\\\n|[^\n`|])*)")


def commands():
    for text in TEXTS:
        for script, rest in COMMAND.findall(text.read_text(encoding="utf-8")):
            yield pytest.param(script, rest.replace("\\\n", " "), id=f"{text.name}-{script}")


@pytest.mark.unit
@pytest.mark.parametrize("script, rest", commands())
def test_commands_name_what_exists(script, rest):
    """A newcomer copies them: a renamed script, option or config is the first thing they would see fail."""
    source = (ROOT / script).read_text(encoding="utf-8")
    experiment = re.search(r"--config-name (\w+)", rest)
    if experiment:
        folder = re.search(r'config_path="\.\./(conf/\w+)"', source).group(1)
        assert (ROOT / folder / f"{experiment.group(1)}.yaml").is_file()
        return
    for option in re.findall(r"(--\w+)", rest):
        assert f'"{option}"' in source, f"{script} has no {option}"


@pytest.mark.unit
def test_links_lead_somewhere():
    """Relative links in README and docs."""
    for text in (path for path in TEXTS if path.suffix == ".md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text.read_text(encoding="utf-8")):
            assert (text.parent / target).exists(), f"{text.name}: {target}"
