"""Decoupled momentum (DeMo: Peng et al., 2024, arXiv 2411.19870): steps of which little is sent. Pure.

A round is a step. Each member adds its gradient to a momentum of its own, which decays, takes the largest
coefficients of its cosine transform out of it, and sends these alone. All sum what all have sent, and move
the weights by the sign of that. What was not sent stays in the momentum, and is sent when it has grown.
"""
