import pytest

from wnlb.runtime.table import human_bytes, markdown_table, table


def test_aligns_words_left_and_numbers_right():
    rows = [("c2", 6400, "1.5 KiB"), ("level 5", 25, "144 B")]
    assert table(("name", "N", "held"), rows).splitlines() == [
        "name        N     held",
        "-------  ----  -------",
        "c2       6400  1.5 KiB",
        "level 5    25    144 B",
    ]
    assert table(("name", "N"), []).splitlines() == ["name  N", "----  -"]


def test_markdown_marks_what_is_missing():
    rows = [("all", 41.26, 3), ("tv", None, float("nan"))]
    assert markdown_table(("class", "AP", "n"), rows) == [
        "| class | AP   | n |",
        "|-------|------|---|",
        "| all   | 41.3 | 3 |",
        "| tv    | -    | - |",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (2**41, "2048.0 GiB")],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text
