"""Tokenizers and templates that clients share in a run: each starts two processes, which takes longer than
all else that most tests ask of a client."""

from __future__ import annotations

from collections import OrderedDict

import trio

from shoal.client.swarm import Swarm
from shoal.models.store.local_model import LocalModel
from shoal.models.text.codec import TextCodec
from shoal.types import Digest

KEPT = 3
"""Those of the last models; the processes of a codec go on for as long as it is kept."""
_last: OrderedDict[Digest, TextCodec] = OrderedDict()


async def share_codec(client: Swarm, model: LocalModel) -> None:
    """Let a client have the codec of the last client of this model, which it would else load when asked.

    Raises:
        BadWeights: the model has none, or one that does not load.
    """
    codec = _last.get(model.digest) or await trio.to_thread.run_sync(TextCodec.load, model.path)
    _last[model.digest] = client._codecs[model.digest] = codec
    _last.move_to_end(model.digest)
    while len(_last) > KEPT:
        _last.popitem(last=False)
