import json

import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.text_file import read_json, read_lines, read_names, read_text

NAMES = ("person", "Fußgänger", "自転車", "dining table")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-marked", "utf-16-be-marked", "utf-32", "utf-32-be-marked"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("tail", ["", "\n", "\n\n \t\n"])
def test_names_however_they_were_saved(tmp_path, encoding, end, tail):
    text = ("\n".join(NAMES) + tail).replace("\n", end)
    plain = encoding.removesuffix("-marked")
    data = ("\ufeff" + text).encode(plain) if plain != encoding else text.encode(encoding)
    (tmp_path / "names.txt").write_bytes(data)
    assert read_names(tmp_path / "names.txt") == NAMES


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_known_where_all_is_latin(tmp_path, encoding):
    (tmp_path / "names.txt").write_bytes("car\r\nbus\r\n".encode(encoding))
    assert read_names(tmp_path / "names.txt") == ("car", "bus")


def test_what_stands_around_names_is_taken_off(tmp_path):
    (tmp_path / "names.txt").write_text(
        '# of the night set\n\n  "tv"\t\n\'dining table\',\n\u00a0bus \u3000\ncar # 1\n"odd" one"\n\ufeffcat\n\n'
    )
    assert read_names(tmp_path / "names.txt") == ("tv", "dining table", "bus", "car # 1", '"odd" one"', "cat")
    assert [number for number, _ in read_lines(tmp_path / "names.txt", "list")] == [3, 4, 5, 6, 7, 8]


def test_odd_separators_of_unicode_end_no_line(tmp_path):
    """As ``str.splitlines`` would have it, which moves the numbers of all lines after them."""
    (tmp_path / "list.txt").write_text("a\u2028b\nc\x0bd\ne\x85f\n")
    assert [number for number, _ in read_lines(tmp_path / "list.txt", "list")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (["car", "bus"], ("car", "bus")),
        ({"categories": [{"id": 3, "name": "bus"}, {"id": 1, "name": "car"}]}, ("car", "bus")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_in_json(tmp_path, content, names, encoding):
    (tmp_path / "names.json").write_bytes(json.dumps(content).encode(encoding))
    assert read_names(tmp_path / "names.json") == names


def refusal(path, read=read_names) -> str:
    with pytest.raises(WnlbError) as refused:
        read(path) if read is read_names else read(path, "content")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; expected one name a line"),
        (b"\n \r\n\t\n# none\n", "is empty"),
        ("car\nFußgänger\n".encode("latin-1"), "line 2: byte 0xDF is not UTF-8 (as Windows-1252 the line reads 'Fußg"),
        (b"car\r\nbus\r\nb\x81d\r\n", "line 3: byte 0x81 is not UTF-8; expected a text file, saved as UTF-8"),
        (b"car\nb\0s\n", "line 2: a NUL byte"),
        (b"a" * 5000 + b"\nb\0s\n", "line 2: a NUL byte"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "a NUL byte"),
        ("car\nb\0s".encode("utf-16"), "line 2: a NUL byte"),
        (b"\xff\xfea\0b", "is no UTF-16-LE"),
        (b"car\nbus\n\ncar\n", "line 4: 'car' stands in line 1 already"),
        (b"car\n1\tbus\n", "line 2: '1\\tbus' is no name"),
        (b'car\n""\n', "line 2: '' is no name"),
    ],
)
def test_what_are_no_names_is_told_with_its_line(tmp_path, data, said):
    (tmp_path / "names.txt").write_bytes(data)
    assert said in refusal(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty; expected JSON"),
        ("\ufeff \n", "is empty; expected JSON"),
        ('{"a": 1,}', "line 1, column"),
        ('{\n "a": tru\n}', "line 2, column 7: Expecting value, got 'tru'"),
        ('{"a": 1', "got 'the end of the line'"),
        ('{"a": 1}\n{"a": 2}', "line 2, column 1: Extra data"),
        ("[" * 100_000, "without end"),
        ("1" * 10_000, "Exceeds"),
    ],
    ids=["empty", "mark", "comma", "word", "cut", "lines", "deep", "digits"],
)
def test_what_is_no_json_is_told_with_its_place(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    assert said in refusal(tmp_path / "a.json", read_json)


@pytest.mark.parametrize("content", ["car", 3, {"names": ["a"]}, ["a", 1], {"categories": [{"id": 1}]}, [None]])
def test_json_without_names(tmp_path, content):
    (tmp_path / "names.json").write_text(json.dumps(content))
    assert "expected a list of words, or COCO's categories" in refusal(tmp_path / "names.json")


@pytest.mark.parametrize("read", [read_text, read_lines, read_json, read_names])
def test_what_is_no_file(tmp_path, read):
    assert "cannot be read: it is a folder; expected a text file" in refusal(tmp_path, read)
    assert "cannot be read: it does not exist" in refusal(tmp_path / "missing.txt", read)
    assert "too long" in refusal(tmp_path / ("a" * 300), read)
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file" / "names.txt", read)
