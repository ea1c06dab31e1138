"""What NVIDIA's driver tells about the GPUs of this machine, through NVML.

A machine without a driver is a normal case, and so is a driver that answers only half of the questions: consumer cards
report no power, containers no processes, MIG slices no utilization. Whatever is not answered is None. Nothing here
raises once a ``Gpus`` is open, and opening it does not raise either: it says in ``reason`` why there is nothing to see.
"""

from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any

import msgspec
import psutil

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
    """One look at one GPU. None is unknown, never 0."""

    uuid: str | None
    """As NVML writes it: ``GPU-…``, or ``MIG-…`` for a slice of a GPU. It holds across reboots; indices do not."""
    name: str | None
    index: int
    """NVML's, in the order of the PCI bus. CUDA may count in another order. A MIG slice has its GPU's index."""
    device_used_mib: float | None
    """Memory in use by all processes, without what the driver reserves for itself where the driver can tell."""
    device_total_mib: float | None
    process_used_mib: float | None
    """Memory of the process asked for; None if none was asked for or the driver does not tell."""
    utilization_percent: float | None
    """Share of the driver's last sampling period (up to a second) in which some kernel ran."""
    power_w: float | None
    temperature_c: float | None


class _Device:
    """A GPU or a MIG slice, with what never changes about it."""

    def __init__(self, handle: Any, index: int, uuid: str | None, name: str | None, *, is_slice: bool = False) -> None:
        self.handle = handle  # None if the driver refuses even a handle
        self.index = index
        self.uuid = uuid
        self.name = name
        self.is_slice = is_slice
        self.memory_v2 = True  # until the driver says it has only the first version


class Gpus:
    """The GPUs of this machine as the driver shows them. Made by ``open``; safe to ask from several threads."""

    def __init__(self, nvml: ModuleType | None, reason: str | None) -> None:
        self._nvml = nvml
        self._devices: list[_Device] = []
        self.reason = reason
        """Why there is no GPU to see, in words; None if there is one."""
        self.driver_version: str | None = None
        if nvml is not None:
            self.driver_version = _text(self._ask("nvmlSystemGetDriverVersion"))
            self._devices = list(self._discover())
            if not self._devices:
                self.reason = "the NVIDIA driver runs but shows no GPU"

    @classmethod
    def open(cls) -> "Gpus":
        """Load and start NVML. Never raises: see ``available`` and ``reason``."""
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
        """Whether there is at least one GPU to ask about."""
        return bool(self._devices)

    def devices(self) -> list[GpuSample]:
        """Every GPU now; in the place of a GPU split by MIG, its slices."""
        return [self._look(device, None) for device in self._devices]

    def sample(self, uuid: str, pid: int | None = None) -> GpuSample | None:
        """One GPU now, and the memory that process ``pid`` holds on it. None if the driver shows no such GPU; one that
        has failed since the start is all unknown. ``uuid`` may lack its ``GPU-``, as PyTorch's does."""
        device = self._find(uuid)
        return None if device is None else self._look(device, pid)

    def total_energy_j(self, uuid: str) -> float | None:
        """Return the joules that the whole board has used since the driver was loaded, by the driver's own counter.

        None for a MIG slice, as the board has one counter for all its slices; for an unknown GPU; and where the driver
        does not tell: GPUs have the counter from Volta on."""
        device = self._find(uuid)
        if device is None or device.handle is None or device.is_slice:
            return None
        millijoules = _number(self._ask("nvmlDeviceGetTotalEnergyConsumption", device.handle))
        return None if millijoules is None else millijoules / 1000

    def other_processes(self, uuid: str, own_pids: Collection[int]) -> int | None:
        """How many computing processes on this GPU are not ours, at least. None is unknown.

        ``own_pids`` are our processes that hold the GPU now. Inside a container the driver may list the pids of the
        host, which cannot be compared with ours; then only what exceeds our own number is certain."""
        device = self._find(uuid)
        processes = None if device is None else self._processes(device)
        if processes is None:
            return None
        pids = {pid for pid, _ in processes}
        own = set(own_pids)
        if not own or (own & pids and _are_ours_to_compare(pids)):
            return len(pids - own)
        return len(pids) - len(own) if len(pids) > len(own) else None

    def close(self) -> None:
        """Let go of the driver. Afterwards there is no GPU to see."""
        if self._nvml is not None:
            self._ask("nvmlShutdown")
            self._nvml = None
            self._devices = []
            self.reason = "closed"

    def _ask(self, function: str, *arguments: Any) -> Any:
        """NVML's answer, or None if the driver, the bindings or the GPU cannot give one: the only way to NVML."""
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
        """The MIG slices of a GPU; none for one that is whole, or that hides them. Numbering has gaps."""
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

    def _look(self, device: _Device, pid: int | None) -> GpuSample:
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
        """Used and total, MiB. The second version of the question counts the driver's own share apart from ``used``;
        old drivers know only the first."""
        assert self._nvml is not None
        memory = None
        if device.memory_v2:
            memory = self._ask("nvmlDeviceGetMemoryInfo", device.handle, self._nvml.nvmlMemory_v2)
        if memory is None:
            memory = self._ask("nvmlDeviceGetMemoryInfo", device.handle)
            device.memory_v2 = memory is None
        return (None, None) if memory is None else (_mib(memory.used), _mib(memory.total))

    def _temperature(self, handle: Any) -> Any:
        """In °C, by the newer of two functions where the driver has it."""
        assert self._nvml is not None
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        celsius = self._ask("nvmlDeviceGetTemperatureV", handle, sensor)
        return self._ask("nvmlDeviceGetTemperature", handle, sensor) if celsius is None else celsius

    def _processes(self, device: _Device) -> list[tuple[int, float | None]] | None:
        """Pid and MiB of each computing process, None if the driver does not tell. A pid may occur more than once."""
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
        if not ours or None in ours or not _are_ours_to_compare({each for each, _ in processes}):
            return None
        return sum(mib for mib in ours if mib is not None)


def _are_ours_to_compare(pids: Collection[int]) -> bool:
    """Whether these pids mean the processes that we know by the same numbers. Inside a container the driver may list
    the host's, and then one of them can equal ours by chance; a pid that is nobody here gives that away."""
    return all(pid > 0 and psutil.pid_exists(pid) for pid in pids)


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")


def _text(value: str | bytes | None) -> str | None:
    """Bindings of some versions answer in bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _number(value: int | None) -> float | None:
    """NVML marks 'not available' inside a successful answer by all bits set, in 32 or 64 of them."""
    return None if value is None or value in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else float(value)


def _mib(value: int | None) -> float | None:
    number = _number(value)
    return None if number is None else number / MIB
