"""Pictures and sounds as a graph's inputs."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shoal.client.graph import pictures
from shoal.client.graph.input_files import GraphInput, read_given
from shoal.client.vision import picture_files
from shoal.errors import IncompatibleLibrary, UsageError
from shoal.models.graph.graph_store import GraphStore
from shoal.models.graph.manifest import GraphManifest, GraphSegment, GraphValue
from shoal.testing.graph_bits import same, whole
from shoal.testing.graph_swarm import equal_spans, graph_swarm
from shoal.testing.graphs import GraphWriter, floats
from shoal.types import ArrayType

from .conftest import Imported

Shape = tuple[int, ...] | None


def manifest(shape: Shape, dtype: ArrayType = "float32", preprocess: str = "") -> GraphManifest:
    """Of a graph with one input, ``x``."""
    return GraphManifest(
        version=1,
        kind="graph",
        runtime="",
        threads=1,
        structure="0" * 64,
        weights=(),
        values=(GraphValue("x", dtype, shape),),
        inputs=(0,),
        outputs=(0,),
        segments=(GraphSegment(0, 1, 1, 0, (0,), ()),),
        preprocess=preprocess,
    )


def read(
    file: Path, shape: Shape, how: str = "", dtype: ArrayType = "float32", author: str = ""
) -> np.ndarray:
    return np.asarray(read_given(manifest(shape, dtype, author), {"x": file}, how)["x"])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Red on the left, green on the right."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3, 0], pixels[:, 3:, 1] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_picture_gets_the_shape_and_the_layout_of_the_input(picture: Path) -> None:
    first = read(picture, (-1, 3, 4, 6))
    assert first.shape == (1, 3, 4, 6)
    assert first[0, :, 0].tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0] * 6]
    last = read(picture, (1, 2, 2, 3), "resample=nearest")
    assert last.shape == (1, 2, 2, 3)
    assert last[0, 0].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert read(picture, (3, -1, -1)).shape == (3, 4, 6)
    assert read(picture, (1, 1, 4, 6)).shape == (1, 1, 4, 6)
    whole_numbers = read(picture, (1, 3, 4, 6), dtype="uint8")
    assert whole_numbers.dtype == np.uint8
    assert whole_numbers.max() == 255


def test_the_options_are_done_in_their_order(picture: Path) -> None:
    made = read(picture, (1, 3, -1, -1), "channels=bgr,scale=1,mean=0:0:5,std=1:2:10")
    assert made[0, :, 0, 0].tolist() == [0, 0, 25]
    cut = read(picture, (1, 3, -1, -1), "shortest=8,size=2x4,resample=nearest")
    assert cut[0, 0].tolist() == [[1, 1, 0, 0]] * 2
    assert read(picture, None, "layout=channels-last,channels=gray").shape == (1, 4, 6, 1)
    stretched = read(picture, (1, 3, 2, 2), "size=4x12,crop=2x2,resample=nearest")
    assert stretched[0, :2, 0].tolist() == [[1, 0], [0, 1]]
    gray = read(picture, (1, 3, 4, 6), "channels=gray")
    assert (gray[0] == gray[0, 0]).all()
    assert len(np.unique(gray)) == 2


def test_what_the_author_says_is_done_unless_something_else_is_asked_for(picture: Path) -> None:
    author = "scale=1,size=2x2,resample=nearest"
    assert read(picture, (1, 3, -1, -1), author=author).max() == 255
    assert read(picture, (1, 3, -1, -1), "scale=0.5", author=author).shape == (1, 3, 2, 2)
    assert read(picture, (1, 3, -1, -1), "scale=0.5", author=author).max() == 127.5
    assert read(picture, (1, 3, -1, -1), author="not=known").max() == 1


def test_a_picture_that_was_turned_by_the_camera_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 16)).save(tmp_path / "turned.jpg", exif=exif)
    assert read(tmp_path / "turned.jpg", (1, 3, -1, -1)).shape == (1, 3, 8, 16)


def write_wav(file: Path, samples: np.ndarray, width: int = 2, channels: int = 1, rate: int = 16000) -> Path:
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return file


@pytest.mark.parametrize(
    ("width", "raw"),
    [
        (1, np.array([128, 192, 64], np.uint8)),
        (2, np.array([0, 1 << 14, -(1 << 14)], "<i2")),
        (3, np.array([0, 0, 0, 0, 0, 0x40, 0, 0, 0xC0], np.uint8)),
        (4, np.array([0, 1 << 30, -(1 << 30)], "<i4")),
    ],
)
def test_a_sound_is_numbers_from_minus_one_to_one(width: int, raw: np.ndarray, tmp_path: Path) -> None:
    file = write_wav(tmp_path / "sound.wav", raw, width)
    assert read(file, (-1,)).tolist() == [0, 0.5, -0.5]
    assert read(file, (1, -1)).shape == (1, 3)


def test_the_channels_of_a_sound_are_averaged(tmp_path: Path) -> None:
    file = write_wav(tmp_path / "sound.wav", np.array([1 << 14, 0, 0, 0], "<i2"), channels=2)
    assert read(file, (-1,), "rate=16000").tolist() == [0.25, 0]


@pytest.mark.parametrize(
    ("name", "shape", "how", "why"),
    [
        ("nothing.png", (1, 3, 4, 4), "", "there is no file"),
        ("bad.png", (1, 3, 4, 4), "", "cannot be read as a picture"),
        ("cut.png", (1, 3, 4, 6), "", "cannot be read as a picture"),
        ("gif.png", (1, 3, 4, 6), "", "cannot be read as a picture"),
        ("picture.png", (-1, 8), "", "takes no picture: it is any×8"),
        ("picture.png", (-1, -1, -1, -1), "", "where are its channels"),
        ("picture.png", (1, 3, 4, 6), "mean=1:2", "2 numbers for 3 channels"),
        ("picture.png", (1, 4, 6, 6), "layout=channels-first", "4 channels, and pictures have 1 or 3"),
        ("picture.png", (1, 3, 4, 6), "layout=channels-last", "6 channels, and pictures have 1 or 3"),
        ("bad.wav", (-1,), "", "bad.wav cannot be read: "),
        ("sound.wav", (4, 512), "", "takes no sound: it is 4×512"),
        ("sound.wav", (-1,), "rate=8000", "16000 samples a second, and the graph wants 8000"),
        ("bad.txt", (-1,), "", "of a kind that is not read"),
    ],
)
def test_what_cannot_be_read_is_told(
    name: str, shape: tuple[int, ...], how: str, why: str, tmp_path: Path, picture: Path
) -> None:
    for bad in ("bad.png", "bad.wav", "bad.txt"):
        (tmp_path / bad).write_bytes(b"RIFF")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:45])
    Image.open(picture).save(tmp_path / "gif.png", format="GIF")
    write_wav(tmp_path / "sound.wav", np.zeros(4, "<i2"))
    with pytest.raises(UsageError, match=why):
        read(tmp_path / name, shape, how)


def test_a_picture_that_unpacks_to_too_much_is_refused_unread(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 23)
    with pytest.raises(UsageError, match="6×4 pixels"):
        read(picture, (1, 3, 4, 6))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    monkeypatch.setattr(pictures, "MAX_MADE", 24)
    assert read(picture, (1, 3, -1, -1)).shape == (1, 3, 4, 6)
    with pytest.raises(UsageError, match="would be given 5×5 pixels, and 24 are the most"):
        read(picture, (1, 3, -1, -1), author="size=5")
    with pytest.raises(UsageError, match="would be given 8×5 pixels"):
        read(picture, (1, 3, -1, -1), "shortest=5")
    with pytest.raises(UsageError, match="scaled to 16 the picture has 24×16 pixels"):
        read(picture, (1, 3, -1, -1), "shortest=16")


def test_without_pillow_the_extra_is_named(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_files, "find_spec", lambda name: None)
    with pytest.raises(IncompatibleLibrary) as raised:
        read(picture, (1, 3, 4, 6))
    assert "shoal[graph]" in raised.value.check


def test_arrays_in_files_are_taken_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    np.savez(tmp_path / "two.npz", x=np.arange(3), y=np.arange(2))
    given: dict[str, GraphInput] = {"x": tmp_path / "x.npy", "y": tmp_path / "two.npz", "z": [1]}
    made = read_given(manifest((4,)), given)
    assert [np.asarray(made[name]).tolist() for name in "xyz"] == [[0, 1, 2, 3], [0, 1], [1]]


async def test_the_library_takes_a_picture_as_a_path(
    imported: Imported, picture: Path, tmp_path: Path
) -> None:
    graph = imported("cnn")
    expected = whole(graph, {"images": read(picture, (-1, 3, 16, 16), "mean=0.5,std=0.5")})
    async with graph_swarm(tmp_path, graph, equal_spans(len(graph.manifest.segments), 2)) as swarm:
        made = await swarm.client.run(graph.digest, {"images": picture}, preprocess="mean=0.5,std=0.5")
        assert same(made, expected)
        with pytest.raises(UsageError, match="no input named 'pictures'"):
            await swarm.client.run(graph.digest, {"pictures": picture})


def test_what_the_author_says_is_kept_when_a_graph_is_imported(tmp_path: Path) -> None:
    at = GraphWriter()
    at.add("Relu", "x", output="y")
    model = at.model([floats("x", 1, 3, 4, 4)], [floats("y", 1, 3, 4, 4)])
    store, file = GraphStore(tmp_path / "store"), tmp_path / "graph.onnx"
    file.write_bytes(model.SerializeToString())
    without = store.resolve(str(file))
    assert without.manifest.preprocess == ""
    assert b"preprocess" not in without.raw
    model.metadata_props.add(key="shoal.preprocess", value="mean=0.5")
    file.write_bytes(model.SerializeToString())
    assert store.resolve(str(file)).manifest.preprocess == "mean=0.5"
