"""A port of the router that leads to ours, asked for by NAT-PMP, UPnP or PCP."""
