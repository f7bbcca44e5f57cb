"""Where in a TOML file something stands, so that messages can say it."""

import re
from dataclasses import dataclass

__all__ = ["TomlLocation"]

_HEADER = re.compile(r"\s*\[(\[)?\s*([^\[\]]+?)\s*\]?\]\s*(?:#.*)?")
_KEY = re.compile(r"\s*([\w.\"'-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=")


@dataclass(frozen=True, slots=True)
class TomlLocation:
    r"""A path of keys in a file; entries of a list count from 1, as people do.

    >>> text = "[[device_class]]\nname = 'a'\n[device_class.budget]\nsize = '1KB'"
    >>> print((TomlLocation("edgewright.toml", text) / "device_class")[0] / "budget" / "size")
    edgewright.toml: device_class[1].budget.size (line 4)
    """

    file: str
    text: str
    path: tuple[str, ...] = ()

    def __truediv__(self, key: str) -> "TomlLocation":
        """Return the place of a key in this table."""
        return TomlLocation(self.file, self.text, (*self.path, key))

    def __getitem__(self, number: int) -> "TomlLocation":
        """Return the place of an entry of this list; `number` counts from 0."""
        return TomlLocation(self.file, self.text, (*self.path[:-1], f"{self.path[-1]}[{number + 1}]"))

    def __str__(self) -> str:
        """Return file, path and, where it can be told, line."""
        line = self.line()
        where = f"{self.file}: {'.'.join(self.path)}" if self.path else self.file
        return where if line is None else f"{where} (line {line})"

    def line(self) -> int | None:
        """Return the line, counted from 1, on which this place's key or table header stands."""
        counts: dict[str, int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := _HEADER.fullmatch(line):
                keys = _keys(header[2])
                if header[1]:
                    counts[".".join(keys)] = counts.get(".".join(keys), 0) + 1
                table = tuple(_numbered(keys, counts))
                if table == self.path:
                    return number
            elif (key := _KEY.match(line)) and (*table, *_keys(key[1])) == self.path:
                return number
        return None


def _keys(dotted: str) -> list[str]:
    return [key.strip().strip("\"'") for key in dotted.split(".")]


def _numbered(keys: list[str], counts: dict[str, int]) -> list[str]:
    """Write the number of the current entry behind each key that is a list of tables."""
    return [
        f"{key}[{counts[dotted]}]" if (dotted := ".".join(keys[: place + 1])) in counts else key
        for place, key in enumerate(keys)
    ]
