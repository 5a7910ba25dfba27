"""A machine of Intel's that there is not: TDX and SGX, with what Intel says of its versions."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shoal.testing.tee.authority import LIVES, Authority, root
from shoal.trust.attestation.evidence import Binding, Evidence
from shoal.trust.attestation.measurements import SgxEntry, TdxEntry

IntelKind = Literal["tdx", "sgx"]
MEASURED = {"mr_td": "a1" * 48, "rt_mr0": "b0" * 48, "rt_mr1": "b1" * 48, "rt_mr2": "b2" * 48}
MR_ENCLAVE = "c0" * 32
FMSPC = bytes.fromhex("00906ea10000")
SVNS = (2,) * 16
PCE_SVN = 11
QE_SIGNER = "dc" * 32
_SGX_OID = "1.2.840.113741.1.13.1"
_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


class FakeMachine:
    """A machine with its keys and certificates, which begin to be valid at ``begins``.

    Args:
        status: what Intel says of its versions.
        svns: the versions that Intel knows as those; its own are :data:`SVNS`.
        revoked: whether the machine's certificate is.
        lives: how long what Intel says holds.
        crl_lives: the same of its lists of revoked certificates.
    """

    def __init__(
        self,
        begins: datetime,
        kind: IntelKind = "tdx",
        *,
        status: str = "UpToDate",
        svns: Sequence[int] = SVNS,
        revoked: bool = False,
        lives: timedelta = LIVES,
        crl_lives: timedelta = LIVES,
    ) -> None:
        self.kind: IntelKind = kind
        key = _new_key
        top = root("Intel SGX Root CA", key(), hashes.SHA256(), begins)
        platform = top.issue("Intel SGX PCK Platform CA", key(), begins)
        signing = top.issue("Intel SGX TCB Signing", key(), begins, ca=False)
        self._pck_key = key()
        extension = [(_SGX_OID, _sgx_extension())]
        pck = platform.issue(
            "Intel SGX PCK Certificate", self._pck_key, begins, ca=False, extensions=extension
        )
        self._key = key()
        self.root = top.der
        self._chain = pck.pem + platform.pem + top.pem
        serials = [pck.certificate.serial_number] if revoked else []
        self.collateral = _collateral(
            top,
            signing,
            {
                "pck_crl_issuer_chain": platform.pem + top.pem,
                "root_ca_crl": top.revoke([], begins, lives=crl_lives).hex(),
                "pck_crl": platform.revoke(serials, begins, lives=crl_lives).hex(),
            },
            _tcb_info(kind, begins, begins + lives, status, svns),
            _qe_identity(kind, begins, begins + lives),
        )

    def quote(
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        migrates: bool = False,
        swapped: FakeMachine | None = None,
    ) -> bytes:
        """A quote that this machine has signed; with the certificates of ``swapped``."""
        tdx = self.kind == "tdx"
        header = struct.pack("<HHIHH16s20s", 4 if tdx else 3, 2, 0x81 if tdx else 0, 0, 0, _VENDOR, b"")
        body = (
            _td_report(report_data, debug=debug, migrates=migrates)
            if tdx
            else _enclave_report(report_data, debug=debug)
        )
        public = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        authenticated = bytes(range(32))
        bound = hashlib.sha256(public + authenticated).digest().ljust(64, b"\0")
        enclave = _report(bound, attributes=b"\x11", signer=bytes.fromhex(QE_SIGNER), product=2, svn=4)
        chain = (swapped or self)._chain.encode()
        certified = (
            enclave
            + _signature(self._pck_key, enclave)
            + struct.pack("<H", len(authenticated))
            + authenticated
            + struct.pack("<HI", 5, len(chain))
            + chain
        )
        if tdx:
            certified = struct.pack("<HI", 6, len(certified)) + certified
        signed = _signature(self._key, header + body) + public + certified
        return header + body + struct.pack("<I", len(signed)) + signed

    def evidence(
        self,
        binding: Binding,
        *,
        debug: bool = False,
        migrates: bool = False,
        swapped: FakeMachine | None = None,
    ) -> Evidence:
        """What a node on it presents."""
        quote = self.quote(binding.report_data, debug=debug, migrates=migrates, swapped=swapped)
        return Evidence(self.kind, binding, quote, self.collateral)


def allowed_machine() -> TdxEntry:
    """An entry of a list that allows it, as a virtual machine."""
    return TdxEntry(
        name="a test",
        mr_td=MEASURED["mr_td"],
        rt_mr0=MEASURED["rt_mr0"],
        rt_mr1=MEASURED["rt_mr1"],
        rt_mr2=MEASURED["rt_mr2"],
    )


def allowed_sgx() -> SgxEntry:
    """The same as an enclave."""
    return SgxEntry(name="a test", mr_enclave=MR_ENCLAVE)


def _td_report(report_data: bytes, *, debug: bool, migrates: bool) -> bytes:
    measured = b"".join(bytes.fromhex(MEASURED[name]) for name in ("rt_mr0", "rt_mr1", "rt_mr2"))
    # Versions of the TDX module; its measurements; attributes; the machine's measurements; ours.
    return (
        bytes(SVNS)
        + bytes(48 + 48 + 8)
        + (b"\x01" if debug else b"\0")
        + (b"\0\0\x30\0\0\0\0" if migrates else b"\0\0\x10\0\0\0\0")
        + bytes.fromhex("e702060000000000")
        + bytes.fromhex(MEASURED["mr_td"])
        + bytes(3 * 48)
        + measured
        + bytes(48)
        + report_data
    )


def _enclave_report(report_data: bytes, *, debug: bool) -> bytes:
    return _report(report_data, attributes=b"\x07" if debug else b"\x05", enclave=bytes.fromhex(MR_ENCLAVE))


def _report(
    report_data: bytes,
    *,
    attributes: bytes,
    enclave: bytes = bytes(32),
    signer: bytes = bytes(32),
    product: int = 0,
    svn: int = 0,
) -> bytes:
    return (
        bytes(SVNS)
        + bytes(32)
        + attributes.ljust(16, b"\0")
        + enclave
        + bytes(32)
        + signer
        + bytes(96)
        + struct.pack("<HH", product, svn)
        + bytes(60)
        + report_data
    )


def _tcb_info(
    kind: IntelKind, begins: datetime, ends: datetime, status: str, svns: Sequence[int]
) -> dict[str, Any]:
    components = [{"svn": svn} for svn in svns]
    tcb: dict[str, Any] = {"sgxtcbcomponents": components, "pcesvn": PCE_SVN}
    found: dict[str, Any] = {
        "id": "TDX" if kind == "tdx" else "SGX",
        "version": 3,
        "issueDate": _date(begins),
        "nextUpdate": _date(ends),
        "fmspc": FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 18,
    }
    if kind == "tdx":
        tcb["tdxtcbcomponents"] = components
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        level = {"tcb": {"isvsvn": 1}, "tcbDate": _date(begins), "tcbStatus": "UpToDate"}
        found["tdxModule"] = module
        found["tdxModuleIdentities"] = [module | {"id": "TDX_02", "tcbLevels": [level]}]
    found["tcbLevels"] = [{"tcb": tcb, "tcbDate": _date(begins), "tcbStatus": status}]
    return found


def _qe_identity(kind: IntelKind, begins: datetime, ends: datetime) -> dict[str, Any]:
    return {
        "id": "TD_QE" if kind == "tdx" else "QE",
        "version": 2,
        "issueDate": _date(begins),
        "nextUpdate": _date(ends),
        "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FB" + "FF" * 7 + "00" * 8,
        "mrsigner": QE_SIGNER.upper(),
        "isvprodid": 2,
        "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": _date(begins), "tcbStatus": "UpToDate"}],
    }


def _collateral(
    top: Authority,
    signing: Authority,
    lists: dict[str, str],
    tcb_info: dict[str, Any],
    qe_identity: dict[str, Any],
) -> bytes:
    chain = signing.pem + top.pem
    found: dict[str, str] = {"tcb_info_issuer_chain": chain, "qe_identity_issuer_chain": chain} | lists
    assert isinstance(signing.key, ec.EllipticCurvePrivateKey)
    for name, said in (("tcb_info", tcb_info), ("qe_identity", qe_identity)):
        text = json.dumps(said, separators=(",", ":"))
        found |= {name: text, f"{name}_signature": _signature(signing.key, text.encode()).hex()}
    return json.dumps(found).encode()


def _sgx_extension() -> bytes:
    """What a machine's certificate says of its versions."""
    svns = [_pair(f"2.{index}", _integer(svn)) for index, svn in enumerate(SVNS, 1)]
    tcb = _der(0x30, b"".join([*svns, _pair("2.17", _integer(PCE_SVN)), _pair("2.18", _octets(bytes(SVNS)))]))
    pairs = [
        _pair("1", _octets(bytes(16))),
        _pair("2", tcb),
        _pair("3", _octets(bytes(2))),
        _pair("4", _octets(FMSPC)),
        _pair("5", _der(0x0A, b"\0")),
    ]
    return _der(0x30, b"".join(pairs))


def _pair(place: str, value: bytes) -> bytes:
    arcs = [int(arc) for arc in f"{_SGX_OID}.{place}".split(".")]
    encoded = bytes([40 * arcs[0] + arcs[1]])
    for arc in arcs[2:]:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return _der(0x30, _der(0x06, encoded) + value)


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _octets(data: bytes) -> bytes:
    return _der(0x04, data)


def _der(tag: int, data: bytes) -> bytes:
    size = len(data)
    length = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + data


def _signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _date(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
