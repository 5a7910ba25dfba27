"""Everything that touches py-libp2p."""
