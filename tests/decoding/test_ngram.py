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

"""Text to LM and lexicon. What needs KenLM's programs is skipped where they are not built."""

import gzip
import json
import runpy
import subprocess
import sys
from pathlib import Path

import kenlm
import pytest

from nemo_mshubert.alphabet import ENGLISH_LABELS
from nemo_mshubert.decoding import ngram
from nemo_mshubert.decoding.lexicon import can_spell
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder
from nemo_mshubert.decoding.ngram import (
    arpa_words,
    binarize,
    lexicon_words,
    listed_words,
    normalize_text,
    normalized_sentences,
    train_arpa,
)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_ngram.py"


def kenlm_is_built():
    try:
        return bool(ngram.find_kenlm_tool("lmplz") and ngram.find_kenlm_tool("build_binary"))
    except FileNotFoundError:
        return False


needs_kenlm = pytest.mark.skipif(not kenlm_is_built(), reason="lmplz is not built; see scripts/build_kenlm.sh")


@pytest.fixture
def run_script(monkeypatch):
    """``run_script("--text", path, ...)``: scripts/train_ngram.py in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_ngram.py", *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


@pytest.mark.unit
@pytest.mark.parametrize(
    "text, expected",
    [
        ("Don\u2019t STOP, now!", "don't stop now"),
        ("well-known \u201cquotes\u201d -- here", "well known quotes here"),
        ("in 1984 na\u00efve", "in 1984 na\u00efve"),
        ("\ufb01ne  ' print", "fine print"),
        ("\u2018Tis rock \u2018n\u2019 roll", "'tis rock 'n' roll"),
        ("...", ""),
    ],
)
def test_text_is_written_as_the_model_writes_it(text, expected):
    """Otherwise the LM holds words ("STOP,") that no lexicon entry ever matches."""
    assert normalize_text(text, ENGLISH_LABELS) == expected


THAI = "กขคงจชดตทนบปพมยรลวสหอะาำิีึืุู็่้๊๋์เแโใไ"
JAMO = "".join(map(chr, [*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))
TURKISH = "abcçdefgğhıijklmnoöprsştuüvyz"


@pytest.mark.unit
@pytest.mark.parametrize(
    "letters, text, expected",
    [
        (THAI, "น้ำ, ทำ!", "น้ำ ทำ"),
        (JAMO, "\u1112\u1161\u11ab \u1100\u1173\u11af.", "\u1112\u1161\u11ab \u1100\u1173\u11af"),
        (TURKISH, "\u0130stanbul, I\u015f\u0131k", "istanbul \u0131\u015f\u0131k"),
        (TURKISH.replace("i", "\u0130").upper(), "\u0130stanbul I\u015f\u0131k", "\u0130STANBUL I\u015eIK"),
        (TURKISH, "I\u0307stanbul, Is\u0327\u0131k", "istanbul \u0131\u015f\u0131k"),
        ("abc\u00e4fi", "a\u0308b \ufb01 \uff21c", "\u00e4b fi ac"),
        ("п\u2019ять", "П\u2019ЯТЬ, п\u2019ять", "п\u2019ять п\u2019ять"),
    ],
    ids=["Thai", "Korean", "Turkish", "Turkish capitals", "Turkish in parts", "German", "Ukrainian"],
)
def test_letters_of_the_model_stay_as_they_are(letters, text, expected):
    """Words of which NFKC or English capitals make others were missing from the lexicon, and from the LM."""
    labels = [" ", *letters]
    assert normalize_text(text, labels) == expected
    assert all(can_spell(word, labels) for word in expected.split())


@pytest.mark.unit
def test_text_comes_from_plain_files_gzip_and_manifests(tmp_path):
    (tmp_path / "a.txt").write_text("ONE\n\nTwo.\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\n"))
    (tmp_path / "c.jsonl").write_text(json.dumps({"audio_filepath": "x.flac", "text": "Four"}) + "\n")
    paths = [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.jsonl")]
    assert list(normalized_sentences(paths, ENGLISH_LABELS)) == ["one", "two", "three", "four"]


@pytest.mark.unit
@pytest.mark.parametrize("name", ["train.json.gz", "train.jsonl.gz", "train.txt", "train.gz", "TRAIN.JSON", "train"])
def test_a_manifest_is_known_by_its_content(tmp_path, name):
    """The LM was trained on keys and file names, whose words its lexicon then offered, where a suffix was not
    .json."""
    lines = [
        json.dumps({"audio_filepath": "seagull.flac", "duration": 1.5, "text": text}) for text in ("Four", "five")
    ]
    content = "\n".join(["", *lines, ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(normalized_sentences([tmp_path / name], ENGLISH_LABELS)) == ["four", "five"]
    broken = content.replace(b'"five"', b"five")
    (tmp_path / name).write_bytes(gzip.compress(broken) if name.endswith(".gz") else broken)
    with pytest.raises(ValueError, match=f"{name}:3: not JSON"):
        normalized_sentences([tmp_path / name], ENGLISH_LABELS)


@pytest.mark.unit
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_json_of_something_else_is_no_text(tmp_path, start):
    """Nobody speaks JSON; a byte order mark of Windows must not hide it."""
    (tmp_path / "corpus.txt").write_text(start + '{"text": "four"}\n')
    with pytest.raises(ValueError, match='corpus.txt:1: .*("audio_filepath"|not JSON)'):
        normalized_sentences([tmp_path / "corpus.txt"], ENGLISH_LABELS)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "train.jsonl.gz"])
def test_a_manifest_may_begin_with_a_mistake(tmp_path, name):
    """Taken for text, its keys and file names would be words of the LM."""
    content = b'{"audio_filepath": "seagull.flac", "text": "one"\n{"audio_filepath": "b.flac", "text": "two"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=f"{name}:1: not JSON"):
        normalized_sentences([tmp_path / name], ENGLISH_LABELS)


@pytest.mark.unit
def test_text_that_looks_like_json_is_text(tmp_path):
    """A number, a quotation or a bracket may begin a text."""
    (tmp_path / "a.json.txt").write_text('"one"\n')
    (tmp_path / "b.txt").write_text("{two} three\n")
    (tmp_path / "c.txt").write_text("4\nfive\n")
    paths = [tmp_path / name for name in ("a.json.txt", "b.txt", "c.txt")]
    assert list(normalized_sentences(paths, ENGLISH_LABELS)) == ["one", "two three", "4", "five"]


@pytest.mark.unit
def test_text_without_words_or_in_another_alphabet_is_refused_before_training(tmp_path):
    (tmp_path / "empty.txt").write_text("\n...\n")
    (tmp_path / "russian.txt").write_text("\u0434\u043e\u0431\u0440\u044b\u0439 \u0434\u0435\u043d\u044c ok\n")
    (tmp_path / "c.jsonl").write_text('{"audio_filepath": "x.flac"}\n')
    for name, message in [
        ("empty.txt", "empty.txt: no words"),
        ("russian.txt", "russian.txt: 2 of 3 words hold letters that the model lacks"),
        ("c.jsonl", 'c.jsonl:1: no "text"'),
    ]:
        with pytest.raises(ValueError, match=message):
            train_arpa(normalized_sentences([tmp_path / name], ENGLISH_LABELS), tmp_path / "lm.arpa", 2)
    with pytest.raises(ValueError, match="lm.arpa: no sentences"):
        train_arpa([], tmp_path / "lm.arpa", 2)
    with pytest.raises(FileNotFoundError, match="absent.txt: no such text"):
        normalized_sentences([tmp_path / "absent.txt"], ENGLISH_LABELS)
    assert not (tmp_path / "lm.arpa").exists()


@pytest.mark.unit
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_text_that_is_not_utf8_is_named_before_training(tmp_path, suffix):
    """A bare UnicodeDecodeError names no file; and the last of many texts should not cost the hour before it."""
    (tmp_path / "good.txt").write_text("one\n" * 5)
    latin = "the sea\n".encode() * 2000 + "a caf\u00e9\n".encode("latin1")
    bad = tmp_path / f"latin{suffix}"
    bad.write_bytes(gzip.compress(latin) if suffix.endswith("gz") else latin)
    with pytest.raises(ValueError, match=f"latin{suffix}:2001: not UTF-8 .byte 0xe9 at column 6.*iconv -f latin1"):
        normalized_sentences([tmp_path / "good.txt", bad], ENGLISH_LABELS)
    (tmp_path / "russian.txt").write_text("\u043c\u0438\u0440\n")
    with pytest.raises(ValueError, match="russian.txt: 1 of 1 words hold letters that the model lacks"):
        normalized_sentences([tmp_path / "good.txt", tmp_path / "russian.txt"], ENGLISH_LABELS)


@pytest.mark.unit
def test_a_word_list_that_is_not_utf8_is_named_before_training(tmp_path, run_script):
    """It is needed when the LM is there; found then, it costs the training."""
    (tmp_path / "text.txt").write_text("the sea\n")
    (tmp_path / "words.txt").write_bytes("the\ncaf\u00e9\n".encode("latin1"))
    arguments = ["--text", tmp_path / "text.txt", "--words", tmp_path / "words.txt", "--output", tmp_path / "lm"]
    with pytest.raises(ValueError, match="words.txt:2: not UTF-8 .byte 0xe9 at column 4"):
        run_script(*arguments)
    assert not (tmp_path / "lm.arpa").exists()


@pytest.mark.unit
def test_files_of_one_name_are_made_by_one_process(tmp_path, run_script, held_elsewhere):
    """Of two calls with other texts the lexicon was that of the one and the LM that of the other."""
    (tmp_path / "text.txt").write_text("the sea\n")
    held_elsewhere(tmp_path / ".lm.lock")
    arguments = ["--text", tmp_path / "text.txt", "--output", tmp_path / "lm"]
    with pytest.raises(RuntimeError, match="another process makes these files. Wait for it, or give another --output"):
        run_script(*arguments)
    assert not list(tmp_path.glob("lm*"))


@pytest.mark.unit
def test_an_empty_word_list_is_refused_before_training(tmp_path, run_script):
    """It was when the LM had been trained, hours later, since the LM knows none of no words."""
    (tmp_path / "text.txt").write_text("the sea\n")
    (tmp_path / "words.txt").write_text("\n \n")
    arguments = ["--text", tmp_path / "text.txt", "--words", tmp_path / "words.txt", "--output", tmp_path / "lm"]
    with pytest.raises(ValueError, match="words.txt: no words. Give one a line, or leave it out"):
        run_script(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "words.txt"]


@pytest.mark.unit
@pytest.mark.parametrize(
    "order, prune, message",
    [
        (1, [], "order 1"),
        (7, [], "order 7"),
        (2, [0, 0, 1], "pruning"),
        (3, [0, 2, 1], "pruning"),
        (3, [1], "pruning"),  # words would be missing
    ],
)
def test_orders_and_prunings_that_kenlm_does_not_take(tmp_path, order, prune, message):
    with pytest.raises(ValueError, match=message):
        train_arpa(iter(["a"]), tmp_path / "lm.arpa", order, prune)


@pytest.mark.unit
def test_words_of_an_arpa_without_markers(tmp_path, write_arpa):
    path = write_arpa({"<UNK>": -9.0, "THE": -1.0, "CAT": -1.0}, {("THE", "CAT"): -0.1})
    assert list(arpa_words(path)) == ["THE", "CAT"]
    (tmp_path / "tiny.arpa.gz").write_bytes(gzip.compress(Path(path).read_bytes()))
    assert list(arpa_words(tmp_path / "tiny.arpa.gz")) == ["THE", "CAT"]
    (tmp_path / "srilm.arpa").write_text(Path(path).read_text().replace("CAT\t0", "CAT"))  # where nothing follows
    assert list(arpa_words(tmp_path / "srilm.arpa")) == ["THE", "CAT"]
    (tmp_path / "no.arpa").write_text("hello\n")
    with pytest.raises(ValueError, match="no.arpa: no .*1-grams"):
        list(arpa_words(tmp_path / "no.arpa"))


@pytest.mark.unit
@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u3000", "\x0b", "\x85", "\u2028"])
def test_words_with_white_space_are_those_of_kenlm(tmp_path, write_arpa, space):
    """French "aujourd'hui\u00a0!" is a word to KenLM: the LM was refused as no ARPA, or a part of it was taken."""
    scores = {f"the{space}sea": -1.0, space: -1.0, "see": -1.0}
    path = write_arpa(scores)
    assert list(arpa_words(path)) == list(scores) and all(word in kenlm.Model(path) for word in arpa_words(path))
    Path(path).write_bytes(Path(path).read_bytes().replace(b"\n", b"\r\n"))
    assert list(arpa_words(path)) == list(scores)
    Path(path).write_bytes(Path(path).read_bytes().replace(b"see", b"s ee\t"))
    with pytest.raises(ValueError, match="expected log10 probability, word, back-off"):
        list(arpa_words(path))


@pytest.mark.unit
def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path, write_arpa):
    """Lists of Windows begin with one: their first word was missing from the lexicon, unnoticed."""
    path = write_arpa({"the": -1.0, "sea": -1.0})
    (tmp_path / "words.txt").write_text("the\n\ufeffsea\n", encoding="utf-8-sig")
    assert listed_words(tmp_path / "words.txt") == ["the", "\ufeffsea"]  # only there it is a mark
    assert lexicon_words(tmp_path / "words.txt", path) == ["the"]
    (tmp_path / "words.txt.gz").write_bytes(gzip.compress("sea\n".encode("utf-8-sig")))
    assert lexicon_words(tmp_path / "words.txt.gz", path) == ["sea"]


@pytest.mark.unit
def test_listed_words_that_the_lm_does_not_know_are_counted(tmp_path, write_arpa, run_script, monkeypatch, capsys):
    """A lexicon of half of the list looked like one of all of it."""
    (tmp_path / "words.txt").write_text("the\nsea\ndogs\nthe\n")
    arguments = ["--arpa", write_arpa({"the": -1.0, "sea": -1.0}), "--words", tmp_path / "words.txt"]
    monkeypatch.setattr(ngram, "binarize", lambda *_: None)
    run_script(*arguments, "--output", tmp_path / "lm")
    output = capsys.readouterr().out
    assert "words.txt: 1 of 3 words left out, which the LM does not know" in output
    assert "lm.lexicon: 2 words; 0 left out" in output


@pytest.mark.unit
def test_word_list_in_another_case_than_the_arpa_is_refused(tmp_path, write_arpa):
    """Its lexicon would leave every word to <unk>."""
    path = write_arpa({"THE": -1.0, "CAT": -1.0})
    (tmp_path / "words.txt").write_text("CAT\nDOG\n")
    assert lexicon_words(tmp_path / "words.txt", path) == ["CAT"]
    (tmp_path / "words.txt").write_text("the\ncat\n")
    with pytest.raises(ValueError, match="knows none of its 2 words .*'the'.*case"):
        lexicon_words(tmp_path / "words.txt", path)


@pytest.mark.unit
def test_an_arpa_of_another_alphabet_is_refused(tmp_path, write_arpa, run_script):
    """No word of it could be heard; and a mistyped word list is found before the LM is trained."""
    arpa = write_arpa({"\u043c\u0438\u0440": -1.0, "\u0434\u043e\u043c": -1.0, "ok": -1.0})
    arguments = ["--arpa", arpa, "--output", tmp_path / "lm"]
    with pytest.raises(
        ValueError, match="2 of 3 words hold letters that the model lacks .*ARPA of the model's language"
    ):
        run_script(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.arpa"]
    with pytest.raises(SystemExit):
        run_script(*arguments, "--words", tmp_path / "gone.txt")


@pytest.mark.unit
def test_absent_kenlm_says_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ngram, "KENLM_FOLDER", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="scripts/build_kenlm.sh"):
        ngram.find_kenlm_tool("lmplz")
    with pytest.raises(FileNotFoundError, match=f"KenLM's lmplz is not in {tmp_path / 'bin'}. Build it with"):
        ngram.find_kenlm_tool("lmplz", tmp_path / "bin")


@needs_kenlm
@pytest.mark.integration
@pytest.mark.parametrize("order", [2, 6])
def test_script_makes_lm_and_lexicon_that_decode(tmp_path, emit, make_config, order):
    """Text to transcription as a user does it; flashlight must read what this KenLM wrote, at any order."""
    (tmp_path / "text.txt").write_text("The sea.\nThe sea is wide\nI see the sea\n" * 3)
    output = tmp_path / "lm"
    command = [sys.executable, SCRIPT, "--text", tmp_path / "text.txt", "--order", str(order), "--output", output]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "6 words; 0 left out" in run.stdout
    assert kenlm.Model(f"{output}.bin").order == order
    decoder = LexiconBeamSearchDecoder(
        ENGLISH_LABELS, make_config(f"{output}.bin", f"{output}.lexicon", lm_weight=4.0)
    )
    assert decoder.decode(emit("the|se_e", ENGLISH_LABELS), "utt").text == "the sea"  # the text never says "the see"


@needs_kenlm
@pytest.mark.integration
def test_pruning_drops_rare_bigrams_and_keeps_words(tmp_path):
    sentences = ["a b"] * 5 + ["b a"]
    train_arpa(sentences, tmp_path / "all.arpa", 2)
    train_arpa(sentences, tmp_path / "pruned.arpa", 2, [0, 1])
    assert "\tb a" in (tmp_path / "all.arpa").read_text()
    assert "\tb a" not in (tmp_path / "pruned.arpa").read_text()
    assert set(arpa_words(tmp_path / "pruned.arpa")) == {"a", "b"}


@needs_kenlm
@pytest.mark.integration
def test_an_upper_case_arpa_is_taken_as_it_is(tmp_path, write_arpa, emit, make_config):
    """The official LibriSpeech 4-gram.arpa.gz: upper case, compressed; text comes out as the model writes it."""
    arpa = tmp_path / "official.arpa.gz"
    bigrams = {("THE", "SEE"): -3.0}
    arpa.write_bytes(gzip.compress(Path(write_arpa({"THE": -1.0, "SEA": -1.0, "SEE": -1.0}, bigrams)).read_bytes()))
    output = tmp_path / "lm"
    subprocess.run([sys.executable, SCRIPT, "--arpa", arpa, "--output", output], check=True, capture_output=True)
    assert not Path(f"{output}.arpa").exists()
    decoder = LexiconBeamSearchDecoder(
        ENGLISH_LABELS, make_config(f"{output}.bin", f"{output}.lexicon", lm_weight=4.0)
    )
    assert decoder.decode(emit("the|se_e", ENGLISH_LABELS), "utt").text == "the sea"


@needs_kenlm
@pytest.mark.integration
def test_a_broken_arpa_leaves_no_binary(tmp_path):
    (tmp_path / "broken.arpa").write_text("\\data\\\nngram 1=5\n")
    with pytest.raises(RuntimeError, match="build_binary.*failed"):
        binarize(tmp_path / "broken.arpa", tmp_path / "lm.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.arpa"]


@pytest.mark.unit
@pytest.mark.parametrize("reads", ["cat > /dev/null", ""])
def test_a_training_that_fails_leaves_no_lm(tmp_path, reads):
    """A disk that is full while lmplz writes, or before it has read all: half of an ARPA is one, of fewer words."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "lmplz"
    tool.write_text(f"#!/bin/sh\n{reads}\necho half\nexit 1\n")
    tool.chmod(0o755)
    with pytest.raises(RuntimeError, match="lmplz.*failed with status 1"):
        train_arpa(["a b"] * 50_000, tmp_path / "lm.arpa", 2, kenlm_folder=tmp_path / "bin")  # more than a pipe holds
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.unit
def test_lmplz_gets_every_sentence_and_the_options(tmp_path):
    """The first sentence is looked at before lmplz starts; an order or a pruning of another LM would go unnoticed."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "lmplz"
    tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/arguments"\ncat\n')
    tool.chmod(0o755)
    sentences = ["the sea", "don't", "m\u00fcller see", "the end"]
    for order, prune in ((3, [0, 1]), (4, [])):
        train_arpa(iter(sentences), tmp_path / "lm.arpa", order, prune, kenlm_folder=tmp_path / "bin")
        assert (tmp_path / "lm.arpa").read_text(encoding="utf-8").splitlines() == sentences
        arguments = (tmp_path / "arguments").read_text().splitlines()
        assert arguments[arguments.index("-o") + 1] == str(order)
        assert arguments[arguments.index("-S") + 1] == "25%"  # it takes 80 % if it is not told
        assert arguments[arguments.index("-T") + 1] == f"{tmp_path}/"  # what it sorts does not fit into /tmp
        assert arguments[arguments.index("-T") + 2 :] == (["--prune", "0", "1"] if prune else [])


@pytest.mark.unit
def test_build_binary_makes_a_trie(tmp_path, write_arpa):
    """LibriSpeech's 4-gram as a hash table takes twice the memory; ``--kenlm`` is for both tools."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "build_binary"
    tool.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$5"\n')
    tool.chmod(0o755)
    arpa = write_arpa({"the": -1.0})
    binarize(arpa, tmp_path / "lm.bin", tmp_path / "bin")
    assert (tmp_path / "lm.bin").read_text().splitlines()[:4] == ["-S", "25%", "trie", arpa]
    with pytest.raises(FileNotFoundError, match="gone.arpa: no such ARPA"):
        binarize(tmp_path / "gone.arpa", tmp_path / "gone.bin", tmp_path / "bin")
    with pytest.raises(FileNotFoundError, match="gone.arpa: no such ARPA"):
        list(arpa_words(tmp_path / "gone.arpa"))
