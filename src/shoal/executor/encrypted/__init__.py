"""Linear maps of rows that stay encrypted: CKKS, in processes of their own."""
