"""One span computed by several processes of this machine."""
