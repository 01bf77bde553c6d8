"""Labels in the formats that tools read, written from the rows of a finished job.

Each is written under another name and renamed, so that it is whole or the one before.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from wnlb.runtime.coco import annotation_entry, categories, image_entry
from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, make_folder
from wnlb.runtime.labelling.inputs import Input
from wnlb.runtime.labelling.job import Job
from wnlb.runtime.labelling.polygons import polygons_of
from wnlb.runtime.labelling.shards import schema

FORMATS = ("coco", "parquet", "yolo", "labelme")
_BY_STEM = ("yolo", "labelme")  # name a label file after its picture, without the suffix
_ROWS = 4096  # of a row group


def check_formats(text: str, inputs: Iterable[Input], remote: bool) -> tuple[str, ...]:
    """The formats that ``coco,yolo`` asks for. Raises WnlbError for unknown ones, and where inputs do not fit them."""
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise WnlbError(f"--format is {', '.join(unknown) or 'empty'}; expected {', '.join(FORMATS)}, with commas")
    stems: dict[str, str] = {}
    for one in inputs if set(formats) & set(_BY_STEM) else ():
        if "labelme" in formats and (remote or one.frames is not None):
            raise WnlbError(f"--format labelme is for pictures in files; {one.name} is none, leave it out")
        first = stems.setdefault(_stem(one.name), one.name)
        if first != one.name and one.frames is None:
            raise WnlbError(f"{first} and {one.name} would have one label file in {' and '.join(_BY_STEM)}; rename one")
    return formats


def write_formats(job: Job, formats: Iterable[str], min_score: float, on_row: Callable[[], object]) -> None:
    """Write ``detections.json``, ``detections.parquet``, ``yolo/`` and ``labelme/`` into the job's folder.

    Args:
        min_score: objects below it are left out.
        on_row: called for each row of each format.

    Raises:
        WnlbError: one cannot be written.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for row in job.rows():
            on_row()
            yield {**row, "objects": [found for found in row["objects"] if found["score"] >= min_score]}

    write = {"coco": _coco, "parquet": _parquet, "yolo": _yolo, "labelme": _labelme}
    for name in formats:
        try:
            write[name](job, rows)
        except OSError as error:
            raise WnlbError(f"{job.folder} cannot be written: {error.strerror or error}") from error


_Rows = Callable[[], Iterator[dict[str, Any]]]


def _coco(job: Job, rows: _Rows) -> None:
    """As ``wnlb predict`` writes it. In two passes, for the annotations of a million pictures fill no memory."""
    with atomic_path(job.folder / "detections.json") as temporary, open(temporary, "w") as file:
        file.write('{"images": ')
        images = (image_entry(i, row["name"], row["height"], row["width"]) for i, row in _readable(rows))
        _write_list(file, images)
        file.write(f', "categories": {json.dumps(categories(job.class_names))}, "annotations": ')
        results = (_result(i, row, found) for i, row in _readable(rows) for found in row["objects"])
        _write_list(file, (annotation_entry(i, result) for i, result in enumerate(results, 1)))
        file.write("}")


def _readable(rows: _Rows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of pictures that could be read, numbered from 1 up in the order of their names."""
    return enumerate((row for row in rows() if row["error"] is None), 1)


def _result(image_id: int, row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """As ``coco_results`` gave it."""
    result = {"image_id": image_id, **{key: found[key] for key in ("category_id", "bbox", "score", "area")}}
    if found["rle"] is None:
        return result
    segmentation = {"size": [row["height"], row["width"]], "counts": found["rle"]}
    return {**result, "area": int(found["area"]), "segmentation": segmentation}


def _write_list(file: TextIO, items: Iterable[Any]) -> None:
    file.write("[")
    for i, item in enumerate(items):
        file.write(f"{', ' * (i > 0)}{json.dumps(item)}")
    file.write("]")


def _parquet(job: Job, rows: _Rows) -> None:
    """The rows of all shards in one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        atomic_path(job.folder / "detections.parquet") as temporary,
        pq.ParquetWriter(temporary, schema(), compression="zstd") as writer,
    ):
        batch: list[dict[str, Any]] = []
        for row in rows():
            batch.append(row)
            if len(batch) == _ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema()))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema()))


def _yolo(job: Job, rows: _Rows) -> None:
    """A data set of YOLO: ``labels/NAME.txt``, ``images/NAME`` (links to the pictures) and ``data.yaml``.

    A line is a class from 0 up and a polygon in fractions of the picture, the largest part of a mask in several parts;
    or, of a model without masks, the centre and size of a box.
    """
    paths = {one.name: one.path for one in job.inputs if one.frames is None and not job.settings["remote"]}
    with _whole_folder(job.folder / "yolo") as folder:
        for _, row in _readable(rows):
            lines = [f"{found['category_id'] - 1} {_yolo_shape(row, found)}\n" for found in row["objects"]]
            _write(folder / "labels" / f"{_stem(row['name'])}.txt", "".join(lines))
            if row["name"] in paths:
                link = folder / "images" / row["name"]
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.abspath(paths[row["name"]]))
        names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(job.class_names))  # JSON is YAML
        _write(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")


def _yolo_shape(row: dict[str, Any], found: dict[str, Any]) -> str:
    height, width = row["height"], row["width"]
    if found["rle"] is None:
        x, y, w, h = found["bbox"]
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    else:
        largest = polygons_of(found["rle"], height, width, found["bbox"])[0]
        values = [value for x, y in largest.tolist() for value in (x / width, y / height)]
    return " ".join(f"{min(max(value, 0), 1):.6f}" for value in values)


def _labelme(job: Job, rows: _Rows) -> None:
    """``NAME.json`` for each picture, for labelme: polygons, those of one object in one group; or boxes."""
    paths = {one.name: one.path for one in job.inputs}
    with _whole_folder(job.folder / "labelme") as folder:
        for _, row in _readable(rows):
            file = job.folder / "labelme" / f"{_stem(row['name'])}.json"
            content = {
                "version": "5.0.0",
                "flags": {},
                "shapes": [shape for i, found in enumerate(row["objects"]) for shape in _labelme_shapes(row, found, i)],
                "imagePath": os.path.relpath(paths[row["name"]], file.parent),
                "imageData": None,
                "imageHeight": row["height"],
                "imageWidth": row["width"],
            }
            _write(folder / file.relative_to(job.folder / "labelme"), json.dumps(content, indent=1))


def _labelme_shapes(row: dict[str, Any], found: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    common = {"label": found["category"], "description": f"score {found['score']}", "flags": {}}
    if found["rle"] is None:
        x, y, w, h = found["bbox"]
        yield {**common, "points": [[x, y], [x + w, y + h]], "group_id": None, "shape_type": "rectangle"}
        return
    parts = polygons_of(found["rle"], row["height"], row["width"], found["bbox"])
    for part in parts:
        group = number if len(parts) > 1 else None
        yield {**common, "points": part.tolist(), "group_id": group, "shape_type": "polygon"}


def _stem(name: str) -> str:
    """Of a picture's label file: the name without a suffix that it has."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix else name


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@contextlib.contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder that takes the place of ``target`` when the block ends without an error."""
    for left in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    make_folder(temporary)
    try:
        yield temporary
        if target.exists():
            os.replace(target, f"{temporary}.old")
        os.replace(temporary, target)
    finally:
        for left in (temporary, Path(f"{temporary}.old")):
            shutil.rmtree(left, ignore_errors=True)
