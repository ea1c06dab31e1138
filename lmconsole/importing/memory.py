"""Readings of a device's memory, as ``nvidia-smi`` prints them: one a line, in MiB.

Accepted are plain numbers, numbers with a unit (``6364 MiB, 15109 MiB``, ``6364MiB / 15109MiB``), and the output of
``nvidia-smi --query-gpu=memory.used,memory.total,utilization.gpu --format=csv`` with or without header and units. A
source states neither when a reading was taken nor what the program was doing, so all of them count.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_SAMPLES = 128
"""Most samples that are kept of a run. Of more readings, each sample is the mean of as many consecutive ones."""

LARGEST_MIB = 4 * 2**20
"""Larger numbers are not memory of one device in MiB."""

_UNITS_MIB = {"kib": 2**-10, "mib": 1.0, "gib": 2.0**10, "kb": 2**-10, "mb": 1.0, "gb": 2.0**10}
"""MiB in a unit. Older drivers and many scripts write MB and mean MiB."""

_COLUMNS = {"memory.used": "used", "memory.total": "total", "utilization.gpu": "utilization"}
_DEVICE_COLUMNS = ("index", "uuid", "gpu_uuid", "pci.bus_id", "gpu_bus_id")

_NUMBER = r"\d+(?:\.\d*)?"
_AMOUNT = re.compile(rf"({_NUMBER})\s*([KMG]i?B)\b", re.IGNORECASE)
_PERCENT = re.compile(rf"({_NUMBER})\s*%")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")
_UNKNOWN = ("n/a", "not supported", "unknown error", "insufficient permissions")
"""Values that nvidia-smi prints in brackets where it has no reading."""


class MemoryReadingsError(Exception):
    """The file has no readings that can be used, for the reason in the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Memory in use on the device, by all of its processes. With ``count`` above 1, means of consecutive readings."""

    used_mib: float
    total_mib: float | None = None
    utilization_percent: float | None = None
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """Usable content of a file, and what was left out."""

    readings: Sequence[Reading]
    problem: str = ""
    """Number of lines that are not readings, and the first of them; empty if there are none."""


def parse_readings(text: str) -> Readings:
    """Return the readings in ``text``, at most ``MAX_SAMPLES``, whose weighted mean is that of all lines.

    Raises:
        MemoryReadingsError: no line has a reading, or the lines belong to several devices.
    """
    header: Mapping[str, int] = {}
    found: list[Reading] = []
    devices: set[str] = set()
    skipped: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or any(f"[{unknown}]" in line.lower() for unknown in _UNKNOWN):
            continue
        if columns := _header_columns(line):
            header = columns
            continue
        if not (found or skipped or any(map(str.isdigit, line))):
            continue  # a title
        reading = _parse_columns(line, header) if header else _parse_line(line)
        if reading is None:
            skipped.append((number, line))
            continue
        found.append(reading)
        cells = line.split(",")
        devices |= {cells[index].strip() for name, index in header.items() if name == "device" and index < len(cells)}
    if len(devices) > 1:
        raise MemoryReadingsError(f"readings of {len(devices)} devices; those of one are needed")
    if not found:
        raise MemoryReadingsError(f"no reading{_describe_skipped(skipped)}")
    problem = f"{len(skipped):,} of {len(skipped) + len(found):,} lines are no readings and were left out"
    return Readings(readings=_thin(found), problem=problem + _describe_skipped(skipped) if skipped else "")


def _describe_skipped(skipped: Sequence[tuple[int, str]]) -> str:
    return f" (line {skipped[0][0]}: {skipped[0][1].strip()[:40]!r})" if skipped else ""


def _header_columns(line: str) -> dict[str, int]:
    """Return the indices of known columns in a header of ``nvidia-smi --format=csv``; empty for any other line."""
    names = [cell.partition("[")[0].strip().lower() for cell in line.split(",")]
    columns = {_COLUMNS[name]: index for index, name in enumerate(names) if name in _COLUMNS}
    if "used" not in columns:
        return {}
    device = next((index for index, name in enumerate(names) if name in _DEVICE_COLUMNS), None)
    return columns if device is None else columns | {"device": device}


def _parse_columns(line: str, columns: Mapping[str, int]) -> Reading | None:
    cells = line.split(",")
    values = {name: _parse_cell(cells[index]) for name, index in columns.items() if index < len(cells)}
    return _reading(values.get("used"), values.get("total"), values.get("utilization"))


def _parse_cell(text: str) -> float | None:
    """Return an amount in MiB or a percentage."""
    text = text.strip()
    if match := _AMOUNT.fullmatch(text):
        return float(match[1]) * _UNITS_MIB[match[2].lower()]
    match = re.fullmatch(rf"({_NUMBER})\s*%?", text)
    return float(match[1]) if match else None


def _parse_line(line: str) -> Reading | None:
    """Parse a line of a file without header: memory in use, then perhaps the device's total memory."""
    line = line.strip()
    if amounts := [float(match[1]) * _UNITS_MIB[match[2].lower()] for match in _AMOUNT.finditer(line)]:
        if line.startswith("|") and len(amounts) < 2:
            return None  # a process in the table of plain ``nvidia-smi``
        percent = _PERCENT.search(line)
        return _reading(amounts[0], amounts[1] if len(amounts) > 1 else None, float(percent[1]) if percent else None)
    if _THOUSANDS.fullmatch(line):
        return _reading(float(line.replace(",", "")))
    numbers = [_parse_cell(cell) for cell in re.split(r"[,;/\s]+", line)]
    if len(numbers) > 2 or None in numbers:
        return None
    return _reading(*numbers)


def _reading(used: float | None, total: float | None = None, percent: float | None = None) -> Reading | None:
    """Return a reading if its numbers are possible."""
    if used is None or not 0.0 <= used <= LARGEST_MIB:
        return None
    return Reading(
        used_mib=used,
        total_mib=total if total is not None and max(used, 1.0) <= total <= LARGEST_MIB else None,
        utilization_percent=percent if percent is not None and 0.0 <= percent <= 100.0 else None,
    )


def _thin(readings: Sequence[Reading]) -> Sequence[Reading]:
    size = math.ceil(len(readings) / MAX_SAMPLES)
    return readings if size == 1 else [_mean(readings[i : i + size]) for i in range(0, len(readings), size)]


def _mean(readings: Sequence[Reading]) -> Reading:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(values) else None

    used = mean([reading.used_mib for reading in readings])
    assert used is not None
    return Reading(
        used_mib=used,
        total_mib=mean([reading.total_mib for reading in readings]),
        utilization_percent=mean([reading.utilization_percent for reading in readings]),
        count=len(readings),
    )
