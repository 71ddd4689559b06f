"""One chunk file of a shard set, read by row number from a memory map: nothing is decoded but the rows that are asked for.

litdata writes rows with lists as an Arrow file, others as items behind a table of offsets. Its own reader is made for going
through a chunk from end to end: it decodes 256 rows for one, and waits two minutes for a file that is gone.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


class Chunk:
    """An open chunk.

    Args:
        path: the file.
        config: ``config`` of litdata's index.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        from litdata.streaming.item_loader import open_arrow_footer_reader

        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        found = open_arrow_footer_reader(self._map)
        self._tables = _batches(*found) if found else []
        self._starts = np.cumsum([0, *(table.num_rows for table in self._tables)])
        self._loader = None if found else _item_loader(config)
        count = int(np.frombuffer(self._map, np.uint32, 1)[0])
        self._offsets = np.frombuffer(self._map, np.uint32, count + 1, 4)

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[Row]:
        """The rows of these numbers, in their order."""
        if self._loader is not None:
            return [dict(self._loader.deserialize(self._map[self._offsets[n] : self._offsets[n + 1]])) for n in numbers]
        places = np.searchsorted(self._starts, numbers, side="right") - 1
        return [_arrow_row(self._tables[place], int(number - self._starts[place])) for number, place in zip(numbers, places, strict=True)]


def _batches(reader: Any, is_file: bool) -> list[Any]:
    """Record batches of an Arrow reader; they point into the memory map."""
    return [reader.get_batch(i) for i in range(reader.num_record_batches)] if is_file else list(reader)


def _arrow_row(table: Any, number: int) -> Row:
    values = {name: column[number].as_py() for name, column in zip(table.schema.names, table.columns, strict=True)}
    return {name: value for name, value in values.items() if value is not None}


def _item_loader(config: dict[str, Any]) -> Any:
    from litdata.streaming.item_loader import PyTreeLoader
    from litdata.streaming.serializers import _get_serializers
    from litdata.utilities._pytree import treespec_loads

    loader = PyTreeLoader()
    loader.setup({**config, "data_spec": treespec_loads(config["data_spec"])}, [], _get_serializers(None))
    return loader
