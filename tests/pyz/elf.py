"""Which versions of the C library's symbols a shared library needs, read from its ELF file.

The format: https://refspecs.linuxfoundation.org/LSB_5.0.0/LSB-Core-generic/LSB-Core-generic/symversion.html
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

VERNEED = 0x6FFFFFFE  # the type of the section .gnu.version_r


class Section(NamedTuple):
    """What is read of a section's header."""

    kind: int
    offset: int
    link: int  # another section's number: here, that of its strings
    n_entries: int  # sh_info


def versions_needed(path: Path) -> set[str]:
    """Such as GLIBC_2.17 and CXXABI_1.3. For processors with little-endian numbers."""
    data = path.read_bytes()
    sections = list(sections_of(data))
    return {
        name
        for section in sections
        if section.kind == VERNEED
        for name in names_in(data, section, sections[section.link].offset)
    }


def sections_of(data: bytes) -> Iterator[Section]:
    """The sections of a file of 32 or 64 bits."""
    assert data[:4] == b"\x7fELF" and data[5] == 1
    is_64_bit = data[4] == 2
    (table,) = struct.unpack_from("<Q" if is_64_bit else "<I", data, 0x28 if is_64_bit else 0x20)
    size, number = struct.unpack_from("<HH", data, 0x3A if is_64_bit else 0x2E)
    header = struct.Struct("<4x I 16x Q 8x II" if is_64_bit else "<4x I 8x I 4x II")
    for i in range(number):
        yield Section(*header.unpack_from(data, table + i * size))


def names_in(data: bytes, section: Section, strings: int) -> Iterator[str]:
    """The versions in the section .gnu.version_r."""
    at = section.offset
    for _ in range(section.n_entries):  # of libraries
        n_versions, first, following = struct.unpack_from("<2x H 4x II", data, at)
        version = at + first
        for _ in range(n_versions):
            name, next_version = struct.unpack_from("<8x II", data, version)
            yield data[strings + name : data.index(b"\0", strings + name)].decode()
            version += next_version
        at += following
