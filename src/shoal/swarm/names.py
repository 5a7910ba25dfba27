"""What peers are called where people read: a fish, and the end of the peer id, such as ``Guppy-ByDZ``.

The page makes the same names (``page/src/ui/names.ts``); the same peer has the same one on every machine.
"""

from __future__ import annotations

# fmt: off
FISH = (
    "Alewife", "Anchovy", "Barbel", "Bass", "Beluga", "Bichir", "Bleak", "Blenny", "Bonito", "Bream",
    "Brill", "Burbot", "Capelin", "Char", "Chub", "Cisco", "Clownfish", "Cobia", "Coley", "Croaker", "Dab",
    "Dace", "Dorado", "Flounder", "Garfish", "Garpike", "Goby", "Gourami", "Grayling", "Grouper", "Gudgeon",
    "Guppy", "Gurnard", "Halibut", "Herring", "Ide", "Ling", "Loach", "Mackerel", "Minnow", "Mullet",
    "Opah", "Perch", "Pilchard", "Plaice", "Pollack", "Pompano", "Rasbora", "Roach", "Ruffe", "Saithe",
    "Sardine", "Saury", "Shad", "Smelt", "Snapper", "Sprat", "Tench", "Tetra", "Trout", "Turbot", "Whiting",
    "Wrasse", "Zander",
)
# fmt: on
TAIL = 4
"""Characters of the peer id in a name, from its end: they tell namesakes apart."""


def name_of(peer: str) -> str:
    """The name of a peer, by its id."""
    return f"{FISH[_hash(peer) % len(FISH)]}-{peer[-TAIL:]}"


def is_meant(peer: str, wanted: str) -> bool:
    """Whether ``wanted`` is the peer's name or the end of its id; a name's capitals do not matter."""
    return peer.endswith(wanted) or name_of(peer).lower() == wanted.lower()


def _hash(text: str) -> int:
    """FNV-1a over 32 bits, its upper half mixed into the lower: the low bits alone are poorly mixed."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value ^ value >> 15
