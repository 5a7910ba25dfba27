"""What a gateway does: its firewall, and what it answers to hosts that ask for ports, by UPnP and NAT-PMP."""
