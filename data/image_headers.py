"""What the header of an image file says and TensorFlow passes over, read in plain Python."""

BGRX_MASKS = bytes.fromhex("0000ff00 00ff0000 ff000000")  # of red, green and blue


def orientation(content):
    """How EXIF says that an image lies in its file: 1 (upright) to 8; 1 where it says nothing.

    EXIF is read in JPEG, PNG and WebP files.

    Args:
        content: bytes, the whole file, which TensorFlow has decoded.

    Returns:
        int; 0 for a BMP or a GIF file of which TensorFlow makes another picture.
    """
    if content.startswith(b"BM"):
        return int(_bmp_is_read(content))
    if content.startswith(b"GIF"):
        return int(_gif_is_read(content))
    exif = b""
    if content.startswith(b"\xff\xd8"):
        exif = _jpeg_exif(content).removeprefix(b"Exif\0\0")
    elif content.startswith(b"\x89PNG"):
        exif = _png_exif(content)
    elif content.startswith(b"RIFF"):
        exif = _webp_exif(content).removeprefix(b"Exif\0\0")
    found = _orientation_tag(exif)
    return found if 1 <= found <= 8 else 1


def _jpeg_exif(content):
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:  # pixels
        if content[at + 1] == 0xFF:  # it only fills
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if content[at + 1] == 0xE1 and content.startswith(b"Exif\0\0", at + 4):
            return content[at + 4 : end]
        at = end
    return b""


def _png_exif(content):
    at = 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4])
        if content.startswith(b"eXIf", at + 4):
            return content[at + 8 : at + 8 + size]
        at += size + 12
    return b""


def _webp_exif(content):
    at = 12
    while at < len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if content.startswith(b"EXIF", at):
            return content[at + 8 : at + 8 + size]
        at += size + size % 2 + 8
    return b""


def _orientation_tag(exif):
    """The number of tag 0x112 in EXIF's first directory; 0 where there is none."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])
    if order is None:
        return 0

    def number(at, size):
        return int.from_bytes(exif[at : at + size], order)

    directory = number(4, 4)
    first = directory + 2
    for entry in range(first, min(first + 12 * number(directory, 2), len(exif)), 12):
        if number(entry, 2) == 0x112:
            is_long = number(entry + 2, 2) == 4
            return number(entry + 8, 4 if is_long else 2)
    return 0


def _bmp_is_read(content):
    """Whether it is gray of 8 bits, BGR of 24 or BGRX of 32: TensorFlow takes others for these."""

    def number(at, size):
        return int.from_bytes(content[at : at + size], "little")

    header, bits, compression, colors = number(14, 4), number(28, 2), number(30, 4), number(46, 4)
    palette = content[14 + header :][: 4 * min(colors or 256, 256)]
    is_gray = all(palette[i::4] == bytes(range(len(palette) // 4)) for i in range(3))
    has_masks = compression in (3, 6) and content[54:66] == BGRX_MASKS
    kinds = ((8, 0, is_gray), (24, 0, True), (32, 0, True), (32, compression, has_masks))
    return header >= 40 and (bits, compression, True) in kinds


def _gif_is_read(content):
    """Whether the first frame fills the picture: else TensorFlow cuts pieces off both."""

    def number(at):
        return int.from_bytes(content[at : at + 2], "little")

    at = 13 + (content[10] >> 7) * (6 << (content[10] & 7))  # behind the palette
    while content.startswith(b"!", at):  # an extension: blocks up to an empty one
        at += 2
        while content[at : at + 1] not in (b"", b"\0"):
            at += 1 + content[at]
        at += 1
    left, top, width, height = (number(at + i) for i in (1, 3, 5, 7))
    return (left, top) == (0, 0) and width >= number(6) and height >= number(8)
