import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from wnlb.runtime.errors import PictureError
from wnlb.runtime.pictures import read_picture

ORIENTATION = 0x112


def scene(height: int = 60, width: int = 80) -> Image.Image:
    """Smooth colours with a bright left top, so that every turn and flip shows."""
    small = np.random.default_rng(5).integers(0, 200, (6, 8, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    picture[:10, :5] = 255
    return Image.fromarray(picture)


def transparent(image: Image.Image) -> Image.Image:
    alpha = np.random.default_rng(6).integers(0, 256, (image.height, image.width), np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow_bgr(path) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))[..., ::-1]


# Lossless formats must agree to the bit. JPEG decoders may differ in the inverse DCT and the chroma upsampling,
# CMYK also in how ink becomes light: 2 levels.
@pytest.mark.parametrize(
    ("name", "image", "options", "levels"),
    [
        ("rgb.png", scene(), {}, 0),
        ("grey.png", scene().convert("L"), {}, 0),
        ("grey_alpha.png", scene().convert("LA"), {}, 0),
        ("bits.png", scene().convert("1"), {}, 0),
        ("rgba.png", transparent(scene()), {}, 0),
        ("palette.png", scene().quantize(16), {}, 0),
        ("rgb.bmp", scene(), {}, 0),
        ("rgb.webp", scene(), {"lossless": True}, 0),
        ("lzw.tif", scene(), {"compression": "tiff_lzw"}, 0),
        ("cmyk.tif", scene().convert("CMYK"), {}, 1),
        ("grey.pgm", scene().convert("L"), {}, 0),
        ("rgb.jpg", scene(), {"quality": 90}, 2),
        ("grey.jpg", scene().convert("L"), {}, 2),
        ("progressive.jpg", scene(), {"progressive": True}, 2),
        ("cmyk.jpg", scene().convert("CMYK"), {}, 2),
        ("pixel.png", scene(1, 1), {}, 0),
        ("pixel.jpg", scene(1, 1), {}, 2),
        ("PNG_IN_FACT.JPG", scene(), {"format": "PNG"}, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reads_as_pillow(tmp_path, name, image, options, levels):
    image.save(tmp_path / name, **options)
    picture, expected = read_picture(tmp_path / name), pillow_bgr(tmp_path / name)
    assert picture.dtype == np.uint8
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= levels


@pytest.mark.parametrize(
    ("suffix", "shape", "levels"),
    [("png", (40, 50), 0), ("png", (40, 50, 3), 0), ("tif", (40, 50), 0), ("tif", (40, 50, 3), 1)],
)
def test_16_bits_keep_the_upper_8(tmp_path, suffix, shape, levels):
    deep = np.random.default_rng(7).integers(0, 65536, shape, np.uint16)
    (tmp_path / "deep").write_bytes(cv2.imencode(f".{suffix}", deep)[1].tobytes())
    picture = read_picture(tmp_path / "deep").astype(int)
    expected = np.broadcast_to((deep >> 8).reshape(40, 50, -1), (40, 50, 3))
    assert np.abs(picture - expected).max() <= levels  # libtiff divides colours by 257 and rounds: one level


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_turns_as_exif_says(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    scene().save(path, exif=exif)
    picture, expected = read_picture(path), pillow_bgr(path)
    assert picture.shape == ((80, 60, 3) if orientation >= 5 else (60, 80, 3))
    assert np.abs(picture.astype(int) - expected).max() <= (2 if suffix == "jpg" else 0)


def test_a_large_picture(tmp_path):
    Image.new("L", (8000, 6000), 37).save(tmp_path / "large.jpg")
    picture = read_picture(tmp_path / "large.jpg")
    assert picture.shape == (6000, 8000, 3)
    assert (picture == 37).all()  # a constant block has only a DC coefficient, and 37 - 128 survives its quantisation


def with_thumbnail(jpeg: bytes) -> bytes:
    """The picture with an EXIF segment in which a whole JPEG lies, start and end markers included."""
    thumbnail = encoded(scene(12, 16))
    entries = struct.pack("<HHHI4sHHII", 2, 0x201, 4, 1, struct.pack("<I", 44), 0x202, 4, 1, len(thumbnail))
    tiff = b"II*\0" + struct.pack("<IHI", 8, 0, 14) + entries + struct.pack("<I", 0)
    body = b"Exif\0\0" + tiff + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


WHOLE = {
    "baseline.jpg": encoded(scene()),
    "progressive.jpg": encoded(scene(), progressive=True),
    "restarts.jpg": encoded(scene(), restart_marker_rows=1),
    "thumbnail.jpg": with_thumbnail(encoded(scene())),
    "progressive_thumbnail.jpg": with_thumbnail(encoded(scene(), progressive=True)),
    "rgb.png": encoded(scene(), "PNG"),
    "rgb.bmp": encoded(scene(), "BMP"),
    "lzw.tif": encoded(scene(), "TIFF", compression="tiff_lzw"),
    "rgb.webp": encoded(scene(), "WEBP"),
    "rgb.ppm": encoded(scene(), "PPM"),
    "rgb.jp2": encoded(scene(), "JPEG2000"),
}


def refusal(path) -> str:
    with pytest.raises(PictureError) as refused:
        read_picture(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_picture_is_refused_wherever_it_ends(tmp_path, name):
    data, path = WHOLE[name], tmp_path / name
    path.write_bytes(data)
    assert read_picture(path).shape == (60, 80, 3)
    for end in np.linspace(1, len(data) - 6, 40).astype(int):  # a PNG ends with 4 bytes of checksum
        path.write_bytes(data[:end])
        said = refusal(path)
        # Our own check found it, once the first bytes tell the format: not every OpenCV refuses it as 5.0 does.
        assert end <= 8 or path.suffix not in (".jpg", ".png") or f"truncated: it ends after {end} bytes" in said


@pytest.mark.parametrize("name", ["baseline.jpg", "progressive_thumbnail.jpg", "rgb.png"])
@pytest.mark.parametrize(
    "tail", [b"\xff\xda" * 3, b"\0" * 3000, WHOLE["baseline.jpg"][:-2]], ids=["da", "zeros", "jpg"]
)
def test_what_follows_the_end_does_not_matter(tmp_path, name, tail):
    """Telephones put films and second pictures after the end; some tools pad."""
    path = tmp_path / name
    path.write_bytes(WHOLE[name] + tail)
    assert np.abs(read_picture(path).astype(int) - pillow_bgr(path)).max() <= 2


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty (0 bytes)"),
        (b"hello\n" * 100, "unknown format"),
        (np.random.default_rng(8).bytes(1000), "unknown format"),
        (b"\xff\xd8\xff\xd9", "damaged"),
        (b"\xff\xd8" + np.random.default_rng(8).bytes(1000) + b"\xff\xd9", ""),
        (png_of_size(100, 100), "damaged"),
        (png_of_size(0, 0), "damaged"),
        (png_of_size(10**5, 10**5), "cannot be decoded"),
    ],
    ids=["empty", "text", "noise", "jpeg frame", "noise in a jpeg", "too few rows", "no pixels", "too many pixels"],
)
def test_what_is_no_picture_is_refused(tmp_path, data, said):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    assert said in refusal(path)


def test_what_is_no_file_is_refused(tmp_path):
    assert "Is a directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing.jpg")
    assert "too long" in refusal(tmp_path / ("a" * 300))
