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

"""Report the problems of a corpus: list all in a file, and raise an error unless broken utterances may be left out."""

import logging
from pathlib import Path
from typing import List

from nemo_mshubert.whole_files import atomic_write

logger = logging.getLogger(__name__)


def report_problems(folder: Path, problems: List[str], skip_broken: bool) -> None:
    """Write ``<folder>/problems.txt``, or remove the file of an earlier run if there are no problems.

    Raises:
        ValueError: there are problems, and ``skip_broken`` is not set.
    """
    path = folder / "problems.txt"
    path.unlink(missing_ok=True)
    if not problems:
        return
    with atomic_write(path) as stream:
        stream.writelines(problem + "\n" for problem in problems)
    for problem in problems[:20]:
        logger.warning(problem)
    if not skip_broken:
        raise ValueError(
            f"{len(problems)} problems, all named in {path}. Repair the corpus, or leave these utterances out with "
            "--skip_broken."
        )
