"""A simulator: the product's own members, nodes and clients, up to 1,000 of them, in one process and on one
loop.

What is real: the swarm (:mod:`shoal.swarm`), channels and their pool, the server of a span, routes, rings,
sessions. What is pretended: the network (:mod:`.internet`, :mod:`.mesh`), the model (:mod:`.model`), the
engine that computes it (:mod:`.engine`), and time (:mod:`.clock`).

    python -m shoal.testing.sim churn --json --seed 7 --nodes 200 --minutes 30
    python -m shoal.testing.sim converge --json
"""
