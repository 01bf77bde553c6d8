import functools
import threading
from collections.abc import Generator

import pytest

from wnlb.runtime.overlap import abreast, ahead

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
    return [thread for thread in threading.enumerate() if thread.name.startswith("wnlb")]


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


def doubled(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_results_abreast_come_in_order(count: int, lanes: int) -> None:
    closed: list[bool] = []
    results = abreast(numbers(count, [], closed), [doubled] * lanes)
    assert list(results) == [2 * number for number in range(count)]
    assert closed == [True]
    assert not threads()


def test_each_work_has_one_item_at_a_time_and_all_have_one_at_once() -> None:
    together = threading.Barrier(3)
    busy: set[int] = set()

    def work(lane: int, number: int) -> int:
        assert lane not in busy
        busy.add(lane)
        together.wait(WAIT)  # breaks unless three are here at once
        busy.remove(lane)
        together.wait(WAIT)
        return number

    works = [functools.partial(work, lane) for lane in range(3)]
    assert list(abreast(numbers(12, []), works)) == list(range(12))


def test_a_result_that_takes_long_holds_no_more_than_one_item_back() -> None:
    made: list[int] = []
    highest = 0
    for number in abreast(numbers(200, made), [lambda number: number] * 2):
        highest = max(highest, len(made) - number)
    assert highest == 3


def test_an_error_abreast_comes_where_its_result_would_have() -> None:
    closed: list[bool] = []

    def work(number: int) -> int:
        if number >= 3:
            raise ValueError(f"odd {number}")
        return number

    results = abreast(numbers(20, [], closed), [work, work])
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="odd 3"):
        next(results)
    assert closed == [True]
    assert not threads()


def test_what_is_abreast_and_left_early_is_closed() -> None:
    closed: list[bool] = []
    results = abreast(ahead(numbers(100, [], closed)), [doubled, doubled])
    assert next(results) == 0
    results.close()
    assert closed == [True]
    assert not threads()
