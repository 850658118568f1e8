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

"""If these fail, labels and hidden states are compared with the words and phones of other times or utterances."""

import gzip
import json

import pytest

from nemo_mshubert.data.alignments import read_alignments
from nemo_mshubert.data.textgrid import read_textgrid

pytestmark = pytest.mark.unit
LONG_TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0.0
xmax = 1.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0.0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0.0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.75
            text = "say"
        intervals [3]:
            xmin = 0.75
            xmax = 1.5
            text = "<unk>"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0.0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.5
            mark = "a ""click"" at 3 s"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0.0
        xmax = 1.5
        intervals: size = 2
        intervals [1]:
            xmin = 0.25
            xmax = 0.5
            text = "S"
        intervals [2]:
            xmin = 0.5
            xmax = 0.75
            text = "EY1"
"""
SHORT_TEXTGRID = """File type = "ooTextFile short"
"TextGrid"

0
1.5
<exists>
1
"IntervalTier"
"Ann - words"
0
1.5
2
0
0.75
"3"
0.75
1.5
"he said ""no"" "
"""


def write_lines(path, lines):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as stream:
        stream.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    return path


def phone(name, start, end):
    return {"phone": name, "start": start, "end": end}


def spoken(utt_id, text):
    """A line of words of 0.2 s in a row."""
    words = [{"word": word, "start": 0.2 * n, "end": 0.2 * (n + 1)} for n, word in enumerate(text.split())]
    return {"utt_id": utt_id, "words": words}


# --- TextGrids -------------------------------------------------------------------------------------------------------


def test_textgrids_long_and_short(tmp_path):
    (tmp_path / "long.TextGrid").write_text(LONG_TEXTGRID, encoding="utf-8")
    (tmp_path / "short.TextGrid").write_text(SHORT_TEXTGRID, encoding="utf-16")
    assert read_textgrid(tmp_path / "long.TextGrid") == {
        "words": [(0.0, 0.25, ""), (0.25, 0.75, "say"), (0.75, 1.5, "<unk>")],
        "clicks": [],
        "phones": [(0.25, 0.5, "S"), (0.5, 0.75, "EY1")],
    }
    assert read_textgrid(tmp_path / "short.TextGrid") == {
        "Ann - words": [(0.0, 0.75, "3"), (0.75, 1.5, 'he said "no"')]
    }


@pytest.mark.parametrize(
    "text, cause",
    [
        ("hello", "too early"),
        (LONG_TEXTGRID[:900], "too early"),
        (LONG_TEXTGRID.replace("xmax = 0.25", "xmax = ?", 1), "where a number should be"),
        (LONG_TEXTGRID.replace('"ooTextFile"', '"ooBinaryFile"'), "header"),
    ],
)
def test_broken_textgrids_are_named(tmp_path, text, cause):
    (tmp_path / "84-1-0000.TextGrid").write_text(text)
    with pytest.raises(ValueError, match=f"84-1-0000.TextGrid: not a TextGrid.*{cause}"):
        read_textgrid(tmp_path / "84-1-0000.TextGrid")


def test_alignments_of_folders_and_files_together(tmp_path):
    (tmp_path / "grids" / "84").mkdir(parents=True)
    (tmp_path / "grids" / "84" / "84-1-0000.TextGrid").write_text(LONG_TEXTGRID)
    more = write_lines(tmp_path / "more.jsonl.gz", [spoken("u1", "so say i")])
    words = read_alignments([tmp_path / "grids", more], "word")
    assert {utt: [words.names[i] for i in unit] for utt, (_, _, unit) in words.intervals.items()} == {
        "84-1-0000": ["", "say", "<unk>"],
        "u1": ["so", "say", "i"],
    }
    assert words.intervals["84-1-0000"][0].tolist() == [0, 0.25, 0.75]
    phones = read_alignments([tmp_path / "grids"], "phone")
    assert phones.names == ["S", "EY"]  # without stress
    for name in "dbeac":  # the file system's order is another on another machine, and so would be the units' numbers
        (tmp_path / "grids" / f"{name}.TextGrid").write_text(LONG_TEXTGRID)
    assert list(read_alignments([tmp_path / "grids"], "word").intervals) == ["84-1-0000", *"abcde"]


def test_alignments_that_cannot_be_used(tmp_path):
    words = write_lines(tmp_path / "words.jsonl", [spoken("u1", "so say i")])
    with pytest.raises(FileNotFoundError, match="gone.jsonl: no such alignments"):
        read_alignments([tmp_path / "gone.jsonl"], "word")
    with pytest.raises(ValueError, match="words.jsonl: aligns words, expected phones.*--units"):
        read_alignments([words], "phone")
    with pytest.raises(ValueError, match="words.jsonl: u1 is aligned twice"):
        read_alignments([words, words], "word")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no TextGrid"):
        read_alignments([tmp_path / "empty"], "word")
    (tmp_path / "u.TextGrid").write_text(SHORT_TEXTGRID)
    with pytest.raises(ValueError, match="u.TextGrid: no tier 'phones' among"):
        read_alignments([tmp_path / "u.TextGrid"], "phone")


def test_without_a_kind_it_is_that_of_the_first_file(tmp_path):
    """label.py has no option for it."""
    (tmp_path / "84").mkdir()
    (tmp_path / "84" / "84-1-0000.TextGrid").write_text(LONG_TEXTGRID)
    phones, words = tmp_path / "84", write_lines(tmp_path / "words.jsonl", [spoken("u1", "so say i")])
    assert (read_alignments([phones]).kind, read_alignments([phones]).names) == ("phone", ["S", "EY"])  # of both tiers
    assert (read_alignments([words]).kind, read_alignments([words]).names) == ("word", ["so", "say", "i"])
    with pytest.raises(ValueError, match="words.jsonl: aligns words, expected phones"):
        read_alignments([phones, words])
    (tmp_path / "84" / "84-1-0001.TextGrid").write_text(SHORT_TEXTGRID)  # of words alone
    assert read_alignments([tmp_path / "84" / "84-1-0001.TextGrid"]).names == ["3", 'he said "no"']
    with pytest.raises(ValueError, match="84-1-0001.TextGrid: aligns words, expected phones"):
        read_alignments([phones])


def test_speakers_of_a_textgrid_take_turns(tmp_path):
    """A tier each. Frames are looked up in the order of time: unsorted they would have no word, or that of another."""
    tiers = '"IntervalTier" "{} - words" 0 0.08 2 {} {} "{}" {} {} "{}"'
    ann, bob = tiers.format("Ann", 0, 0.02, "so", 0.04, 0.06, "say"), tiers.format(
        "Bob", 0.02, 0.04, "i", 0.06, 0.08, "no"
    )
    (tmp_path / "u.TextGrid").write_text(f'"ooTextFile" "TextGrid" 0 0.08 <exists> 2 {ann} {bob}')
    words = read_alignments([tmp_path / "u.TextGrid"])
    assert [words.names[unit] for unit in words.frame_units("u", 4)] == ["so", "i", "say", "no"]


# --- JSONL -----------------------------------------------------------------------------------------------------------


def test_a_frame_has_the_unit_at_its_centre(tmp_path):
    """Centres at 12.5, 32.5, 52.5, 72.5 ms: half a frame of shift would smear every phone border."""
    lines = [
        {"utt_id": "a", "phones": [phone("T", 0.0526, 0.07), phone("AH", 0.0125, 0.0325)]}
    ]  # order is not required
    alignments = read_alignments([write_lines(tmp_path / "align.jsonl.gz", lines)])
    names = [None if unit < 0 else alignments.names[unit] for unit in alignments.frame_units("a", 5)]
    assert names == ["AH", None, None, None, None]
    lines = [{"utt_id": "a", "phones": [phone("AH", 0.02, 0.0326), phone("T", 0.0326, 0.06)]}]
    alignments = read_alignments([write_lines(tmp_path / "align.jsonl.gz", lines)])
    names = [None if unit < 0 else alignments.names[unit] for unit in alignments.frame_units("a", 5)]
    assert names == [None, "AH", "T", None, None]
    assert alignments.frame_units("b", 5) is None


def test_phones_in_any_order_are_the_same_alignment(tmp_path):
    """Purities and PNMI of a file that lists phones by name would be those of other frames, without a word."""
    phones = [phone(name, 0.02 * t, 0.02 * (t + 1)) for t, name in enumerate(["T", "AH", "S", "IY"])]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 0, 1]):
        line = {"utt_id": "a", "phones": [phones[place] for place in order]}
        alignments = read_alignments([write_lines(tmp_path / "align.jsonl.gz", [line])])
        assert [alignments.names[unit] for unit in alignments.frame_units("a", 4)] == ["T", "AH", "S", "IY"]


def test_words_are_units_too(tmp_path):
    path = tmp_path / "align.jsonl"
    path.write_text(json.dumps({"utt_id": "a", "words": [{"word": "so", "start": 0, "end": 1}]}) + "\n")
    alignments = read_alignments([path])
    assert (alignments.kind, alignments.names) == ("word", ["so"])


@pytest.mark.parametrize(
    "line",
    ["{broken\n", {"utt_id": "b", "words": []}, {"phones": [phone("T", 0, 1)]}, {"utt_id": "b", "phones": [{}]}],
)
def test_a_bad_alignment_is_named(tmp_path, line):
    path = write_lines(tmp_path / "align.jsonl.gz", [{"utt_id": "a", "phones": [phone("T", 0, 1)]}, line])
    with pytest.raises(ValueError, match="align.jsonl.gz:2: not an alignment"):
        read_alignments([path])


def test_an_alignment_in_another_encoding_is_named(tmp_path):
    """Without its line, nobody finds the one word with an accent."""
    path = tmp_path / "align.jsonl"
    words = (
        {"utt_id": "ab"[n], "words": [{"word": word, "start": 0, "end": 1}]}
        for n, word in enumerate(("so", "caf\u00e9"))
    )
    path.write_bytes("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in words).encode("latin-1"))
    with pytest.raises(ValueError, match="align.jsonl:2: not an alignment"):
        read_alignments([path])


@pytest.mark.parametrize("first", [[phone("T", 0, 1)], []])
def test_an_utterance_that_is_aligned_twice_is_named(tmp_path, first):
    """The last line silently won: of TIMIT's SA1, which every speaker reads, all but one speaker were measured
    against the times of another."""
    lines = [{"utt_id": "SA1", "phones": first}, {"utt_id": "SA2", "phones": [phone("T", 0, 1)]}]
    lines.append({"utt_id": "SA1", "phones": [phone("AH", 0, 1)]})
    with pytest.raises(ValueError, match='align.jsonl.gz:3: SA1 is aligned in line 1 already.*different "utt_id"'):
        read_alignments([write_lines(tmp_path / "align.jsonl.gz", lines)])


def test_no_alignment_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no aligned utterance"):
        read_alignments([write_lines(tmp_path / "align.jsonl.gz", [])])
