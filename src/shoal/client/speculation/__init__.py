"""Tokens are guessed ahead and sent before they are known; what comes back tells which of them were right.

On a route with long ways a step is mostly waiting. ``drafters.py`` guesses by the text alone, and
``model_drafter.py`` by a small model on this machine (``draft_model.py``, which ``draft_holder.py`` loads and
frees); ``sources.py`` chooses between them. ``controller.py`` decides how many guesses go at once and how
many steps are under way, ``acceptance.py`` and ``costs.py`` keep what it decides by, ``gain.py`` whether it
has paid, and ``speculation.py`` is the loop. Tokens are those that would come without.
"""
