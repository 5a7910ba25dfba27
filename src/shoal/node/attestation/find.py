"""Which hardware that gives quotes this machine has, by its files."""

from __future__ import annotations

from pathlib import Path

from shoal.errors import UsageError
from shoal.node.attestation.nsm import NsmQuotes
from shoal.node.attestation.quotes import GRAMINE, TSM, GramineQuotes, QuoteSource, TsmQuotes

NSM = Path("/dev/nsm")
OLD_DEVICES = (Path("/dev/tdx_guest"), Path("/dev/sev-guest"), Path("/dev/tdx-guest"))


def find_quotes() -> QuoteSource:
    """What gives quotes on this machine.

    Raises:
        UsageError: nothing does.
    """
    if (GRAMINE / "quote").exists():
        return GramineQuotes()
    if NSM.exists():
        return NsmQuotes(NSM)
    if TSM.is_dir():
        return TsmQuotes()
    old = next((path for path in OLD_DEVICES if path.exists()), None)
    if old is not None:
        raise UsageError(
            f"{old} is there, and {TSM} is not: the kernel of this guest is too old, or lacks the module",
            check="use Linux 6.7 or later, and mount configfs",
            next_command="modprobe tsm && mount -t configfs none /sys/kernel/config",
        )
    raise UsageError(
        "--attest: this machine has no hardware that gives quotes",
        check="run the node in a confidential virtual machine (TDX, SEV-SNP), an enclave of SGX under "
        "Gramine, or a Nitro enclave, as docs/attestation.md says",
        next_command="shoal serve MODEL",
    )
