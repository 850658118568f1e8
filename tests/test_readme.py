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

"""README, docs and shell scripts name scripts, options, configs and files that exist."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from nemo_mshubert.data.librispeech import SOURCES
from nemo_mshubert.data.librispeech_download import OPENSLR_MD5
from nemo_mshubert.decoding.table1.spec import read_spec

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "scripts").glob("*.sh")),
    ROOT / "Jenkinsfile",
]
COMMAND = re.compile(r"(?<![\w/])(scripts/\w+\.py)((?: (?:\\\n|[^\n`|#])*)?)")


def commands():
    for text in TEXTS:
        for script, rest in COMMAND.findall(text.read_text(encoding="utf-8")):
            yield pytest.param(script, rest.replace("\\\n", " "), id=f"{text.name}-{script}")


def overrides_of(rest):
    """Hydra's overrides in a command, with a word in place of what the shell expands."""
    found = re.findall(r"(?<=\s)([\w.]+)=(\S+)", rest)
    plain = re.compile(r"[\w./,[\]-]*[\w\]]")
    return [f"{key}={value if plain.fullmatch(value) else 'word'}" for key, value in found]


@pytest.mark.unit
@pytest.mark.parametrize("script, rest", commands())
def test_commands_name_what_exists(script, rest):
    """A newcomer copies them: a renamed script, option or config is the first thing they would see fail."""
    source = (ROOT / script).read_text(encoding="utf-8")
    experiment = re.search(r"--config-name (\w+)", rest)
    if experiment:
        folder = re.search(r'config_path="\.\./(conf/\w+)"', source).group(1)
        with initialize_config_dir(str(ROOT / folder), version_base=None):
            compose(experiment.group(1), overrides=overrides_of(rest))
        return
    for option in re.findall(r"(--\w+)", rest):
        assert f'"{option}"' in source, f"{script} has no {option}"


@pytest.mark.unit
def test_links_lead_somewhere():
    """Relative links in README and docs."""
    for text in (path for path in TEXTS if path.suffix == ".md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text.read_text(encoding="utf-8")):
            assert (text.parent / target).exists(), f"{text.name}: {target}"


@pytest.mark.unit
def test_the_path_to_table_1_has_no_gap():
    """docs/librispeech.md: what a command reads, one before it wrote; and the spec of Table 1 reads what they
    wrote."""
    text = (ROOT / "docs/librispeech.md").read_text(encoding="utf-8")
    loops = {f"${name}": values.split() for name, values in re.findall(r"for (\w+) in ([\w -]+); do", text)}
    manifests = {f"data/manifests/{name}.json" for name in [*OPENSLR_MD5, *SOURCES]}
    there = {*manifests, "lm/4-gram.arpa.gz"}
    num_read = 0
    for script, rest in COMMAND.findall(text):
        commands = [rest.replace("\\\n", " ")]
        for variable, values in loops.items():
            commands = [command.replace(variable, value) for command in commands for value in values]
        for command in commands:
            read = re.findall(r"--(?:manifest|kmeans|encoder|ssl|arpa) (\S+)", command)
            read += re.findall(
                r"(?:label_maker|train_manifest|train_tars|validation_manifest|init_model)=(\S+)", command
            )
            assert not set(read) - there, f"{script}: nothing before wrote {set(read) - there}"
            num_read += len(read)
            for output in re.findall(r"--output (\S+)", command):
                shards = int(re.search(r"--num_shards (\d+)|$", command).group(1) or 0)
                there |= {
                    output,
                    f"{output}.bin",
                    f"{output}.lexicon",
                    f"{output}/sharded_manifests/manifest__OP_0..{shards - 1}_CL_.json",
                    f"{output}/audio__OP_0..{shards - 1}_CL_.tar",
                }
            for name in re.findall(r"--config-name (\w+_base\w*)", command):
                there.add(f"exp/{name}/checkpoints/{name}.nemo")
    assert num_read > 30
    spec = read_spec(ROOT / "conf/table1/librispeech.yaml")
    assert {spec.lm, spec.lexicon, *(model.ssl for model in spec.models)} <= there
    assert {*spec.sets.values(), *(split.train_manifest for split in spec.splits.values())} <= manifests
