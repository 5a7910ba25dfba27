"""iroh (https://iroh.computer) as an optional carrier: QUIC over UDP, and relays that the user names."""
