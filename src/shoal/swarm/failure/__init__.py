"""Noticing dead peers, and remembering them: SWIM's probes and suspicions (Das, Gupta and Motivala, 2002)."""
