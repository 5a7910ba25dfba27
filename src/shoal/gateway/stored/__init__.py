"""What the gateway keeps for its callers in its database: responses, files and batches."""
