"""Numbers that scripts take: a wrong one is told where it stands."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest
from counts import from_

SCRIPTS = Path(__file__).parents[1] / "scripts"
ANY_NUMBER = {"--seed", "--first-scene"}


@pytest.mark.parametrize("text", ["0", "-3", "8", "2.5", "", "many"])
def test_a_number_out_of_its_range_is_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=from_(1, 7))
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([f"--rounds={text}"])
    assert ended.value.code == 2
    assert f"argument --rounds: {text!r}; expected a whole number from 1 to 7" in capsys.readouterr().err


def test_a_number_in_its_range_is_taken() -> None:
    assert [from_(1)("1"), from_(0)("0"), from_(1)("900")] == [1, 0, 900]


@pytest.mark.parametrize("script", sorted(SCRIPTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_script_takes_just_any_number(script: Path) -> None:
    """``type=int`` takes 0 rounds, of which there is no median."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        if any(k.arg == "type" and isinstance(k.value, ast.Name) and k.value.id == "int" for k in call.keywords):
            names = {argument.value for argument in call.args if isinstance(argument, ast.Constant)}
            assert names <= ANY_NUMBER, f"{script.name}: {', '.join(names)} takes any number"
