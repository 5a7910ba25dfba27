"""Audits of answers: what hops have signed is computed again, here or by others, and compared."""
