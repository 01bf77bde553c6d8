"""YAML configuration files read as data: no tag of theirs is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wnlb.export.checkpoints.configurations.config_file import ConfigKind, config_text
from wnlb.export.checkpoints.configurations.setting_checks import shown
from wnlb.runtime.errors import CheckpointError, MissingDependency

BASE = "_BASE_"
MAX_TEXT = 4_000_000  # characters of a file
_KIND = ConfigKind(
    "detectron2", (".yaml", ".yml"), BASE, "the whole one is config.yaml in the folder that training wrote"
)


def data_from_yaml(path: Path) -> dict[str, Any]:
    """The entries of a configuration file, over those of its ``_BASE_`` files.

    Raises:
        CheckpointError: it cannot be read, or holds more than data.
        MissingDependency: PyYAML is not installed.
    """
    try:
        return _from_file(path, ())
    except (RecursionError, MemoryError) as error:
        raise CheckpointError(f"{path} is nested too deeply to be a configuration") from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``over`` on ``base``, dictionaries entry by entry, as detectron2 does (fvcore/common/config.py).

    Raises:
        CheckpointError: a dictionary meets a value that is none.
    """
    result = dict(base)
    for name, value in over.items():
        if isinstance(value, dict) and name in base:
            if not isinstance(base[name], dict):
                raise CheckpointError(f"{source}: {name} is a dictionary, but {shown(base[name])} in its {BASE} file")
            value = merged(base[name], value, source)
        result[name] = value
    return result


def _from_file(path: Path, behind: tuple[Path, ...]) -> dict[str, Any]:
    text = config_text(path, _KIND, behind)
    data = _parsed(text, path)
    bases = data.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise CheckpointError(f"{path}: {BASE} is {shown(bases)}; expected names of files")
    below: dict[str, Any] = {}
    for name in bases:
        if "://" in name:
            raise CheckpointError(f"{path}: {BASE} is {shown(name)}; expected a file")
        below = merged(below, _from_file(path.parent / Path(name), (*behind, path.resolve())), str(path))
    return merged(below, data, str(path))


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependency("PyYAML is not installed; pip install 'wnlb-deploy[export]'") from error

    class Loader(yaml.SafeLoader):
        """Plain data; tuples, as older versions of detectron2 wrote them, are lists."""

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node))
    if len(text) > MAX_TEXT:
        raise CheckpointError(f"{path} has {len(text)} characters; expected a configuration of at most {MAX_TEXT}")
    try:
        data = yaml.load(text, Loader)
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise CheckpointError(
            f"{path}, line {line} is no plain data ({str(error.problem)[:100]}): configurations are never run; write "
            "the value itself"
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or type(error).__name__
        raise CheckpointError(f"{path}{line} is no YAML: {str(reason)[:100]}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {shown(data)}; expected names and values")
    return data
