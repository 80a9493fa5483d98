"""What is read out of image files of each kind, beside Pillow, and which files are refused."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from mln_keras.data import image_headers
from mln_keras.data.image_files import ImageFiles

HEIGHT, WIDTH = 16, 24


@pytest.fixture
def picture():
    """Smooth colours without any symmetry, a Pillow image."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    blue = np.where((x > 15) & (y < 6), 200, 40)
    return Image.fromarray(np.stack([10 * x, 15 * y, blue], -1).astype(np.uint8))


def read(path, size=(HEIGHT, WIDTH), resize=None):
    return np.asarray(ImageFiles([path], size, resize))[0].astype(int)


def bmp(path, bits, rows, palette=b"", compression=0, masks=b"", top_down=False, colors=None):
    """Writes a BMP file of rows, the highest first; they need no padding."""
    rows = rows if top_down else rows[::-1]
    pixels, behind = rows.tobytes(), len(masks) + len(palette)
    height = -HEIGHT if top_down else HEIGHT
    header = struct.pack(
        "<2sIIIIiiHHIIiiII", b"BM", 54 + behind + len(pixels), 0, 54 + behind, 40, WIDTH, height,
        1, bits, compression, len(pixels), 2835, 2835,
        len(palette) // 4 if colors is None else colors, 0,
    )  # fmt: skip
    path.write_bytes(header + masks + palette + pixels)
    return path


def bgrx(picture):
    return np.pad(np.asarray(picture)[..., ::-1], [(0, 0), (0, 0), (0, 1)])


def masks(*bits):
    return struct.pack("<III", *bits)


def with_palette(picture, colors):
    indices = picture.quantize(colors)
    palette = np.array(indices.getpalette()[: 3 * colors], np.uint8).reshape(-1, 3)
    return np.asarray(indices), np.pad(palette[:, ::-1], [(0, 0), (0, 1)]).tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "webp", "jpg"])
def test_pixels_are_those_that_pillow_finds(picture, tmp_path, mode, ending):
    path = tmp_path / f"image.{ending}"
    image = picture.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint8).reshape(16, 24)))
    if ending == "jpg" or (ending, mode) == ("bmp", "LA"):  # these have no such mode
        image = image.convert("L" if mode in ("1", "L", "LA") else "RGB")
    image.save(path, lossless=True, exact=True, quality=95)
    refused = mode in ("1", "P") and ending == "bmp" or "A" in mode and ending == "webp"
    if refused:
        with pytest.raises(ValueError, match="an image file cannot be decoded; .*find_damaged"):
            read(path)
        return
    with Image.open(path) as found:
        expected = np.array(found.convert("RGBA"))
    if ending == "gif":
        expected[expected[..., 3] == 0] = 0
    np.testing.assert_allclose(read(path), expected[..., :3], atol=16 if ending == "jpg" else 0)


@pytest.mark.parametrize("options", [{"progressive": True}, {"keep_rgb": True}, {}])
def test_kinds_of_jpeg(picture, tmp_path, options):
    """CMYK has no options; of its colours Pillow has its own idea, within some steps."""
    image = picture if options else picture.convert("CMYK")
    image.save(tmp_path / "image.jpg", quality=95, subsampling=0, **options)
    np.testing.assert_allclose(read(tmp_path / "image.jpg"), np.asarray(picture), atol=24)


def test_of_16_bits_the_higher_eight_are_read(tmp_path):
    pixels = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 170
    Image.fromarray(pixels).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read(tmp_path / "image.png"), np.stack([pixels >> 8] * 3, -1))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [None, 1])
def test_png_of_a_palette(picture, tmp_path, bits, transparency):
    image = picture.quantize(2**bits)
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "image.png", bits=bits, **options)
    np.testing.assert_array_equal(read(tmp_path / "image.png"), np.asarray(image.convert("RGB")))


def test_bmp_files_that_are_read(picture, tmp_path):
    gray = np.asarray(picture.convert("L"))
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1).tobytes()
    standard = masks(0xFF0000, 0xFF00, 0xFF)
    rgb = np.asarray(picture)
    for path, expected in (
        (bmp(tmp_path / "8.bmp", 8, gray, ramp), gray[..., None]),
        (bmp(tmp_path / "8d.bmp", 8, gray, ramp, top_down=True), gray[..., None]),
        (bmp(tmp_path / "8c.bmp", 8, gray, ramp, colors=0), gray[..., None]),
        (bmp(tmp_path / "24.bmp", 24, rgb[..., ::-1]), rgb),
        (bmp(tmp_path / "24c.bmp", 24, rgb[..., ::-1], colors=500), rgb),
        (bmp(tmp_path / "24d.bmp", 24, rgb[..., ::-1], top_down=True), rgb),
        (bmp(tmp_path / "32.bmp", 32, bgrx(picture)), rgb),
        (bmp(tmp_path / "32m.bmp", 32, bgrx(picture), compression=3, masks=standard), rgb),
    ):
        with Image.open(path) as found:
            np.testing.assert_array_equal(found.convert("RGB"), expected + 0 * rgb)
        np.testing.assert_array_equal(read(path), expected + 0 * rgb, str(path))


def test_bmp_files_of_other_kinds_are_refused_as_damaged_ones_are(picture, tmp_path):
    """TensorFlow takes numbers of a palette for gray, and the channels in the usual order."""
    indices, palette = with_palette(picture, 16)
    gray = np.asarray(picture.convert("L"))
    backwards = np.repeat(np.arange(255, -1, -1, dtype=np.uint8)[:, None], 4, 1).tobytes()
    xbgr = masks(0xFF000000, 0xFF0000, 0xFF00)
    paths = [
        bmp(tmp_path / "palette.bmp", 8, indices, palette),
        bmp(tmp_path / "negative.bmp", 8, gray, backwards),
        bmp(tmp_path / "short.bmp", 8, gray, backwards[4 * 200 :]),
        bmp(tmp_path / "coded.bmp", 8, gray, backwards[::-1], compression=1),
        bmp(tmp_path / "xbgr.bmp", 32, np.roll(bgrx(picture), 1, -1), b"", 3, xbgr),
        bmp(tmp_path / "rgbx.bmp", 32, bgrx(picture), b"", 3, masks(0xFF, 0xFF00, 0xFF0000)),
        bmp(tmp_path / "16.bmp", 16, gray.astype("<u2")),
        bmp(tmp_path / "4.bmp", 4, gray[:, ::2], palette),
    ]
    picture.save(tmp_path / "right.bmp")
    images = ImageFiles([*paths, tmp_path / "right.bmp"], (HEIGHT, WIDTH))
    assert images.find_damaged() == list(map(str, paths))
    with pytest.raises(ValueError, match="^an image file cannot be decoded; .*find_damaged"):
        np.asarray(images)


def test_a_gif_file_whose_first_frame_does_not_fill_the_picture_is_refused(picture, tmp_path):
    """Of one in the corner, TensorFlow reads a picture of the frame's size, cut off."""
    damaged = []
    for name, screen, place in (
        ("whole.gif", (WIDTH, HEIGHT), (0, 0)),
        ("small.gif", (WIDTH + 8, HEIGHT), (0, 0)),
        ("apart.gif", (WIDTH + 8, HEIGHT + 5), (8, 5)),
        ("beyond.gif", (WIDTH, HEIGHT), (8, 5)),
    ):
        path = tmp_path / name
        picture.save(path, comment=b"two blocks " * 40, interlace=0)
        content = bytearray(path.read_bytes())
        frame = content.index(struct.pack("<cHHHH", b",", 0, 0, WIDTH, HEIGHT))
        content[6:10] = struct.pack("<HH", *screen)
        content[frame + 1 : frame + 5] = struct.pack("<HH", *place)
        path.write_bytes(content)
        damaged += [str(path)] if name != "whole.gif" else []
    images = ImageFiles([tmp_path / "whole.gif", *damaged], (HEIGHT, WIDTH))
    assert images.find_damaged() == damaged


def test_a_moving_webp_file_is_refused(picture, tmp_path):
    frames = [picture.transpose(Image.Transpose.ROTATE_180)]
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=frames, lossless=True)
    images = ImageFiles([tmp_path / "moving.webp"], (HEIGHT, WIDTH))
    assert images.find_damaged() == list(images.paths)


# ---- EXIF ---------------------------------------------------------------------------------------


def exif(orientation):
    tags = Image.Exif()
    tags[0x010F], tags[0x0112], tags[0x0132] = "a maker", orientation, "2026:11:30 12:00:00"
    return tags


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "ending", ["jpg", *(pytest.param(e, marks=SLOW) for e in ("png", "webp"))]
)
def test_images_are_upright_as_exif_says(picture, tmp_path, ending):
    atol = 16 if ending == "jpg" else 1
    for orientation in range(10):  # 0 and 9 mean nothing
        path, upright = tmp_path / f"{orientation}.{ending}", tmp_path / "upright.png"
        picture.save(path, exif=exif(orientation), quality=95, subsampling=0, lossless=True)
        with Image.open(path) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        expected.save(upright)
        height, width = np.shape(expected)[:2]
        np.testing.assert_allclose(read(path, (height, width)), expected, atol=atol)
        for size, resize in (((5, 8), (12, 13)), ((6, 8), (11, 10))):  # margins odd and even
            found = read(path, size, resize)
            np.testing.assert_allclose(found, read(upright, size, resize), atol=atol)


def test_exif_is_found_behind_other_parts_of_a_file(picture, tmp_path):
    upright = picture.transpose(Image.Transpose.ROTATE_270)
    tags = exif(6).tobytes()
    picture.save(tmp_path / "a.jpg", exif=tags, quality=95, subsampling=0)
    content = (tmp_path / "a.jpg").read_bytes()
    comment = b"\xff\xfe\x00\x10Exif\0\0MM\0*1234"
    (tmp_path / "b.jpg").write_bytes(content[:2] + comment + b"\xff" + content[2:])
    picture.save(tmp_path / "c.png", exif=tags)
    content = (tmp_path / "c.png").read_bytes()
    begin = content.index(b"eXIf") - 4
    end = begin + 12 + struct.unpack(">I", content[begin : begin + 4])[0]
    last = content[:begin] + content[end:-12] + content[begin:end] + content[-12:]
    (tmp_path / "d.png").write_bytes(last)
    for name in ("a.jpg", "b.jpg", "c.png", "d.png"):
        found = read(tmp_path / name, (WIDTH, HEIGHT))
        np.testing.assert_allclose(found, np.asarray(upright), atol=16, err_msg=name)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["H", "I"])
def test_exif_in_both_orders_of_bytes(order, kind):
    numbers = [(0x010F, 3, "H", 7), (0x0112, 4 if kind == "I" else 3, kind, 8)]
    entries = [
        struct.pack(f"{order}HHI{letter}", tag, code, 1, number).ljust(12, b"\0")
        for tag, code, letter, number in numbers
    ]
    start = b"II*\0" if order == "<" else b"MM\0*"
    tiff = start + struct.pack(f"{order}IH", 8, 2) + b"".join(entries)
    segment = b"Exif\0\0" + tiff

    def jpeg(segment):
        return b"\xff\xd8\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + b"\xff\xda"

    assert image_headers.orientation(jpeg(segment)) == 8
    for end in range(len(segment) - 2):  # cut anywhere before the number, it says nothing
        assert image_headers.orientation(jpeg(segment[:end])) in (1, 8)
        assert image_headers.orientation(jpeg(segment)[:end]) in (1, 8)


def test_plain_files_do_not_wait_for_python(picture, tmp_path, monkeypatch):
    asked = []
    orientation = image_headers.orientation
    monkeypatch.setattr(
        image_headers, "orientation", lambda content: asked.append(content) or orientation(content)
    )
    picture.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    picture.save(tmp_path / "b.png")
    picture.save(tmp_path / "c.jpg", quality=95, subsampling=0, exif=exif(1))
    images = ImageFiles(sorted(tmp_path.iterdir()), (HEIGHT, WIDTH))
    np.testing.assert_allclose(images, np.stack([picture] * 3), atol=24)
    assert asked == [(tmp_path / "c.jpg").read_bytes()]
