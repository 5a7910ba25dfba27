"""Who gives is served first, without a chain: what peers acknowledge to each other, and what comes of it.

Pure. There is no common ledger: each peer goes by what it was given itself, and by the word of those to whom
it owes.
"""
