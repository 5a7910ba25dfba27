"""The network: identity, discovery, carriers and channels. The only user of libp2p."""

from shoal.net.libp2p import parts as libp2p_parts

libp2p_parts.choose()  # before anything here imports the library
