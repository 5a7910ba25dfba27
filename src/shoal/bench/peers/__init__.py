"""Programs that a user would take instead, measured beside Shoal in one run."""
