import pytest

from wnlb.runtime.table import human_bytes, table


def test_aligns_words_left_and_numbers_right():
    rows = [("c2", 6400, "1.5 KiB"), ("level 5", 25, "144 B")]
    assert table(("name", "N", "held"), rows).splitlines() == [
        "name        N     held",
        "-------  ----  -------",
        "c2       6400  1.5 KiB",
        "level 5    25    144 B",
    ]
    assert table(("name", "N"), []).splitlines() == ["name  N", "----  -"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (2**41, "2048.0 GiB")],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text
