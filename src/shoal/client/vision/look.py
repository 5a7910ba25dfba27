"""What one client does with pictures: reads them, and looks at them with the towers of their models.

A tower runs on a thread of its own, one picture at a time, so that sessions go on meanwhile. What it has made
of the last pictures is kept: the next turn of a conversation shows them again. So are the last towers.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import trio

from shoal.client.vision.picture_files import open_picture, picture_bytes
from shoal.client.vision.pictures import PlacedPicture, SeenPicture
from shoal.config import Settings
from shoal.errors import BadWeights, UnsupportedModel, UsageError
from shoal.executor.arrays import Floats
from shoal.keyed_locks import KeyedLocks
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel
from shoal.models.text.chat_templates import EncodedPrompt
from shoal.models.text.codec import TextCodec
from shoal.models.text.pictures import ShownPictures
from shoal.sharing.peer_weights import PeerWeights
from shoal.types import Digest
from shoal.wire.messages import MAX_STRETCHES
from shoal.wire.session import MAX_STRETCH

if TYPE_CHECKING:  # both stand on torch, which few clients need
    from shoal.models.vision.pixels import PicturePixels
    from shoal.models.vision.settings import VisionSettings
    from shoal.models.vision.tower import Tower

_KeyT = TypeVar("_KeyT")
_KeptT = TypeVar("_KeptT")
PictureFile: TypeAlias = "Path | bytes"
"""A PNG or a JPEG, or its bytes."""
KEPT_BYTES = 64 << 20
"""Of rows that are kept for the next turns of all conversations; a picture's take up to 20 MB."""
MOST_GRID_ROWS = 1536
"""Of one picture of a model that looks at pictures of any shape. What a tower takes grows with their square:
so many take a minute of two cores, and others wait."""
KEPT_DIGESTS = 1024
"""Files of which the digest of their pixels is kept: the next turns show them again."""
TOWER_BYTES = 4 << 30
"""Of towers in memory. One of today takes up to 1.8 GB; the last to look stays, however large it is."""
READERS = 2
"""Pictures that are unpacked at once: each takes some ten bytes for a pixel meanwhile."""


@dataclass(frozen=True, slots=True)
class PictureShape:
    """What is kept of a picture's pixels."""

    digest: bytes
    rows: int
    """Tokens in whose place it stands."""
    grid: tuple[int, int] | None
    """How many rows it is high and wide, where they turn by that."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that a model's tower can look at.

    Its pixels, some 10 MB, are made again when it is looked at: requests that wait hold their files alone.
    """

    file: PictureFile
    name: str
    """What errors call it."""
    seen: PictureShape
    """What is known of its pixels."""

    @property
    def digest(self) -> bytes:
        """Of its pixels."""
        return self.seen.digest


@dataclass(frozen=True, slots=True)
class ShowingPrompt:
    """A prompt and the pictures that it shows."""

    made: EncodedPrompt
    pictures: tuple[Picture, ...]
    placed: tuple[PlacedPicture, ...]
    """Where among the prompt's tokens each of them stands."""


EncodeShowing = Callable[[ShownPictures | None], EncodedPrompt]
"""Makes a prompt that shows so many pictures, or none. Runs on a thread."""


class Looking:
    """See the module.

    Args:
        weights: brings towers that are not here.
    """

    def __init__(self, settings: Settings, weights: PeerWeights) -> None:
        self._settings = settings
        self._weights = weights
        self._seeing: dict[Digest, bool] = {}
        self._known: dict[Digest, VisionSettings] = {}
        self._towers: OrderedDict[Digest, Tower] = OrderedDict()
        self._loading = KeyedLocks[Digest]()
        self._rows: OrderedDict[tuple[Digest, bytes], Floats] = OrderedDict()
        self._shapes: OrderedDict[tuple[Digest, bytes], PictureShape] = OrderedDict()
        self._turn = trio.Lock()
        self._readers = trio.CapacityLimiter(READERS)

    async def sees(self, local: LocalModel) -> bool:
        """Whether a model looks at pictures. Raises BadWeights: its files cannot be read."""
        if local.digest not in self._seeing:
            self._seeing[local.digest] = await trio.to_thread.run_sync(_has_tower, local.path)
        return self._seeing[local.digest]

    async def settings(self, local: LocalModel) -> VisionSettings:
        """How a model looks at pictures.

        Raises:
            UsageError: it looks at none.
            BadWeights, UnsupportedModel: its files do not say how they become numbers.
        """
        if not await self.sees(local):
            raise UsageError(
                f"{local.name} takes no images, only text",
                check="send text alone, or choose a model that looks at images",
            )
        if local.digest not in self._known:
            self._known[local.digest] = await trio.to_thread.run_sync(_settings, local.path)
        return self._known[local.digest]

    async def takes(self, local: LocalModel) -> bool:
        """Whether a model has what it takes to look at pictures: a tower, and files that say how."""
        try:
            await self.settings(local)
        except (UsageError, UnsupportedModel, BadWeights):
            return False
        return True

    async def read(self, local: LocalModel, files: Sequence[PictureFile]) -> list[Picture]:
        """Pictures that the model's tower can look at: each was read as a whole.

        Raises:
            UsageError: there are too many, or one cannot be read.
            IncompatibleLibrary: Pillow is not installed.
            ShoalError: as :meth:`settings`.
        """
        settings = await self.settings(local)
        most = min(self._settings.images, MAX_STRETCHES)
        if len(files) > most:
            raise UsageError(
                f"{len(files)} images are given, and {most} are the most of one request (images)",
                check="send fewer images, or set images to more",
            )
        return [await self._picture(local, settings, file, number) for number, file in enumerate(files)]

    async def _picture(
        self, local: LocalModel, settings: VisionSettings, file: PictureFile, number: int
    ) -> Picture:
        name = f"image {number}" if isinstance(file, bytes) else str(file)
        data, of_file = await trio.to_thread.run_sync(_file_digest, file, name)
        key = (local.digest, of_file)
        if key not in self._shapes:
            make = partial(_pixels_shape, data, name, settings, self._settings.image_pixels)
            self._shapes[key] = await trio.to_thread.run_sync(make, limiter=self._readers)
        self._shapes.move_to_end(key)
        if len(self._shapes) > KEPT_DIGESTS:
            self._shapes.popitem(last=False)
        seen = self._shapes[key]
        if seen.grid is not None and seen.rows > MOST_GRID_ROWS:
            raise UsageError(
                f"{name} would take {seen.rows} tokens, and {MOST_GRID_ROWS} are the most of an image",
                check="scale it down: 1,024 × 1,024 pixels take 1,369",
            )
        return Picture(file, name, seen)

    async def shown(self, local: LocalModel, codec: TextCodec, pictures: Sequence[Picture]) -> ShownPictures:
        """How pictures are put into a prompt. Raises as :meth:`settings`."""
        settings = await self.settings(local)
        words, text_of = settings.words, codec.token_text
        written, whole = await trio.to_thread.run_sync(lambda: (words.written(text_of), words.whole(text_of)))
        row = words.token if words.token < local.shape.vocab_size else 0  # as transformers pads it
        rows = tuple(picture.seen.rows for picture in pictures)
        return ShownPictures(rows, words.token, row, written, whole)

    async def encoded(
        self, local: LocalModel, codec: TextCodec, files: Sequence[PictureFile], encode: EncodeShowing
    ) -> ShowingPrompt:
        """A prompt that shows pictures, each read and put in its place.

        Args:
            files: none: it is of text alone.

        Raises:
            ShoalError: as :meth:`read` and ``encode``.
        """
        if not files:
            return ShowingPrompt(await trio.to_thread.run_sync(encode, None), (), ())
        pictures = await self.read(local, files)
        made = await trio.to_thread.run_sync(encode, await self.shown(local, codec, pictures))
        return ShowingPrompt(made, tuple(pictures), await self.placed(local, pictures, made.pictures))

    async def placed(
        self, local: LocalModel, pictures: Sequence[Picture], begins: Sequence[int]
    ) -> tuple[PlacedPicture, ...]:
        """Pictures where they begin among a prompt's tokens. Raises as :meth:`settings`."""
        settings = await self.settings(local)
        return tuple(
            PlacedPicture(position, picture.seen.rows, picture.digest, settings.mutual, picture.seen.grid)
            for picture, position in zip(pictures, begins, strict=True)
        )

    async def look(
        self, local: LocalModel, pictures: Sequence[Picture], placed: Sequence[PlacedPicture]
    ) -> list[SeenPicture]:
        """The rows of each picture, from the model's tower, which is fetched and loaded if need be.

        Raises:
            NoCoverage: nobody who can be reached has it.
            UsageError: a file is another one than when it was read.
            BadWeights, UnsupportedModel: it cannot be loaded, or makes no rows.
        """
        found: list[SeenPicture] = []
        for picture, place in zip(pictures, placed, strict=True):
            found.append(SeenPicture(place, await self._rows_of(local, picture)))
        return found

    async def _rows_of(self, local: LocalModel, picture: Picture) -> Floats:
        key = (local.digest, picture.digest)
        if key not in self._rows:
            tower, settings = await self._tower(local), await self.settings(local)
            look = partial(_looked_at, tower, picture, settings, self._settings.image_pixels)
            async with self._turn:
                if key not in self._rows:  # another may have waited for the same one
                    self._rows[key] = await trio.to_thread.run_sync(look)
        rows = self._rows[key]
        _shorten(self._rows, key, KEPT_BYTES, lambda one: one.nbytes)
        return rows

    async def _tower(self, local: LocalModel) -> Tower:
        # One model's tower may have to be fetched: those of others look meanwhile.
        async with self._loading.held(local.digest):
            if local.digest not in self._towers:
                self._towers[local.digest] = await self._loaded(local)
            tower = self._towers[local.digest]
            _shorten(self._towers, local.digest, TOWER_BYTES, lambda one: one.tensor_bytes)
            return tower

    async def _loaded(self, local: LocalModel) -> Tower:
        await self._weights.fetch_tower(local)
        settings = await self.settings(local)
        from shoal.models.vision.tower import load_tower  # noqa: PLC0415 - torch, which few clients need

        load = partial(load_tower, local.path, settings, local.shape.hidden_size)
        return await trio.to_thread.run_sync(load)

    def tower_bytes(self, local: LocalModel) -> int:
        """Bytes of a model's tower in memory; 0 before it has looked at anything."""
        tower = self._towers.get(local.digest)
        return 0 if tower is None else tower.tensor_bytes


def _shorten(
    kept: OrderedDict[_KeyT, _KeptT], used: _KeyT, most: int, bytes_of: Callable[[_KeptT], int]
) -> None:
    """Let those go that were used the longest ago, until all are within a bound or one is left."""
    kept.move_to_end(used)
    while len(kept) > 1 and sum(map(bytes_of, kept.values())) > most:
        kept.popitem(last=False)


def _has_tower(folder: Path) -> bool:
    return open_checkpoint(folder).tower is not None


def _settings(folder: Path) -> VisionSettings:
    from shoal.models.vision.settings import vision_settings  # noqa: PLC0415 - torch, as above

    found = vision_settings(folder)
    if found.mutual and found.rows > MAX_STRETCH:
        raise UnsupportedModel(
            f"{folder}: {found.rows} rows of an image see each other, and hops take {MAX_STRETCH}",
            check="ask the model for text alone",
        )
    return found


def _file_digest(file: PictureFile, name: str) -> tuple[bytes, bytes]:
    """What a file holds, and the digest of that."""
    data = picture_bytes(file, name)
    return data, hashlib.sha256(data).digest()


def _pixels_shape(data: bytes, name: str, settings: VisionSettings, most_pixels: int) -> PictureShape:
    pixels = _pixels(data, name, settings, most_pixels)
    return PictureShape(pixels.digest(), pixels.rows, pixels.grid)


def _looked_at(tower: Tower, picture: Picture, settings: VisionSettings, most_pixels: int) -> Floats:
    pixels = _pixels(picture.file, picture.name, settings, most_pixels)
    if pixels.digest() != picture.digest:
        raise UsageError(f"{picture.name} has changed meanwhile", check="ask again")
    return tower.look(pixels)


def _pixels(file: PictureFile, name: str, settings: VisionSettings, most_pixels: int) -> PicturePixels:
    """Raises as :meth:`Looking.read`."""
    from shoal.models.vision.pixels import picture_pixels  # noqa: PLC0415 - torch, as above

    return picture_pixels(open_picture(file, name, most_pixels, "vision"), settings)
