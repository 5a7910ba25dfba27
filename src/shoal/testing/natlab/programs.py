"""The programs that make a lab's networks, and whether they are here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shoal.errors import NotAllowed, ShoalError
from shoal.testing.natlab.namespaces import Namespace

PACKAGES = {"ip": "iproute2", "nft": "nftables", "conntrack": "conntrack", "nsenter": "util-linux"}
"""What Debian calls the package of each program."""
TUN = Path("/dev/net/tun")


def check_programs() -> None:
    """Whether this machine can have such a lab.

    Raises:
        NotAllowed: this process is not root.
        ShoalError: something is missing: it says what to install.
    """
    if sys.platform != "linux":
        raise ShoalError("a lab of networks needs Linux", check="run it in a virtual machine with Linux")
    if os.geteuid() != 0:
        raise NotAllowed(
            "only root can make network namespaces", check="run the same command as root, with sudo"
        )
    if missing := sorted({package for tool, package in PACKAGES.items() if shutil.which(tool) is None}):
        raise ShoalError(
            f"a lab of networks needs {', '.join(missing)}",
            check="install what is missing",
            next_command=f"apt-get install {' '.join(missing)}",
        )
    if not TUN.exists():
        raise ShoalError(f"there is no {TUN}", check="load the kernel's module", next_command="modprobe tun")
    try:
        Namespace().close()
    except OSError as error:
        raise NotAllowed(
            f"even root can make no network namespaces here: {error.strerror}",
            check="leave the container, or start it with --privileged",
        ) from error


def run_program(argv: Sequence[str], text: str = "") -> str:
    """Run one of the programs in this thread's namespace, and return what it says.

    Args:
        text: its stdin.

    Raises:
        ShoalError: it failed; its own words say why.
    """
    ran = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
    if ran.returncode:
        raise ShoalError(
            f"{argv[0]} failed: {ran.stderr.strip()[-500:]}",
            check="look whether this kernel has namespaces, TUN, veth, bridges and nftables",
        )
    return ran.stdout
