"""Where the entries of a zip archive lie, for archives that do not compress them.

torch's .pth files and numpy's .npz files are such archives, so that an array in them is a plain
range of bytes, wherever the archive was cut into pieces.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import io
import struct
import zipfile

import mlx.core as mx

from convert.readers.extent import Extent, Joined
from mlx_mixtral.errors import ModelError

# 8x22B has 1,739 tensors, which take some 200 kB in an archive's directory.
LONGEST_DIRECTORY = 4 << 20

_LOCAL = struct.Struct("<4s5H3I2H")  # what stands before an entry's name and bytes
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 1 << 0, 1 << 3, 1 << 11
_IN_ZIP64 = 0xFFFFFFFF  # in place of a size: the true one is too long for 32 bits


def read_directory(file: Joined) -> dict[str, zipfile.ZipInfo]:
    """What the directory at the end of the archive tells of each entry, by name.

    Raises:
        ModelError: the archive is cut short or damaged, or an entry is there twice.
    """
    name = file.pieces[0].name
    try:
        with zipfile.ZipFile(_Stream(file.open().detach())) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as error:
        reason = " ".join(str(error).split())[:100]
        mend = "fetch it again"
        if len(file.pieces) > 1:
            mend = f"a piece is damaged, or there is one after {file.pieces[-1].name}"
        raise ModelError(f"{name} is not a whole zip archive ({reason}); {mend}") from None
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in listed:
        if info.orig_filename in entries:
            raise ModelError(f"{name} holds {info.orig_filename[:100]!a} twice; fetch it again")
        entries[info.orig_filename] = info
    return entries


def stored(file: Joined, info: zipfile.ZipInfo) -> Extent:
    """Where the bytes of an entry lie; its own header, before them, is read.

    Raises:
        ModelError: it is compressed or encrypted, lies outside the file, or its header and the
            directory disagree.
    """
    entry = f"{file.pieces[0].name}: {info.orig_filename[:100]!a}"
    if info.flag_bits & _ENCRYPTED:
        raise ModelError(f"{entry} is encrypted; decrypt the archive first")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ModelError(f"{entry} is compressed; save the model again without compression")
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
    begin = info.header_offset + _LOCAL.size
    if info.header_offset < 0 or begin + len(name) > file.size:
        raise ModelError(f"{entry} lies outside the file; fetch it again")
    header = Extent(file, info.header_offset, (_LOCAL.size,), mx.uint8).raw().tobytes()
    magic, _, flags, method, *_, size, _, name_size, extra_size = _LOCAL.unpack(header)
    sizes = (info.file_size, _IN_ZIP64, 0) if flags & _SIZES_FOLLOW else (info.file_size, _IN_ZIP64)
    honest = magic == b"PK\3\4" and method == zipfile.ZIP_STORED and size in sizes
    if not honest or name_size != len(name):
        raise ModelError(f"{entry} has two headers that disagree; fetch it again")
    if Extent(file, begin, (name_size,), mx.uint8).raw().tobytes() != name:
        raise ModelError(f"{entry} has another name in its own header; fetch it again")
    begin += name_size + extra_size
    if begin + info.file_size > file.size:
        raise ModelError(f"{entry} ends behind the end of the file; fetch it again")
    return Extent(file, begin, (info.file_size,), mx.uint8)


class _Stream(io.BufferedReader):
    """Refuses long reads: a damaged archive may claim a directory of any length."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LONGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(size)
