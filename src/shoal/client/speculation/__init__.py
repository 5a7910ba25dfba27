"""Tokens are guessed ahead and sent before they are known; what comes back tells which of them were right.

On a route with long ways a step is mostly waiting. ``drafters.py`` guesses what follows, ``controller.py``
decides how many guesses go at once and how many steps are under way, ``acceptance.py`` and ``costs.py`` keep
what it decides by, ``gain.py`` whether it has paid, and ``speculation.py`` is the loop. Tokens are those that
would come without.
"""
