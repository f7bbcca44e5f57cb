"""Tables: CSV or Parquet, one row per sample, with named feature, label and group columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from edgewright.compress.data.sources.raw import RawData
from edgewright.contract.errors import DataError

__all__ = ["read_data_table"]


def read_data_table(
    path: Path, input_name: str, *, label: str | None = None, features: Sequence[str] = (), group: str | None = None
) -> RawData:
    """Read a table's columns as one input [n, features], labels [n] and groups [n].

    Without `features`, every column that is neither label nor group is one, in the table's order; without
    `label`, a column `y` is the label.

    Raises:
        DataError: Damaged or empty file, a column that is missing, has empty cells or holds text.
    """
    table = _open(path)
    names = list(table.column_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has several columns {', '.join(twice)}", remedy="Give each column its own name.")
    for role, name in (("label", label), ("group", group), *(("features", name) for name in features)):
        if name is not None and name not in names:
            raise DataError(f"{path} has no column {name!r} ({role})", remedy=f"Its columns: {', '.join(names)}.")
    if table.num_rows == 0:
        raise DataError(f"{path} holds no rows", remedy="Give one row per sample.")
    notes: list[str] = []
    if label is None and "y" in names:
        label = "y"
    chosen = list(features)
    if not chosen:
        chosen = [name for name in names if name not in (label, group)]
        notes.append(f"features are all {len(chosen)} other columns of {path.name}: {_shortened(chosen)}")
    if not chosen:
        raise DataError(f"{path} has no feature column", remedy="Name the feature columns.")
    columns = [_numbers(table, name, path) for name in chosen]
    return RawData(
        arrays={input_name: np.stack(columns, axis=1)},
        labels=None if label is None else _column(table, label, path),
        groups=None if group is None else _column(table, group, path),
        notes=tuple(notes),
    )


def _open(path: Path) -> Any:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty", remedy="Give a header line and one row per sample.")
        return pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
    except pa.ArrowException as error:
        kind = "CSV" if path.suffix == ".csv" else "Parquet"
        raise DataError(
            f"{path} cannot be read as {kind}: {str(error).splitlines()[0]}",
            remedy="Check or write the file again.",
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", remedy="Check the path and its permissions.") from error


def _column(table: Any, name: str, path: Path) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    if column.null_count:
        first = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise DataError(
            f"column {name!r} of {path} has {column.null_count} empty cells, the first in row {first + 1}",
            remedy="Fill or remove those rows.",
        )
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.astype(str) if values.dtype == object else values


def _numbers(table: Any, name: str, path: Path) -> NDArray[np.float64]:
    values = _column(table, name, path)
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"feature column {name!r} of {path} holds {values.dtype.name}, not numbers (for example {values[0]!r})",
            remedy="Encode it as numbers, or leave it out of the features.",
        )
    return values.astype(np.float64)


def _shortened(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names) if len(names) <= most else ", ".join((*names[: most - 1], "…", names[-1]))
