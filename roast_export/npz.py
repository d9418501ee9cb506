"""Whether the arrays of an .npz file are as long as their headers say.

numpy makes an array by its header and reads the values afterwards. Elements of 0 bytes take no place in the
file, so nothing bounds how many a header states; numpy walks through them all.
"""

from __future__ import annotations

import math
import zipfile

from numpy.lib import format as npy


def check_arrays(archive: zipfile.ZipFile) -> None:
    """Hold the header of each array in an open .npz to the bytes of its member, before numpy reads it.

    Raises:
        ValueError: elements of no bytes, a negative length, more elements than the member has bytes for,
            or a header that is malformed. zipfile's errors where the archive is damaged.
    """
    for member in archive.infolist():
        with archive.open(member) as file:
            if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                continue  # numpy gives the bytes as they are
            file.seek(0)
            version = npy.read_magic(file)
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"the member {member.filename[:60]!r} has format {version}")
            shape, _, dtype = readers[version](file)
            held = member.file_size - file.tell()
        if dtype.itemsize == 0:
            raise ValueError(f"the member {member.filename[:60]!r} has elements of no bytes ({dtype})")
        needed = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or (needed > held and not dtype.hasobject):
            name = member.filename[:60]
            raise ValueError(
                f"the member {name!r} has {held:,} bytes, and its array of {shape} takes {needed:,}"
            )
