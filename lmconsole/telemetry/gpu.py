"""The GPUs of this machine as reported by the NVIDIA driver through NVML.

A machine without a driver is a normal case, and so is a driver that answers only some queries: consumer cards may
report no power, containers no processes, MIG slices no utilization. An unanswered query gives None. Nothing here
raises: if there is no GPU, ``Gpus.reason`` tells why.
"""

from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any

import msgspec

MIB = 1024 * 1024

_REASONS = {
    "NVMLError_LibraryNotFound": "no NVIDIA driver: its library libnvidia-ml.so.1 is missing or cannot be loaded",
    "NVMLError_DriverNotLoaded": "NVIDIA's library is installed, but its kernel driver is not loaded",
    "NVMLError_LibRmVersionMismatch": "the NVIDIA library and the loaded kernel driver have different versions, as "
    "after an update of the driver; a reboot loads the new one",
    "NVMLError_NoPermission": "no permission to ask the NVIDIA driver",
    "NVMLError_FunctionNotFound": "the NVIDIA driver is too old for the installed nvidia-ml-py",
}


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """State of one GPU at one moment. None is unknown, never 0."""

    uuid: str | None
    """UUID in NVML's spelling: ``GPU-…``, or ``MIG-…`` for a slice. Unlike the index, it survives reboots."""
    name: str | None
    index: int
    """NVML's index, in the order of the PCI bus; CUDA may use another order. A MIG slice has the index of its GPU."""
    device_used_mib: float | None
    """Memory used by all processes, without what the driver reserves for itself; old drivers include that."""
    device_total_mib: float | None
    process_used_mib: float | None
    """Memory of the process in question; None without such a process, or if the driver does not report it."""
    utilization_percent: float | None
    """Fraction of the driver's last sampling period (up to a second) during which a kernel was running."""
    power_w: float | None
    temperature_c: float | None


class _Device:
    """A GPU or a MIG slice."""

    def __init__(self, handle: Any, index: int, uuid: str | None, name: str | None, *, is_slice: bool = False) -> None:
        self.handle = handle  # None if the driver refuses one
        self.index = index
        self.uuid = uuid
        self.name = name
        self.is_slice = is_slice
        self.memory_v2 = True  # until the driver turns out to have only the first version


class Gpus:
    """The GPUs of this machine. Made by ``open``; thread-safe."""

    def __init__(self, nvml: ModuleType | None, reason: str | None) -> None:
        self._nvml = nvml
        self._devices: list[_Device] = []
        self.reason = reason
        """Reason for there being no GPU; None if there is one."""
        self.driver_version: str | None = None
        if nvml is not None:
            self.driver_version = _text(self._ask("nvmlSystemGetDriverVersion"))
            self._devices = list(self._discover())
            if not self._devices:
                self.reason = "the NVIDIA driver runs but reports no GPU"

    @classmethod
    def open(cls) -> "Gpus":
        """Load and initialize NVML. Never raises: see ``available`` and ``reason``."""
        try:
            import pynvml
        except ImportError as error:
            return cls(None, f"the Python package nvidia-ml-py cannot be imported ({error})")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return cls(None, _REASONS.get(type(error).__name__, f"the NVIDIA driver refuses: {error}"))
        return cls(pynvml, None)

    @property
    def available(self) -> bool:
        """Whether there is at least one GPU."""
        return bool(self._devices)

    def devices(self) -> list[GpuSample]:
        """Sample every GPU. The slices of a GPU in MIG mode take its place."""
        return [self._sample(device, None) for device in self._devices]

    def sample(self, uuid: str, pid: int | None = None) -> GpuSample | None:
        """Sample one GPU, and the memory of process ``pid`` on it.

        ``uuid`` may lack its prefix ``GPU-``, as PyTorch's do. Returns None if the driver reports no such GPU. If the
        GPU has failed since the start, everything is unknown.
        """
        device = self._find(uuid)
        return None if device is None else self._sample(device, pid)

    def total_energy_j(self, uuid: str) -> float | None:
        """Return the energy that the whole board has used since the driver was loaded, from the driver's counter.

        None for a MIG slice, since the board has one counter for all slices; for an unknown GPU; and for GPUs before
        Volta, which have no counter.
        """
        device = self._find(uuid)
        if device is None or device.handle is None or device.is_slice:
            return None
        millijoules = _number(self._ask("nvmlDeviceGetTotalEnergyConsumption", device.handle))
        return None if millijoules is None else millijoules / 1000

    def other_processes(self, uuid: str, own_pids: Collection[int]) -> int | None:
        """Return the number, or a lower bound, of compute processes on this GPU other than ``own_pids``, which use it
        now; None if unknown.

        In a container the driver may list pids of the host, which cannot be compared with ours. Then only the excess
        over our own number of processes is certain.
        """
        device = self._find(uuid)
        processes = None if device is None else self._processes(device)
        if processes is None:
            return None
        pids = {pid for pid, _ in processes}
        own = set(own_pids)
        if not own or (own & pids and _are_comparable(pids)):
            return len(pids - own)
        return len(pids) - len(own) if len(pids) > len(own) else None

    def close(self) -> None:
        """Shut NVML down. Afterwards there are no GPUs."""
        if self._nvml is not None:
            self._ask("nvmlShutdown")
            self._nvml = None
            self._devices = []
            self.reason = "closed"

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call an NVML function; None if the driver, the bindings or the GPU cannot answer. The only way to NVML."""
        call = getattr(self._nvml, function, None)
        if self._nvml is None or call is None:
            return None
        try:
            return call(*arguments)
        except (self._nvml.NVMLError, UnicodeDecodeError):
            return None

    def _discover(self) -> Iterator[_Device]:
        for index in range(self._ask("nvmlDeviceGetCount") or 0):
            gpu = self._ask("nvmlDeviceGetHandleByIndex", index)
            yield from self._slices(gpu, index) or [self._describe(gpu, index)]

    def _slices(self, gpu: Any, index: int) -> list[_Device]:
        """Return the MIG slices of a GPU; none if it is whole or hides them. Their numbers have gaps."""
        mode = self._ask("nvmlDeviceGetMigMode", gpu) if gpu is not None else None
        if mode is None or mode[0] != 1:
            return []
        numbers = range(self._ask("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0)
        handles = (self._ask("nvmlDeviceGetMigDeviceHandleByIndex", gpu, number) for number in numbers)
        return [self._describe(handle, index, is_slice=True) for handle in handles if handle is not None]

    def _describe(self, handle: Any, index: int, *, is_slice: bool = False) -> _Device:
        if handle is None:
            return _Device(None, index, None, None)
        uuid = _text(self._ask("nvmlDeviceGetUUID", handle))
        return _Device(handle, index, uuid, _text(self._ask("nvmlDeviceGetName", handle)), is_slice=is_slice)

    def _find(self, uuid: str) -> _Device | None:
        wanted = _bare(uuid)
        return next((each for each in self._devices if each.uuid is not None and _bare(each.uuid) == wanted), None)

    def _sample(self, device: _Device, pid: int | None) -> GpuSample:
        handle = device.handle
        used = total = utilization = power = temperature = None
        if handle is not None:
            used, total = self._memory(device)
            rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
            utilization = None if rates is None else _number(rates.gpu)
            power = _number(self._ask("nvmlDeviceGetPowerUsage", handle))
            temperature = _number(self._temperature(handle))
        return GpuSample(
            uuid=device.uuid,
            name=device.name,
            index=device.index,
            device_used_mib=used,
            device_total_mib=total,
            process_used_mib=None if pid is None or handle is None else self._process_memory_mib(device, pid),
            utilization_percent=utilization,
            power_w=None if power is None else power / 1000,
            temperature_c=temperature,
        )

    def _memory(self, device: _Device) -> tuple[float | None, float | None]:
        """Return used and total memory, MiB. Version 2 of the query reports the driver's reservation separately from
        the used memory; old drivers have only version 1."""
        assert self._nvml is not None
        memory = None
        if device.memory_v2:
            memory = self._ask("nvmlDeviceGetMemoryInfo", device.handle, self._nvml.nvmlMemory_v2)
        if memory is None:
            memory = self._ask("nvmlDeviceGetMemoryInfo", device.handle)
            device.memory_v2 = memory is None
        return (None, None) if memory is None else (_mib(memory.used), _mib(memory.total))

    def _temperature(self, handle: Any) -> Any:
        """Return °C from the newer of two functions that the driver has."""
        assert self._nvml is not None
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        celsius = self._ask("nvmlDeviceGetTemperatureV", handle, sensor)
        return self._ask("nvmlDeviceGetTemperature", handle, sensor) if celsius is None else celsius

    def _processes(self, device: _Device) -> list[tuple[int, float | None]] | None:
        """Return pid and MiB of each compute process; None if the driver does not list them. A pid can occur twice."""
        if device.handle is None:
            return None
        for function in ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"):
            processes = self._ask(function, device.handle)
            if processes is not None:
                return [(each.pid, _mib(each.usedGpuMemory)) for each in processes]
        return None

    def _process_memory_mib(self, device: _Device, pid: int) -> float | None:
        processes = self._processes(device) or []
        ours = [mib for each, mib in processes if each == pid]
        if not ours or None in ours or not _are_comparable({each for each, _ in processes}):
            return None
        return sum(mib for mib in ours if mib is not None)


def _are_comparable(pids: Collection[int]) -> bool:
    """Return whether these pids belong to our pid namespace. In a container the driver may list pids of the host, one
    of which can equal one of ours by chance; a pid without a process here reveals that."""
    import psutil

    return all(pid > 0 and psutil.pid_exists(pid) for pid in pids)


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _text(value: str | bytes | None) -> str | None:
    """Decode a string: some versions of the bindings return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _number(value: int | None) -> float | None:
    """Return an answer of NVML as a number. Inside a successful answer, all 32 or 64 bits set mean "not available"."""
    return None if value is None or value in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else float(value)


def _mib(value: int | None) -> float | None:
    number = _number(value)
    return None if number is None else number / MIB
