"""MXNet's format of parameter files, and the error for a file that breaks it.

The format is the list of arrays that `mx.nd.save` and Gluon's `save_parameters` write, all numbers
little-endian: uint64 magic 0x112, uint64 reserved (0), uint64 number of arrays, the arrays, uint64
number of names (0 or the number of arrays), the names, each a uint64 length and UTF-8 bytes.

One array: uint32 magic (V2, or V3 when written under NumPy shape semantics), int32 storage type (0
is dense), int32 number of dimensions, int64 dimensions, int32 device type and id, int32 element
type, the elements. V1 has no storage type. Before V1 there was no magic: the record began with the
number of dimensions, and dimensions were uint32.
"""

from __future__ import annotations

import numpy as np

LIST_MAGIC = 0x112
ARRAY_V1, ARRAY_V2, ARRAY_V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
CPU = 1
MAX_DIMENSIONS = 32  # NumPy's own limit
# Smallest possible array: the oldest record, one dimension, one byte of data.
SMALLEST_ARRAY = 4 + 4 + 8 + 4 + 1

ELEMENT_TYPES: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    6: np.dtype("<i8"),
    7: np.dtype(bool),
}
TYPE_FLAGS = {dtype: flag for flag, dtype in ELEMENT_TYPES.items()}
BFLOAT16 = 12  # NumPy has no such type: read as float32, never written


class ParamFileError(Exception):
    """A parameter file cannot be read, written or trusted.

    The message says which file, what was found, what was expected and what to do.
    """
