import threading
from collections.abc import Generator

import pytest

from wnlb.runtime.overlap import ahead

WAIT = 120.0  # seconds, in which what must happen happens


def numbers(count: int, made: list[int], closed: list[bool] | None = None) -> Generator[int, None, None]:
    try:
        for number in range(count):
            made.append(number)
            yield number
    finally:
        if closed is not None:
            closed.append(True)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wnlb ahead"]


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_the_same_items_in_order(count: int) -> None:
    made: list[int] = []
    assert list(ahead(numbers(count, made))) == list(range(count)) == made
    assert not threads()


def test_the_next_item_is_made_while_one_is_outside() -> None:
    asked = threading.Event()

    def items() -> Generator[int, None, None]:
        yield 0
        asked.set()
        yield 1

    stage = ahead(items())
    assert next(stage) == 0
    assert asked.wait(WAIT)
    assert list(stage) == [1]


def test_no_more_than_three_are_there() -> None:
    made: list[int] = []
    highest = 0
    for number in ahead(numbers(2000, made)):
        highest = max(highest, len(made) - number)
    assert 2 <= highest <= 3


def test_two_stages_hold_five() -> None:
    made: list[int] = []

    def doubled(items: Generator[int, None, None]) -> Generator[int, None, None]:
        for item in items:
            yield 2 * item

    highest = 0
    for i, number in enumerate(ahead(doubled(ahead(numbers(2000, made))))):
        assert number == 2 * i
        highest = max(highest, len(made) - i)
    assert highest <= 5


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), MemoryError()])
def test_an_error_comes_where_its_item_would_have(error: BaseException) -> None:
    def items() -> Generator[int, None, None]:
        yield 0
        yield 1
        raise error

    stage = ahead(items())
    assert [next(stage), next(stage)] == [0, 1]
    with pytest.raises(type(error)) as raised:
        next(stage)
    assert raised.value is error
    assert not threads()


def test_what_is_left_early_ends_the_threads_and_closes_all() -> None:
    """Both stages, whether they wait for room or for an item."""
    for taken in range(4):
        made: list[int] = []
        closed: list[bool] = []

        def passed(items: Generator[int, None, None], closed: list[bool] = closed) -> Generator[int, None, None]:
            try:
                yield from items
            finally:
                items.close()
                closed.append(True)

        stage = ahead(passed(ahead(numbers(100, made, closed))))
        for _ in range(taken):
            next(stage)
        stage.close()
        assert not threads()
        assert closed == ([True, True] if taken else [])  # what was never begun has nothing to close
        assert len(made) <= taken + 4
