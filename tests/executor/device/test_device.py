"""Which device is taken: told from files before torch is imported, then from what torch finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.executor.device.device import Device, DeviceMemory
from shoal.executor.device.find import choose_device
from shoal.executor.device.signs import Maker, TorchBuild, makers_here, read_build, torch_build, why_none

CPU_BUILD = TorchBuild("2.13.0+cpu", frozenset())
CUDA_BUILD = TorchBuild("2.13.0", frozenset({"cuda"}))


def card(name: str, free: int) -> Device:
    """An accelerator of 24 GiB, of which ``free`` are free."""
    return Device(name, "A Card", lambda: DeviceMemory(24 << 30, free << 30))


# ---- without torch ----


@pytest.mark.parametrize(
    ("file", "content", "maker"),
    [
        ("dev/nvidia0", "", "NVIDIA"),
        ("dev/dxg", "", "NVIDIA"),
        ("dev/kfd", "", "AMD"),
        ("sys/class/drm/renderD128/device/vendor", "0x8086\n", "Intel"),
    ],
)
def test_a_driver_is_seen_by_its_files(tmp_path: Path, file: str, content: str, maker: Maker) -> None:
    assert makers_here(tmp_path, "linux") == []
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(content)
    assert makers_here(tmp_path, "linux") == [maker]


def test_files_of_others_are_no_sign(tmp_path: Path) -> None:
    for file, content in (("dev/nvidiactl", ""), ("sys/class/drm/renderD129/device/vendor", "0x1002")):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(content)
    assert makers_here(tmp_path, "linux") == []


def test_macs_and_windows_have_signs_of_their_own(tmp_path: Path) -> None:
    assert makers_here(tmp_path, "darwin", "arm64") == ["Apple"]
    assert makers_here(tmp_path, "darwin", "x86_64") == []
    (tmp_path / "Windows" / "System32").mkdir(parents=True)
    (tmp_path / "Windows" / "System32" / "nvcuda.dll").touch()
    assert makers_here(tmp_path, "win32") == ["NVIDIA"]


@pytest.mark.parametrize(
    ("makers", "build", "why"),
    [
        (["NVIDIA"], CUDA_BUILD, ""),
        (["Apple"], TorchBuild("2.13.0", frozenset()), ""),
        (["Intel", "NVIDIA"], CUDA_BUILD, ""),
        ([], CUDA_BUILD, "no accelerator's driver is on this machine"),
        ([], CPU_BUILD, "torch 2.13.0+cpu is built for the CPU alone"),
        (["NVIDIA"], CPU_BUILD, "not built for the accelerator that is here (NVIDIA)"),
        (["AMD"], CUDA_BUILD, "not built for the accelerator that is here (AMD)"),
        (["NVIDIA"], None, "torch is not installed"),
    ],
)
def test_why_torch_is_not_worth_importing(makers: list[Maker], build: TorchBuild | None, why: str) -> None:
    assert why in why_none(makers, build)
    assert bool(why) == bool(why_none(makers, build))


def test_what_torch_is_built_for_is_read_from_its_own_words() -> None:
    text = "__version__ = '2.9.1'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n"
    assert read_build(text) == TorchBuild("2.9.1", frozenset({"cuda"}))
    import torch  # the one that is installed says of itself what its file says

    found = torch_build()
    assert found is not None
    assert found.version == str(torch.__version__)
    assert ("cuda" in found.built_for) == (torch.version.cuda is not None)


def test_a_machine_without_an_accelerator_decides_without_torch() -> None:
    program = (
        "import sys\n"
        "from shoal.executor.device import find\n"
        "find.makers_here = lambda: []\n"
        "print(find.find_device('auto').device.name, find.find_device('cpu').why, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "cpu it was asked for False\n"


# ---- among what torch finds ----


def test_auto_takes_the_accelerator_with_the_most_room() -> None:
    assert (
        choose_device("auto", [card("cuda:0", 3), card("cuda:1", 20), card("cuda:2", 20)]).device.name
        == "cuda:1"
    )


def test_auto_leaves_a_full_accelerator_to_others() -> None:
    choice = choose_device("auto", [card("cuda:0", 0)])
    assert (choice.device.name, choice.why) == ("cpu", "cuda:0 (A Card) has only 0 MiB free")
    assert choose_device("cuda", [card("cuda:0", 0)]).device.name == "cuda:0"  # who asks for it has it


def test_auto_without_an_accelerator_is_the_cpu_and_says_why() -> None:
    choice = choose_device("auto", [], "torch is built for the CPU alone")
    assert (choice.device.is_cpu, choice.why) == (True, "torch is built for the CPU alone")


def test_a_kind_alone_is_the_first_of_it() -> None:
    found = [card("cuda:0", 3), card("cuda:1", 20)]
    assert choose_device("cuda", found).device is found[0]
    assert choose_device("cuda:1", found).device is found[1]


@pytest.mark.parametrize("asked", ["cuda:2", "xpu", "mps"])
def test_a_device_that_is_not_here_names_those_that_are(asked: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(asked, [card("cuda:0", 3)])
    assert asked in caught.value.message
    assert "cpu, cuda:0 (A Card); or auto" in caught.value.check
    assert caught.value.next_command == "shoal doctor"
