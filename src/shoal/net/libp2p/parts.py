"""Which parts of py-libp2p are loaded: those that Shoal uses.

Whatever is asked of it, py-libp2p 0.8 imports everything: QUIC, WebSocket, ACME, UPnP, bitswap, stores in
SQLite, names over HTTPS. That is 600 modules, half a second of CPU and 40 MB in every process, for carriers
and services that Shoal never starts. So before the library is imported,

- packages that only gather names from everywhere are made without running their ``__init__`` (:data:`BARE`);
- modules that are only named, in annotations or as something that could be configured, are stood in for
  (:data:`LEFT_OUT`); whoever calls into one gets an error that says so;
- the library itself is the one that Shoal was built with (:data:`VENDORED`), whatever else is installed;
- DNS names are resolved by a resolver that imports dnspython when there is one to resolve.

``tests/net/test_libp2p_parts.py`` notices when the library no longer has one of these modules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

BARE = frozenset(
    {
        "libp2p",
        "libp2p.bitswap",
        "libp2p.discovery.mdns",
        "libp2p.relay",
        "libp2p.relay.circuit_v2",
        "libp2p.security.tls",
        "libp2p.transport",
        "multiaddr.resolvers",
    }
)
"""Packages whose own code is not run: their modules are imported by their full names."""

LEFT_OUT = frozenset(
    {
        "libp2p.crypto.secp256k1",  # a peer's key is ed25519; coincurve has no wheels for the newest Python
        "libp2p.bitswap.cid",  # block exchange; the DHT reads CIDs with it where it keeps values
        "libp2p.discovery.mdns.mdns",  # net/libp2p/lan.py shows no stranger who is there
        "libp2p.discovery.upnp.upnp",
        "libp2p.security.tls.autotls.acme",
        "libp2p.security.tls.autotls.broker",
        "libp2p.transport.quic.stream",
    }
)
"""Modules that are stood in for: named by what is loaded, and never entered."""

VENDORED = Path(__file__).parents[1] / "vendored"
"""A folder with py-libp2p, put there when Shoal was built (``hatch_build.py``)."""


class _NotLoaded(type):
    """Its methods can be named too."""

    def __getattr__(cls, name: str) -> _NotLoaded:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class NotLoaded(metaclass=_NotLoaded):
    """Stands for a class or a function of a module that is left out."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError(f"{type(self).__module__}.{type(self).__qualname__} is left out of Shoal")


class StandIn(ModuleType):
    """A module of py-libp2p that is left out; every name can be imported from it, and none be used."""

    def __getattr__(self, name: str) -> type[NotLoaded]:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (NotLoaded,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class ResolverOnDemand:
    """multiaddr's resolver of DNS names, which imports dnspython when the first name is to be resolved."""

    async def resolve(self, maddr: Any, *args: Any, **options: Any) -> Any:
        """As ``multiaddr.resolvers.DNSResolver.resolve``."""
        from multiaddr.resolvers.dns import DNSResolver  # noqa: PLC0415  the point of this class

        return await DNSResolver().resolve(maddr, *args, **options)


class _Bare(Loader):
    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "multiaddr.resolvers":
            vars(module)["DNSResolver"] = ResolverOnDemand


class _LeftOut(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class PartsFinder(DistributionFinder):
    """Answers for the modules above, and for the version of the library; all others are found as ever."""

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008  as it is called
    ) -> Iterable[Distribution]:
        """The library's own metadata, to whoever asks: the library does when it is imported."""
        if context.name != "libp2p":
            return ()
        return MetadataPathFinder.find_distributions(
            DistributionFinder.Context(name="libp2p", path=[str(VENDORED)])
        )

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in LEFT_OUT:
            return ModuleSpec(fullname, _LeftOut())
        if fullname not in BARE:
            return None
        if fullname == "libp2p":
            path = [str(VENDORED)]
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _Bare()
        elif fullname == "libp2p":
            raise ModuleNotFoundError(
                f"{VENDORED} is not there: install Shoal anew, or run `make setup`", name=fullname
            )
        return spec


def choose() -> None:
    """Load only these parts from here on. What was imported before stays as it is."""
    if not any(isinstance(finder, PartsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PartsFinder())
