"""Rows of labels as Parquet: one for each picture or frame, with all that was found in it.

| column | |
|---|---|
| name | of the picture, or VIDEO_000042 |
| height, width | pixels; null where it could not be read |
| luminance | mean linear luminance, 0 to 1; null likewise |
| error | why it could not be read; null where it could |
| objects | best first: category_id, category, score, bbox (x y width height, pixels), area (pixels), rle (COCO's) |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wnlb.runtime.errors import WnlbError


def schema() -> Any:
    """The ``pyarrow.Schema`` of all shards."""
    import pyarrow as pa

    found = [
        ("category_id", pa.int32()),
        ("category", pa.string()),
        ("score", pa.float64()),
        ("bbox", pa.list_(pa.float64(), 4)),
        ("area", pa.float64()),
        ("rle", pa.string()),
    ]
    return pa.schema(
        [
            pa.field("name", pa.string(), nullable=False),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("luminance", pa.float32()),
            ("error", pa.string()),
            ("objects", pa.list_(pa.struct(found))),
        ]
    )


def table_bytes(rows: list[dict[str, Any]]) -> bytes:
    """A Parquet file of these rows; what a row lacks is null."""
    import pyarrow as pa

    return _written(pa.Table.from_pylist(rows, schema()))


def joined(files: Iterable[bytes]) -> bytes:
    """One Parquet file of the rows of several."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return _written(pa.concat_tables([pq.read_table(pa.BufferReader(data)) for data in files]))


def _written(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_shard(path: Path) -> list[dict[str, Any]]:
    """Raises WnlbError where it is damaged."""
    return open_shard(path).read().to_pylist()


def open_shard(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``. Raises WnlbError where it is none of ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise WnlbError(f"{path} cannot be read: {error}; delete it, and the next start makes it again") from error
    if not file.schema_arrow.equals(schema()):
        raise WnlbError(f"{path} has other columns than labels have; give another -o")
    return file


def rows_of(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """All rows, one shard in memory at a time."""
    for path in paths:
        yield from read_shard(path)
