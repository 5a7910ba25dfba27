"""The adapters with which a node runs its span, read and checked before anything large is loaded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from shoal.errors import BadWeights, UsageError
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.read import named_path, read_adapter
from shoal.models.store.local_model import LocalModel
from shoal.sharing.shared_model import SharedModel
from shoal.swarm.announcement import MAX_ADAPTERS

log = logging.getLogger(__name__)


def shared_adapters(adapters: Sequence[Adapter]) -> list[SharedModel]:
    """A node's adapters as others may have them. Reads their files."""
    found: list[SharedModel] = []
    for adapter in adapters:
        try:
            found.append(SharedModel.of_adapter(adapter))
        except BadWeights as error:  # it is served all the same
            log.warning("the adapter %s is not shared: %s", adapter.name, error.message)
    return found


def read_adapters(wanted: Sequence[str], model: LocalModel) -> list[Adapter]:
    """The adapters ``[NAME=]PATH`` of a model.

    Raises:
        UsageError: too many, or two of one name.
        BadWeights, UnsupportedModel: one cannot be read, or is of a kind that is not computed.
        DigestMismatch: one was made for another model.
    """
    if len(wanted) > MAX_ADAPTERS:
        raise UsageError(
            f"{len(wanted)} adapters: a node has at most {MAX_ADAPTERS}",
            check="serve the others with another node",
        )
    found: list[Adapter] = []
    for text in wanted:
        name, path = named_path(text)
        adapter = read_adapter(path, name)
        adapter.check_model(model.shape)
        found.append(adapter)
    for kind, count in Counter(adapter.name for adapter in found).items():
        if count > 1:
            raise UsageError(
                f"{count} adapters are called {kind}", check="give them names of their own: NAME=PATH"
            )
    # Twice the same under two names is one to sessions, which ask by digest.
    return list({adapter.digest: adapter for adapter in found}.values())
