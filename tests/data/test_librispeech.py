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

"""Manifests of LibriSpeech-like folders: right where the corpus is right, loud where it is not."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_mshubert.data.hours_table import hours_table
from nemo_mshubert.data.librispeech import FOLDS, LIBRILIGHT_FOLDER, normalize_text, prepare_librispeech
from nemo_mshubert.data.manifest import read_manifest
from tests.data.librispeech_folder import add_chapter

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_librispeech.py"


@pytest.mark.unit
@pytest.mark.parametrize("level", ["", "LibriSpeech"])
def test_manifest_is_what_lies_on_disk(corpus, tmp_path, level):
    """Otherwise training reads wrong audio, wrong text or wrong durations."""
    prepare_librispeech(corpus / level, tmp_path / "out")
    folder = corpus / "LibriSpeech/dev-clean"
    expected = [
        ("174", "M", "174-50561-0000", folder / "174/50561/174-50561-0000.flac", 0.5, "forgotten too"),
        ("84", "F", "84-121123-0000", folder / "84/121123/84-121123-0000.flac", 0.5, "go do you hear"),
        ("84", "F", "84-121123-0001", folder / "84/121123/84-121123-0001.flac", 0.6, "but it's he"),
    ]
    assert read_manifest(tmp_path / "out/dev-clean.json") == [
        {
            "audio_filepath": str(path),
            "duration": seconds,
            "text": text,
            "utt_id": utt_id,
            "speaker": speaker,
            "gender": gender,
            "sampling_rate": 16000,
            "subset": "dev-clean",
        }
        for speaker, gender, utt_id, path, seconds, text in expected
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dev-clean.json"]  # no temporary, no problems


@pytest.mark.unit
def test_gender_is_left_out_where_nobody_noted_it(corpus, tmp_path):
    """An invented gender would skew every analysis by gender."""
    (corpus / "LibriSpeech/SPEAKERS.TXT").unlink()
    entries = prepare_librispeech(corpus, tmp_path / "out")["dev-clean"]
    assert all("gender" not in entry for entry in entries)


@pytest.mark.unit
def test_train_960_joins_the_three_train_subsets_and_only_them(corpus, tmp_path):
    """Otherwise pre-training sees a part of the corpus, or the development set."""
    names = ["train-clean-100", "train-clean-360", "train-other-500"]
    for number, name in enumerate(names[:2]):
        add_chapter(corpus / "LibriSpeech" / name, f"90{number}", "1", ["A"])
    assert "train-960" not in prepare_librispeech(corpus, tmp_path / "out")
    add_chapter(corpus / "LibriSpeech" / names[2], "902", "1", ["A"])
    manifests = prepare_librispeech(corpus, tmp_path / "out", subsets=["train-960", "dev-clean"])
    assert list(manifests) == ["train-960", "dev-clean"]
    assert [entry["subset"] for entry in read_manifest(tmp_path / "out/train-960.json")] == names


@pytest.mark.unit
@pytest.mark.parametrize("level", ["", LIBRILIGHT_FOLDER])
def test_librilight_sets_are_made_of_the_right_folds(tmp_path, level):
    """Otherwise results for 10 minutes, 1 hour and 10 hours compare with nobody's."""
    folders = FOLDS + ("9h/clean", "9h/other")
    for number, folder in enumerate(folders):
        add_chapter(tmp_path / "data" / level / folder, str(100 + number), "7", ["A"])
    manifests = prepare_librispeech(tmp_path / "data", tmp_path / "out")
    subsets = {name: [entry["subset"] for entry in entries] for name, entries in manifests.items()}
    assert subsets["10min"] == ["1h/0/clean", "1h/0/other"]
    assert subsets["1h"] == [f"1h/{fold}/{kind}" for fold in range(6) for kind in ("clean", "other")]
    assert subsets["10h"] == subsets["1h"] + ["9h/clean", "9h/other"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["10h.json", "10min.json", "1h.json"]


@pytest.mark.unit
def test_missing_fold_of_librilight_is_named(tmp_path):
    """A broken-off copy would otherwise give an hour of 50 minutes, or silently no manifest."""
    for number, folder in enumerate(FOLDS[:-1]):
        add_chapter(tmp_path / "data" / LIBRILIGHT_FOLDER / folder, str(100 + number), "7", ["A"])
    with pytest.raises(ValueError, match="3 problems"):
        prepare_librispeech(tmp_path / "data", tmp_path / "out")
    assert "1h/5/other: no such folder" in (tmp_path / "out/problems.txt").read_text()
    assert list(prepare_librispeech(tmp_path / "data", tmp_path / "out", subsets=["10min"])) == ["10min"]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "not audio": (lambda path: path.write_bytes(b"<html>404</html>"), "broken or cut off"),
    "cut off": (cut_off, "broken or cut off"),
    "stereo": (lambda path: soundfile.write(path, np.zeros((800, 2)), 16000), "2 channels"),
    "no samples": (lambda path: soundfile.write(path, np.zeros(0), 16000), ""),
    "missing": (lambda path: path.unlink(), "no such file"),
}


@pytest.mark.unit
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_audio_is_named_and_can_be_skipped(corpus, tmp_path, damage):
    """Otherwise training stops hours later, in a data loader, at a file it does not name."""
    do_damage, complaint = DAMAGES[damage]
    path = corpus / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac"
    do_damage(path)
    with pytest.raises(ValueError, match="1 problems.*--skip_broken"):
        prepare_librispeech(corpus, tmp_path / "out")
    problem = (tmp_path / "out/problems.txt").read_text()
    assert problem.startswith(f"{path}: ") and complaint in problem
    assert not (tmp_path / "out/dev-clean.json").exists()

    manifests = prepare_librispeech(corpus, tmp_path / "out", skip_broken=True)
    assert [entry["utt_id"] for entry in manifests["dev-clean"]] == ["174-50561-0000", "84-121123-0000"]
    assert (tmp_path / "out/problems.txt").read_text() == problem


@pytest.mark.unit
def test_every_bad_transcript_is_named_with_its_line(corpus, tmp_path):
    """Otherwise the vocabulary of a CTC model gains digits, or utterances vanish unnoticed."""
    path = corpus / "LibriSpeech/dev-clean/84/121123/84-121123.trans.txt"
    path.write_text("84-121123-0000 CHAPTER 12\n84-121123-0001\n84-121123-0001 TWICE\n84-121123-0009 NO AUDIO\n")
    (corpus / "LibriSpeech/dev-clean/174/50561/174-50561.trans.txt").unlink()
    (corpus / "LibriSpeech/dev-clean/174/99").mkdir()
    with pytest.raises(ValueError, match="6 problems"):
        prepare_librispeech(corpus, tmp_path / "out")
    problems = (tmp_path / "out/problems.txt").read_text().splitlines()
    for start, end in (
        (f"{path}:1: 84-121123-0000", "1 2; spell it out"),
        (f"{path}:2: 84-121123-0001", "no words"),
        (f"{path}:3: 84-121123-0001", "second transcript"),
        (f"{path.parent / '84-121123-0009.flac'}", "no such file, though it has a transcript"),
        (f"{corpus / 'LibriSpeech/dev-clean/174/50561/174-50561-0000.flac'}", "no transcript"),
        (f"{corpus / 'LibriSpeech/dev-clean/174/99'}", "neither audio nor transcripts"),
    ):
        assert sum(problem.startswith(start) and problem.endswith(end) for problem in problems) == 1, (start, problems)


@pytest.mark.unit
@pytest.mark.parametrize("text", ["SCHÖN", "SCHO\u0308N"])
def test_accents_of_another_language_are_not_dropped_silently(corpus, tmp_path, caplog, text):
    """A model trained on it writes "schon" for "schön", which is another word."""
    prepare_librispeech(corpus, tmp_path / "out")
    assert not caplog.records
    add_chapter(corpus / "LibriSpeech/dev-clean", "900", "1", ["DAS IST ALT", text, "CAFÉ"])
    entries = prepare_librispeech(corpus, tmp_path / "out")["dev-clean"]
    assert [entry["text"] for entry in entries if entry["speaker"] == "900"] == ["das ist alt", "schon", "cafe"]
    assert (
        f"2 transcripts have other letters than English ones, which are written without accents, the first {text!r}"
        in (caplog.text)
    )


@pytest.mark.unit
def test_problems_of_an_earlier_run_do_not_stay(corpus, tmp_path):
    """A stale list sends people after files that are sound."""
    path = corpus / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac"
    whole = path.read_bytes()
    cut_off(path)
    with pytest.raises(ValueError):
        prepare_librispeech(corpus, tmp_path / "out")
    path.write_bytes(whole)
    prepare_librispeech(corpus, tmp_path / "out")
    assert not (tmp_path / "out/problems.txt").exists()


@pytest.mark.unit
def test_wrong_folders_and_names_say_what_was_expected(corpus, tmp_path):
    """Otherwise a mistyped path gives an empty manifest."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no subset here. Expected <subset>/<speaker>/<chapter>"):
        prepare_librispeech(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        prepare_librispeech(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="dev-claen: cannot be made.*Found: dev-clean"):
        prepare_librispeech(corpus, tmp_path / "out", subsets=["dev-claen"])
    add_chapter(corpus / "dev-clean", "84", "121123", ["A"])
    with pytest.raises(ValueError, match="dev-clean is there twice"):
        prepare_librispeech(corpus, tmp_path / "out")


@pytest.mark.unit
@pytest.mark.parametrize(
    "text, expected",
    [
        ("HE SAID  'NO'\t", "he said 'no'"),
        ("Café—naïve; Ægir’s well-known Œuvre.", "cafe naive aegir's well known oeuvre"),
        ("“Groß,” ŁÓDŹ (1st", None),
        ("ﬁnd ½", None),
        ("ﬁnd it™", "find ittm"),
        ("Привет", None),
        ("...", None),
        ("A & B", None),
    ],
)
def test_text_is_letters_or_refused(text, expected):
    """One stray character is one more output of every CTC model trained on it."""
    if expected is None:
        with pytest.raises(ValueError):
            normalize_text(text)
    else:
        assert normalize_text(text) == expected
        assert re.fullmatch(r"[a-z']+( [a-z']+)*", expected)


@pytest.mark.unit
def test_table_adds_up(corpus, tmp_path):
    """People judge by this table whether the corpus is complete."""
    table = hours_table(
        prepare_librispeech(corpus, tmp_path / "out"), "speakers", "speaker", "utterances"
    ).splitlines()
    assert table[1].split() == ["dev-clean", "0.00", "2", "3"]


@pytest.mark.unit
def test_table_is_in_hours():
    """960 of them are what a LibriSpeech that is complete shows."""
    entries = [{"duration": seconds, "speaker": speaker} for seconds, speaker in ((5400, "84"), (3000, "174"))]
    manifests = {"x": [*entries, {"duration": 600, "speaker": "84"}], "y": entries[:1]}
    table = hours_table(manifests, "speakers", "speaker", "utterances").splitlines()
    assert table[0].split() == ["manifest", "hours", "speakers", "utterances"]
    assert [line.split() for line in table[1:]] == [["x", "2.50", "2", "3"], ["y", "1.50", "1", "1"]]


@pytest.mark.integration
def test_script_fails_on_a_broken_corpus(corpus, tmp_path):
    """A pipeline must stop at the broken corpus, not after it."""
    command = [sys.executable, str(SCRIPT), "--data", str(corpus), "--output", str(tmp_path / "out")]
    good = subprocess.run(command, capture_output=True, text=True)
    assert good.returncode == 0 and "dev-clean" in good.stdout, good.stderr
    assert good.stdout.split()[:4] == ["manifest", "hours", "speakers", "utterances"]
    cut_off(corpus / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac")
    bad = subprocess.run(command, capture_output=True, text=True)
    assert bad.returncode != 0 and "84-121123-0001.flac" in bad.stderr and "Traceback" not in bad.stderr
    assert subprocess.run([*command, "--skip_broken"], capture_output=True).returncode == 0


@pytest.mark.unit
def test_hidden_files_are_no_part_of_the_corpus(corpus, tmp_path):
    """macOS leaves "._" files beside those it copies: every utterance would be a problem, or one of rubbish."""
    expected = prepare_librispeech(corpus, tmp_path / "before")
    chapter = corpus / "LibriSpeech/dev-clean/84/121123"
    for path in [*chapter.iterdir()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    for folder in (chapter.parent / ".AppleDouble", chapter.parents[1] / ".cache" / "1"):
        folder.mkdir(parents=True)
    (chapter.parents[1] / ".DS_Store").touch()
    assert prepare_librispeech(corpus, tmp_path / "out") == expected


@pytest.mark.unit
def test_utterances_without_a_sound_transcript_are_left_out(corpus, tmp_path):
    """With --skip_broken, too, no digit reaches the vocabulary, and of two transcripts the first stays."""
    path = corpus / "LibriSpeech/dev-clean/84/121123/84-121123.trans.txt"
    path.write_text("84-121123-0000 CHAPTER 12\n84-121123-0001 BUT IT'S HE\n84-121123-0001 TWICE\n")
    entries = prepare_librispeech(corpus, tmp_path / "out", skip_broken=True)["dev-clean"]
    texts = {entry["utt_id"]: entry["text"] for entry in entries}
    assert texts == {"174-50561-0000": "forgotten too", "84-121123-0001": "but it's he"}


@pytest.mark.unit
def test_durations_are_seconds_at_any_rate(corpus, tmp_path):
    """Of a corpus in this layout at 44.1 kHz they were those of another: loaders pass over such lines, or end."""
    path = corpus / "LibriSpeech/dev-clean/84/121123/84-121123-0001.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 55125), 44100)
    entry = prepare_librispeech(corpus, tmp_path / "out")["dev-clean"][-1]
    assert (entry["utt_id"], entry["duration"], entry["sampling_rate"]) == ("84-121123-0001", 1.25, 44100)
