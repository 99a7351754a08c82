"""What of a conversion is done, kept on the disk, so that a killed run can go on."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from convert.target import opened, reported


@dataclass
class Journal:
    """One line a finished part: its number and the checksum of the bytes that were written.

    A line is one write of some twenty bytes, made after the data: whatever is torn or lost
    when the machine stops is done again, and what is there is checked before it is believed.
    The first line says which conversion it is of; another one's journal counts for nothing.
    """

    path: Path
    conversion: str
    done: dict[int, int] = field(default_factory=dict)
    """Part number -> CRC-32 of its arrays, one after the other."""

    @classmethod
    def open(cls, path: Path, conversion: str) -> "Journal":
        """The journal at ``path``, empty unless it is of the same ``conversion``."""
        lines = path.read_text(errors="replace").split("\n") if path.is_file() else [""]
        done = dict(_entry(line) for line in lines[1:-1] if _is_entry(line))
        if lines[0] != conversion:
            return cls(path, conversion)
        return cls(path, conversion, done)

    def start(self) -> None:
        """Write the journal anew, with what is known to be done.

        To be called before ``note``: a torn line would swallow the next one.
        """
        lines = [self.conversion, *(f"{n} {crc:08x}" for n, crc in self.done.items()), ""]
        with reported(self.path):
            self.path.write_text("\n".join(lines))

    def note(self, number: int, crc: int) -> None:
        """Part ``number`` is written. Thread-safe."""
        with reported(self.path), opened(self.path, os.O_WRONLY | os.O_APPEND) as file:
            os.write(file, f"{number} {crc:08x}\n".encode())

    def flush(self) -> None:
        """Put it on the disk."""
        with reported(self.path), opened(self.path) as file:
            os.fsync(file)


def _is_entry(line: str) -> bool:
    number, _, crc = line.partition(" ")
    return number.isdecimal() and len(crc) == 8 and set(crc) <= set("0123456789abcdef")


def _entry(line: str) -> tuple[int, int]:
    number, _, crc = line.partition(" ")
    return int(number), int(crc, 16)
