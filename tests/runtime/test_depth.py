"""More than 8 bits: what the file says, what clipped white proves, and what is told."""

import contextlib
import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from wnlb.runtime.errors import PictureError, PictureWarning, WnlbError
from wnlb.runtime.pictures import read_picture
from wnlb.runtime.source import open_source

HEIGHT, WIDTH = 40, 50


def night(bits: int, white: bool = True, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Values of a camera of so many bits: dark, with some clipped lamps unless there is no white."""
    rng = np.random.default_rng(bits)
    values = rng.integers(0, int(0.7 * 2**bits), shape).astype(np.uint16)
    if white:
        values[3:6, 4:9] = 2**bits - 1
    return values


def encoded(values: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, values)[1].tobytes()


def png(values: np.ndarray, chunks: bytes = b"") -> bytes:
    """Grey, 16 bits, with chunks before the pixels."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(data: bytes, bits: int, form: int = 1, order: str = "<", photometric: int = 1) -> bytes:
    """One strip, one channel."""
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: HEIGHT, 279: len(data)}
    entries = [struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted({**tags, 339: form}.items())]
    start = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", 0)
    return start + struct.pack(order + "I", 8 + len(data)) + data + directory


def packed(values: np.ndarray, bits: int) -> bytes:
    """Without gaps, the rows filled up to whole bytes."""
    ones = (values[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(ones.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def read(path, data: bytes, bits: int = 0) -> np.ndarray:
    """Read without a word said."""
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = read_picture(path, bits)
    assert picture.dtype == np.uint8
    return picture


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_the_bits_that_are_asked_for(tmp_path, bits, suffix):
    values = night(bits)
    picture = read(tmp_path / "deep", encoded(values, suffix), bits)
    np.testing.assert_array_equal(picture, np.repeat((values // 2 ** (bits - 8))[..., None], 3, 2))


@pytest.mark.parametrize("white", [1023, 4095, 16383, 1000, 300])
def test_pnm_states_its_white(tmp_path, white):
    values = np.random.default_rng(1).integers(0, white + 1, (HEIGHT, WIDTH))
    data = f"P5\n# of a camera\n{WIDTH} {HEIGHT}\n{white}\n".encode() + values.astype(">u2").tobytes()
    picture = read(tmp_path / "deep.pgm", data)
    assert np.abs(picture[..., 0] - values * (255 / white)).max() <= 1  # the upper 8 bits, or the nearest level


def test_pnm_of_few_levels(tmp_path):
    values = np.random.default_rng(1).integers(0, 101, (HEIGHT, WIDTH)).astype(np.uint8)
    data = f"P5 {WIDTH} {HEIGHT} 100\n".encode() + values.tobytes()
    assert np.abs(read(tmp_path / "few.pgm", data)[..., 0] - values * 2.55).max() <= 0.5


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_tiff_packs_its_bits(tmp_path, bits):
    values = night(bits)
    picture = read(tmp_path / "packed.tif", tiff(packed(values, bits), bits))
    np.testing.assert_array_equal(picture[..., 0], values >> (bits - 8))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiff_of_both_orders_and_both_whites(tmp_path, order, photometric):
    values = night(16)
    data = tiff(values.astype(order + "u2").tobytes(), 16, order=order, photometric=photometric)
    expected = values >> 8 if photometric else (65535 - values) >> 8
    np.testing.assert_array_equal(read(tmp_path / "deep.tif", data)[..., 1], expected)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("how", ["low", "shifted", "scaled", "repeated"])
def test_png_states_significant_bits_that_lie_high_or_low(tmp_path, bits, how):
    """The standard wants them scaled up; cameras' software leaves them where they are. Darker than a quarter."""
    values = night(bits, white=False) // 5
    stored = {
        "low": values,
        "shifted": values << (16 - bits),
        "scaled": np.rint(values * (65535 / (2**bits - 1))).astype(np.uint16),
        "repeated": values << (16 - bits) | values >> (2 * bits - 16),
    }[how]
    picture = read(tmp_path / "deep.png", png(stored, chunk(b"sBIT", bytes([bits]))))
    assert np.abs(picture[..., 2].astype(int) - (values >> (bits - 8))).max() <= (how == "scaled")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_that_are_bright_are_read_without_a_word(tmp_path, channels):
    values = night(16, shape=(HEIGHT, WIDTH, channels))
    expected = np.broadcast_to((values >> 8)[..., :3], (HEIGHT, WIDTH, 3))
    for suffix in (".png", ".tif"):
        np.testing.assert_array_equal(read(tmp_path / "deep", encoded(values, suffix)), expected)


def test_black_is_read_without_a_word(tmp_path):
    assert not read(tmp_path / "deep.png", encoded(np.zeros((HEIGHT, WIDTH), np.uint16), ".png")).any()


@pytest.mark.parametrize(("highest", "bits"), [(200, 8), (900, 10), (4000, 12), (16000, 14)])
def test_a_dark_picture_by_itself_is_read_as_16_bits_and_told(tmp_path, highest, bits):
    values = np.random.default_rng(2).integers(0, highest, (HEIGHT, WIDTH)).astype(np.uint16)
    (tmp_path / "dark.png").write_bytes(encoded(values, ".png"))
    with pytest.warns(PictureWarning, match=f"no value above {2**bits - 1}.* say --bits {bits} "):
        picture = read_picture(tmp_path / "dark.png")
    np.testing.assert_array_equal(picture[..., 0], values >> 8)


def folder(path, pictures: dict[str, np.ndarray]):
    path.mkdir()
    for name, values in pictures.items():
        (path / name).write_bytes(encoded(values, "." + name.rpartition(".")[2]))
    return path


def frames(source) -> dict[str, np.ndarray | str]:
    return {
        frame.name: frame.error if frame.pixels is None else frame.pixels[..., 0] for frame in open_source(str(source))
    }


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_clipped_white_of_some_proves_the_bits_of_all(tmp_path, bits):
    """Also of those that are darker: one camera took them."""
    pictures = {f"{number:02d}.png": night(bits, white=False) // 4 for number in range(40)}
    pictures["00.png"] = night(bits)
    with pytest.warns(PictureWarning, match=f"hold {bits} bits, their white is {2**bits - 1}") as told:
        read = frames(folder(tmp_path / "night", pictures))
    assert len(told) == 1
    for name, values in pictures.items():
        np.testing.assert_array_equal(read[name], values >> (bits - 8))


def test_8_bits_that_were_moved_up_into_12(tmp_path):
    values = night(8) << 4
    with pytest.warns(PictureWarning, match="hold 12 bits, their white is 4080"):
        read = frames(folder(tmp_path / "night", {"a.png": values}))
    np.testing.assert_array_equal(read["a.png"], values >> 4)


def test_without_a_proof_16_bits_are_read_and_it_is_told_once(tmp_path):
    pictures = {f"{number}.tif": night(12, white=False) for number in range(3)}
    with pytest.warns(PictureWarning, match="no value above 4095.*--bits 12") as told:
        read = frames(folder(tmp_path / "night", pictures))
    assert len(told) == 1
    np.testing.assert_array_equal(read["0.tif"], pictures["0.tif"] >> 8)


def test_one_bright_picture_proves_16_bits(tmp_path):
    pictures = {"a.png": night(12), "b.png": night(16)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = frames(folder(tmp_path / "night", pictures))
    for name, values in pictures.items():
        np.testing.assert_array_equal(read[name], values >> 8)


def test_a_value_out_of_range_costs_its_picture(tmp_path):
    pictures = {"a.png": night(12), "b.png": night(14)}
    path = folder(tmp_path / "night", pictures)
    by_name = {frame.name: frame for frame in open_source(str(path), 12)}
    np.testing.assert_array_equal(by_name["a.png"].pixels[..., 0], pictures["a.png"] >> 4)
    assert by_name["b.png"].error.endswith("b.png holds the value 16383, which needs 14 bits, not 12; say --bits 14")


@pytest.mark.parametrize("bits", [-1, 1, 7, 17, 32])
def test_bits_that_there_are_not(tmp_path, bits):
    with pytest.raises(WnlbError, match=f"bits are {bits}; expected 8 to 16"):
        open_source(str(folder(tmp_path / "night", {"a.png": night(12)})), bits)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_from_0_to_1(tmp_path, channels, dtype):
    values = np.random.default_rng(3).random((HEIGHT, WIDTH, channels)).astype(dtype)
    values[0, 0], values[0, 1] = 0, 1
    picture = read(tmp_path / "float.tif", encoded(values, ".tif"))
    np.testing.assert_array_equal(picture, np.rint(np.broadcast_to(values, (HEIGHT, WIDTH, 3)) * 255))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (np.nan, "some of it NaN or infinite"),
        (np.inf, "some of it NaN or infinite"),
        (255, "floating point from 0 to 255; expected 0, black, to 1, white"),
        (-0.5, "floating point from -0.5 to 0.9"),
    ],
)
def test_floating_point_of_another_range_is_refused(tmp_path, change, said):
    values = np.full((HEIGHT, WIDTH), 0.9, np.float32)
    values[0, :2] = 0, change
    (tmp_path / "float.tif").write_bytes(encoded(values, ".tif"))
    with pytest.raises(PictureError) as refused:
        read_picture(tmp_path / "float.tif")
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"picture {tmp_path / 'float.tif'} holds floating point")


@pytest.mark.parametrize(
    ("bits", "form", "said"),
    [(16, 3, "16 bits of floating point"), (32, 1, "32 bits of unsigned"), (32, 2, "32 bits of signed")],
)
def test_kinds_that_cannot_be_read_are_named(tmp_path, bits, form, said):
    (tmp_path / "odd.tif").write_bytes(tiff(bytes(HEIGHT * WIDTH * bits // 8), bits, form))
    with pytest.raises(PictureError, match=f"is a TIFF with {said}, which cannot be read"):
        read_picture(tmp_path / "odd.tif")


def pages(kind: str, **options) -> bytes:
    images = [Image.new("RGB", (WIDTH, HEIGHT), (level, 0, 0)) for level in (40, 80, 120)]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_of_several_pages_the_first_is_read_and_it_is_told(tmp_path, kind, options):
    (tmp_path / "many").write_bytes(pages(kind, **options))
    with pytest.warns(PictureWarning, match="several pages or frames; the first of each is read"):
        assert set(read_picture(tmp_path / "many")[..., 2].ravel()) == {40}


@pytest.mark.parametrize(
    "data", [b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"P5 1 1 70000 \0\0\0"]
)
def test_damaged_headers_are_our_errors(tmp_path, data):
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(PictureError):
        read_picture(tmp_path / "bad")


def test_a_tiff_whose_pages_go_in_a_circle(tmp_path):
    whole = tiff(bytes(HEIGHT * WIDTH), 8)
    (tmp_path / "circle.tif").write_bytes(whole[:-4] + whole[4:8])  # the next page is the first
    with contextlib.suppress(PictureError):
        assert read_picture(tmp_path / "circle.tif").shape == (HEIGHT, WIDTH, 3)
