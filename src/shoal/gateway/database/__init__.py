"""The gateway's database: a SQLite file of its own, or one PostgreSQL for several gateways."""
