"""Noticing dead peers: SWIM's probes and suspicions (Das, Gupta and Motivala, 2002)."""
