"""llama.cpp's library in its process: a stand-in checks every call. And what is said where it is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.bench.peers.language_pipes import fetch_pipes, has_pipes, pipes_folder
from shoal.bench.peers.llama_cpp import LlamaLibrary, llama_packages, look_at
from shoal.bench.peers.others import find_others
from shoal.config import Settings
from shoal.errors import ShoalError, UsageError
from shoal.progress import silent

SOURCE = Path(__file__).with_name("llama.c")


def build(folder: Path, *flags: str) -> Path:
    """The stand-in as ``libllama.so`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", *flags, "-o", folder / "libllama.so", SOURCE]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def without_rpc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llama-alone"), "-DNO_RPC")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "model.gguf"
    found.write_text("weights")
    return found


def installed(packages: Path, name: str, version: str) -> None:
    """What pip leaves of a package among those of a folder."""
    about = packages / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


async def test_all_speeds_come_from_forwards_that_the_library_takes(fake: Path, file: Path) -> None:
    """The stand-in refuses positions that do not follow one another, and sessions without room."""
    library = await look_at(fake, 1)
    assert library == LlamaLibrary(fake, 1, "CPU : FAKE = 1 | ", rpc=True, gpus=())
    told: list[tuple[int, int]] = []
    async with library.loaded(file) as llama:
        for _ in range(2):
            assert await llama.decode(1) > 0
            assert await llama.decode(8) > 0
            assert await llama.prefill(700) > 0
            assert await llama.requests([[1, 2, 3], [4, 5]], 4) > 0
        await llama.fill(1200, lambda label, done, total: told.append((done, total)))
        await llama.fill(60, silent)
        for tokens in (1200, 60, 1200):
            assert await llama.decode_after(tokens) > 0
        with pytest.raises(ShoalError, match="no session has 61 tokens"):
            await llama.decode_after(61)
    assert told == [(0, 1200), (512, 1200), (1024, 1200)]


async def test_a_file_is_written_in_another_type_once(fake: Path, file: Path) -> None:
    library = await look_at(fake, 1)
    assert await library.quantized(file, "BF16") == file
    assert (await library.quantized(file, "Q8_0")).read_text() == "type 7 pure 1 threads 1"
    mixed = await library.quantized(file, "Q4_K_M")
    assert mixed.read_text() == "type 15 pure 0 threads 1"
    mixed.write_text("kept")
    assert (await library.quantized(file, "Q4_K_M")).read_text() == "kept"


async def test_a_model_is_spread_over_rpc_servers(fake: Path, file: Path, tmp_path: Path) -> None:
    library = await look_at(fake, 1)
    async with library.servers(2, tmp_path) as addresses, library.loaded(file, rpc=addresses) as llama:
        assert await llama.load(file, rpc=addresses) == "fake on 2 devices"
        assert await llama.decode(2) > 0
    with pytest.raises(ShoalError, match="nobody listens"):
        async with library.loaded(file, rpc=addresses):
            pass


async def test_what_the_library_cannot_do_is_said(
    fake: Path, without_rpc: Path, file: Path, tmp_path: Path
) -> None:
    library = await look_at(without_rpc, 1)
    assert not library.rpc
    with pytest.raises(ShoalError, match="has no RPC"):
        async with library.loaded(file, rpc=["127.0.0.1:1"]):
            pass
    with pytest.raises(ShoalError, match="finds no GPU"):
        async with library.loaded(file, gpu=True):
            pass
    with pytest.raises(ShoalError, match="cannot be loaded: no such file"):
        async with library.loaded(tmp_path / "none.gguf"):
            pass
    crashing = tmp_path / "crash.gguf"
    crashing.write_text("")
    with pytest.raises(ShoalError, match="was lost: it crashed"):
        async with library.loaded(crashing):
            pass


async def test_a_library_that_is_not_known_is_refused_before_it_is_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="parameters in another order"):
        await look_at(build(tmp_path / "other", "-DOTHER_ORDER"), 1)
    with pytest.raises(UsageError, match="has no llama_decode"):
        await look_at(build(tmp_path / "old", "-Dllama_decode=llama_eval"), 1)
    with pytest.raises(UsageError, match="has no libllama"):
        await look_at(tmp_path, 1)
    (tmp_path / "libllama.so").write_text("no library")
    with pytest.raises(UsageError, match="cannot be loaded"):
        await look_at(tmp_path, 1)


async def test_what_is_missing_is_a_line_that_says_how_to_get_it(
    settings: Settings, fake: Path, without_rpc: Path
) -> None:
    with pytest.raises(UsageError, match=r"npm install .*@node-llama-cpp/") as caught:
        await find_others(settings, None, gpu=False, fetch=False, progress=silent)
    assert "--fetch" in str(caught.value.next_command)
    found = await find_others(settings, fake, gpu=True, fetch=False, progress=silent)
    assert found.llama is found.rpc is not None and not found.pipes
    assert ["finds no GPU" in line or "pip install language-pipes" in line for line in found.missing] == [
        True
    ] * 2
    found = await find_others(settings, without_rpc, gpu=False, fetch=False, progress=silent)
    assert found.rpc is None
    assert "pip install" in found.missing[0] and "GGML_RPC" in found.missing[0]


async def test_llama_cpp_computes_on_the_cpu_where_its_build_finds_no_gpu(
    settings: Settings, fake: Path, file: Path
) -> None:
    found = await find_others(settings, fake, gpu=True, fetch=False, progress=silent)
    assert not found.on_gpu and any("computes on the CPU" in line for line in found.missing)
    async with found.loaded(file) as llama:
        assert await llama.decode(1) > 0
        assert await llama.load(file) == "fake on 0 devices"
    with_gpu = LlamaLibrary(fake, 1, "", rpc=False, gpus=("a GPU",))
    with pytest.raises(ShoalError, match="finds no GPU"):  # as it is loaded where one was found
        async with replace(found, llama=with_gpu, on_gpu=True).loaded(file):
            pass


async def test_what_was_fetched_is_found_where_the_commands_put_it(
    settings: Settings, without_rpc: Path, fake: Path
) -> None:
    packages = llama_packages(settings, gpu=False)
    assert packages.library is None and packages.rpc_library is None
    name = packages.npm[-1].rpartition("@")[0]
    bins = packages.folder / "npm" / "node_modules" / name / "bins" / "linux-x64"
    shutil.copytree(without_rpc, bins)
    (bins.parent.parent / "package.json").write_text(json.dumps({"name": name, "version": "3.9.9"}))
    shutil.copytree(fake, packages.folder / "rpc" / "llama_cpp_py_sync")
    installed(packages.folder / "rpc", "llama-cpp-py-sync", "0.1")
    pipes = pipes_folder(settings)
    (pipes / "bin").mkdir(parents=True)
    (pipes / "bin" / "language-pipes").touch()
    installed(pipes / "lib" / "python3.11" / "site-packages", "language-pipes", "2.0")
    found = await find_others(settings, None, gpu=False, fetch=False, progress=silent)
    assert found.llama is not None and found.llama.folder == bins
    assert found.rpc is not None and found.rpc.folder == packages.rpc_library
    assert {name: said for name, said in found.versions.items() if "CPU" not in name} == {
        "llama.cpp": f"{name} 3.9.9",
        "llama.cpp over RPC": "llama-cpp-py-sync 0.1",
        "language-pipes": "language-pipes 2.0",
    }
    (packages.rpc_library or bins).joinpath("libllama.so").write_text("for another system")
    found = await find_others(settings, None, gpu=False, fetch=False, progress=silent)
    assert found.rpc is None and "cannot be loaded" in found.missing[0]


async def test_fetching_runs_npm_and_pip(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    async def output_of(command: list[str], within_s: float) -> str:
        ran.append([str(word) for word in command])
        return ""

    monkeypatch.setattr("shoal.bench.peers.llama_cpp.output_of", output_of)
    monkeypatch.setattr("shoal.bench.peers.programs.output_of", output_of)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UsageError, match="npm is not on the PATH"):
        await find_others(settings, None, gpu=False, fetch=True, progress=silent)
    assert ran == []
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    (settings.paths.cache / "bench" / "language-pipes").mkdir(parents=True)
    with pytest.raises(UsageError, match="nothing to compare with"):  # the stand-ins brought nothing
        await find_others(settings, None, gpu=False, fetch=True, progress=silent)
    assert [command[0] for command in ran[:1]] == ["npm"]
    assert [command[-1].partition("=")[0] for command in ran[1:]][::2] == [
        "llama-cpp-py-sync",
        "language-pipes",
    ]


async def test_language_pipes_is_fetched_again_for_another_version_unless_the_user_installed_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    async def output_of(command: list[object], within_s: float) -> str:
        if command[-1] == "language-pipes==9":
            made.append("language-pipes==9")
        return ""

    monkeypatch.setattr("shoal.bench.peers.programs.output_of", output_of)
    monkeypatch.setattr("shoal.bench.peers.language_pipes.REQUIREMENT", "language-pipes==9")
    program = pipes_folder(settings) / "bin" / "language-pipes"
    program.parent.mkdir(parents=True)
    program.touch()
    assert has_pipes(settings)
    await fetch_pipes(settings, silent)  # nothing says that it was fetched
    assert made == []
    (pipes_folder(settings) / "installed").write_text("language-pipes==1")
    for _ in range(2):
        await fetch_pipes(settings, silent)
    assert made == ["language-pipes==9"]
