"""An operator's list, as it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.trust.attestation.measurements import read_measurements

WHOLE = """
[[tdx]]
name = "a virtual machine"
mr_td = "{long}"
rt_mr0 = "{long}"
rt_mr1 = "{long}"
rt_mr2 = "{long}"
tcb = ["UpToDate", "SWHardeningNeeded"]

[[sgx]]
name = "an enclave"
mr_enclave = "{short}"

[[snp]]
name = "another"
measurement = "{long}"
least = {{ boot_loader = 4, tee = 0, snp = 22, microcode = 213 }}

[[nitro]]
name = "in a cloud"
pcr0 = "{long}"
pcr1 = "{long}"
pcr2 = "{long}"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "measurements.toml"
    path.write_text(text)
    return path


def test_a_list_has_entries_of_every_kind_and_hex_in_any_case(tmp_path: Path) -> None:
    found = read_measurements(written(tmp_path, WHOLE.format(long="AB" * 48, short="cD" * 32)))
    assert found.tdx[0].measured()["mr_td"] == "ab" * 48
    assert found.sgx[0].tcb == ("UpToDate",)
    assert (found.snp[0].least.snp, found.snp[0].least.fmc) == (22, 0)
    assert found.nitro[0].name == "in a cloud"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no entry"),
        ("[[tdx]]\nname = 'a'\nmr_td = '" + "0" * 96 + "'", "rt_mr0"),
        ("[[sgx]]\nname = 'a'\nmr_enclave = '" + "0" * 63 + "'", "mr_enclave"),
        ("[[sgx]]\nname = 'a'\nmr_enclave = '" + "0" * 64 + "'\ntcb = ['OutOfDate']", "OutOfDate"),
        ("[[sgx]]\nname = 'a'\nmr_enclave = '" + "0" * 64 + "'\nmrenclave = 'b'", "mrenclave"),
        ("[[snp]]\nname = 'a'\nmeasurement = '" + "0" * 96 + "'", "least"),
        ("[[sgx]", "no list of measurements"),
        ("sgx = 3", "no list of measurements"),
    ],
)
def test_a_list_that_would_not_say_what_it_should_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        read_measurements(written(tmp_path, text))
    assert "docs/attestation.md" in caught.value.check


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no list of measurements"):
        read_measurements(tmp_path / "none.toml")
