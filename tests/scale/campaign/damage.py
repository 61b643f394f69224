"""Damage to files: bytes of any, and what a reader meets only behind a checksum, a length or a compressed layer.

`damaged` looks at what a file is, takes it apart, damages a part (which may again be a file of a known kind) and puts
it together again with lengths and checksums that are right.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

EDGES = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"9999999999",
    b"-1",
    b"0",
    b"1e9",
    b"",
    b"null",
    b"[]",
    b"{}",
    b"nan",
    b"1e400",
    b"\xff\xfe",
    b"\0",
    b"'",
    b'"',
)
LARGEST = 1 << 24  # bytes that damage may unpack or make
DEPTH = 4  # of files within files


def damaged(raw: bytes, draw: random.Random, others: Sequence[bytes] = (), depth: int = 0) -> bytes:
    """A file with some damage; `others` are files from which pieces may come."""
    if depth < DEPTH and draw.random() < (0.65 if depth == 0 else 0.8):
        structured = next((change for fits, change in KINDS if fits(raw)), None)
        if structured is not None:
            with contextlib.suppress(Exception):  # what the damage's own parser makes of an odd piece
                changed = structured(raw, draw, lambda part: damaged(part, draw, others, depth + 1))
                if changed != raw and len(changed) <= LARGEST:
                    return changed
    return damaged_bytes(raw, draw, others)


def damaged_bytes(raw: bytes, draw: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Damage that knows nothing of the file."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        n = len(data)
        # Headers are small and matter more than pixels.
        at = draw.randrange(min(n, draw.choice((64, 512, 4096, n)) or 1)) if n else 0
        if draw.random() < 0.15 and n:
            at = n - 1 - at
        kind = draw.randrange(12)
        if kind == 0 and n:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and n:
            data[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.randrange(1, 64)]
        elif kind == 4:
            data[at:at] = draw.randbytes(draw.randrange(1, 64))
        elif kind == 5:
            data[at : at + 64] = bytes(64)
        elif kind == 6:
            size = draw.choice((2, 4, 8))
            data[at : at + size] = (draw.choice(EDGES) % 256**size).to_bytes(size, draw.choice(("little", "big")))
        elif kind == 7:
            data += data[at : at + draw.randrange(1, 4096)]
        elif kind == 8:
            _numbers(data, draw)
        elif kind == 9 and others:
            piece = draw.choice(others)
            begin = draw.randrange(len(piece) or 1)
            data[at:at] = piece[begin : begin + draw.randrange(1, 4096)]
        elif kind == 10 and others and draw.random() < 0.2:  # another kind of file under the name
            whole = draw.choice((draw.choice(others), b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\0", b""))
            data[: draw.choice((n, min(n, len(whole), 16)))] = whole[: draw.choice((LARGEST, 16))]
        else:  # digits are sizes and shapes in headers of text
            places = [i for i in range(min(n, 4096)) if 48 <= data[i] <= 57]
            if places:
                spot = draw.choice(places)
                data[spot : spot + 1] = draw.choice(WORDS)
    return bytes(data)


def _numbers(data: bytearray, draw: random.Random) -> None:
    """A number of two, four or eight bytes, where such a number would stand, becomes one near it or at an edge."""
    size = draw.choice((2, 4, 8))
    if len(data) < size:
        return
    at = draw.randrange(min(len(data) - size + 1, draw.choice((128, 4096, len(data)))))
    at -= at % draw.choice((1, size))
    order = draw.choice(("little", "little", "big"))
    value = int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]
    value = draw.choice((value + 1, value - 1, 2 * value, value // 2, -value, draw.choice(EDGES)))
    data[at : at + size] = (value % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


Deeper = Callable[[bytes], bytes]


# archives and compressed files


def _zip(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [(one.filename, archive.read(one)) for one in archive.infolist() if one.file_size <= LARGEST]
        packed = archive.infolist()[0].compress_type
    at = draw.randrange(len(members))
    name, content = members[at]
    kind = draw.randrange(10)
    if kind < 6:
        members[at] = name, deeper(content)
    elif kind == 6:
        del members[at]
    elif kind == 7:
        members[at] = draw.choice((name.upper(), name + "/", "../" + name, name[:-4], "\0" + name)), content
    elif kind == 8:
        members.append((name, deeper(content)))
    else:
        other = draw.randrange(len(members))
        members[at] = name, members[other][1]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw.choice((packed, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members:
            archive.writestr(name, content)
    made = bytearray(out.getvalue())
    if draw.random() < 0.1:  # of the table of contents
        _numbers(made, draw)
    return bytes(made)


def _gz(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    content = deeper(gzip.decompress(raw))
    return gzip.compress(content, 1) + (raw if draw.random() < 0.05 else b"")


def _tar(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    heads, at = [], 0
    while at + 512 <= len(raw) and any(raw[at : at + 512]):
        size = int(raw[at + 124 : at + 135].strip(b" \0") or b"0", 8)
        heads.append((at, size))
        at += 512 + -(-size // 512) * 512
    at, size = draw.choice(heads)
    head, body = bytearray(raw[at : at + 512]), raw[at + 512 : at + 512 + size]
    rest = raw[at + 512 + -(-size // 512) * 512 :]
    kind = draw.randrange(7)
    if kind < 3:
        body = deeper(body)
        head[124:136] = b"%011o\0" % len(body)
    elif kind == 3:
        head[156] = draw.choice(b"0157LKxgSVD\0")
    elif kind == 4:
        head[124:136] = draw.choice(
            (b"7" * 11 + b"\0", b"\x80" + bytes(10) + b"\xff", b"\xff" * 12, b"-1".ljust(12), bytes(12))
        )
    elif kind == 5:
        head[:100] = damaged_bytes(bytes(head[:100]), draw)[:100].ljust(100, b"\0")
    else:
        spot = draw.randrange(512)
        head[spot] = draw.randrange(256)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return raw[:at] + bytes(head) + body + bytes(-len(body) % 512) + rest


# arrays and tensors


def _npy(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    size = 2 if raw[6] == 1 else 4
    length = int.from_bytes(raw[8 : 8 + size], "little")
    head, body = raw[8 + size : 8 + size + length], raw[8 + size + length :]
    shape = re.search(rb"\(([^)]*)\)", head)
    kind = draw.randrange(5)
    if kind == 0:
        types = (
            b"|O",
            b"<f8",
            b">i8",
            b"<f2",
            b"<U4",
            b"|S3",
            b"|V7",
            b"<c16",
            b"|b1",
            b"<M8[s]",
            b"|u1",
            b"<u8",
            b"|S0",
        )
        head = re.sub(rb"'[<>|=][^']*'", b"'" + draw.choice(types) + b"'", head, count=1)
    elif kind == 1 and shape is not None:
        sides = [side.strip() for side in shape[1].split(b",") if side.strip()]
        which = draw.randrange(4)
        if which == 0 and sides:
            sides[draw.randrange(len(sides))] = draw.choice(
                (b"0", b"-1", b"1", b"9" * 18, b"1.5", b"True", b"9" * 5000)
            )
        elif which == 1:
            draw.shuffle(sides)
        elif which == 2:
            sides = sides[1:]
        else:
            sides.insert(draw.randrange(len(sides) + 1), draw.choice((b"1", b"0")))
        head = head.replace(shape[0], b"(" + b", ".join(sides) + b",)" if sides else b"()")
    elif kind == 2:
        head = head.replace(b"False", draw.choice((b"True", b"None", b"0")))
    elif kind == 3:
        words = re.findall(rb"[\w.']+|[^\w\s]", head)
        head = b" ".join(_shuffled(words, draw))
    else:
        body = draw.choice(
            (body[: len(body) // 2], body + body, body[:1], bytes(len(body)), b"\xff" * len(body), deeper(body))
        )
    head = head.rstrip() + b" " * (-(len(head.rstrip()) + 9 + size) % 64) + b"\n"
    return raw[:8] + len(head).to_bytes(size, "little") + head + body


def _shuffled(words: list[Any], draw: random.Random) -> list[Any]:
    """Some of the words, one removed, doubled, moved or swapped."""
    words, at, other = list(words), draw.randrange(len(words)), draw.randrange(len(words))
    kind = draw.randrange(5)
    if kind == 0:
        del words[at]
    elif kind == 1:
        words.insert(other, words[at])
    elif kind == 2:
        words[at], words[other] = words[other], words[at]
    elif kind == 3:
        words[at:at] = words[min(at, other) : max(at, other)] * draw.choice((1, 2, 20))
    else:
        words[at] = words[other]
    return words


def _safetensors(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    head, body = raw[8 : 8 + length], raw[8 + length :]
    if draw.random() < 0.8:
        head = _json(head, draw, deeper)
    else:
        body = draw.choice((body[: len(body) // 2], body + body, b"\xff" * len(body), damaged_bytes(body, draw)))
    return len(head).to_bytes(8, "little") + head + body


def _mat(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    elements, at = [], 128
    while at + 8 <= len(raw):
        kind, size = struct.unpack("<II", raw[at : at + 8])
        elements.append((kind, raw[at + 8 : at + 8 + size]))
        at += 8 + size
    at = draw.randrange(len(elements))
    kind, body = elements[at]
    inner = bytearray(zlib.decompress(body) if kind == 15 else body)
    if draw.random() < 0.7:
        for _ in range(draw.choice((1, 1, 3))):
            head = bytearray(inner[:160])
            _numbers(head, draw)
            inner[:160] = head
    else:
        inner = bytearray(deeper(bytes(inner)))
    elements[at] = kind, zlib.compress(bytes(inner), 1) if kind == 15 else bytes(inner)
    if draw.random() < 0.1:
        elements = _shuffled(elements, draw)
    return raw[:128] + b"".join(struct.pack("<II", kind, len(body)) + body for kind, body in elements)


def _parquet(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    """Rows, types and metadata of a table; half of the time bytes of the pages or of the footer."""
    if draw.random() < 0.5:
        length = int.from_bytes(raw[-8:-4], "little")
        footer = len(raw) - 8 - length
        data = bytearray(raw)
        begin, stop = (footer, footer + length) if draw.random() < 0.6 else (4, footer)
        for _ in range(draw.choice((1, 2, 5))):
            at = draw.randrange(begin, stop)
            data[at] = draw.choice((data[at] ^ 1 << draw.randrange(8), draw.randrange(256), 0, 255))
        return bytes(data)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(raw), use_threads=False)
    at = draw.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    metadata = dict(table.schema.metadata or {})
    kind = draw.randrange(8)
    if kind < 3 and pa.types.is_struct(column.type):
        rows = column.to_pylist()
        row = draw.randrange(len(rows))
        if kind == 2:
            rows[row] = draw.choice((None, {"bytes": None, "path": "/dev/zero"}, {"bytes": b"", "path": ""}))
        else:
            rows[row] = {**rows[row], "bytes": deeper(rows[row]["bytes"])}
        table = table.set_column(at, name, pa.array(rows, column.type))
    elif kind < 3:
        values = column.to_pylist()
        values[draw.randrange(len(values))] = draw.choice((None, -1, 2**40, 2**63 - 1, 7))
        table = table.set_column(at, name, pa.array(values, column.type))
    elif kind == 3:
        to = draw.choice(
            (pa.string(), pa.float64(), pa.uint8(), pa.list_(pa.int64()), pa.null(), pa.bool_(), pa.date32())
        )
        with contextlib.suppress(pa.ArrowException):
            column = column.cast(to) if draw.random() < 0.7 else pa.nulls(len(column), to)
        table = table.set_column(at, name, column)
    elif kind == 4:
        table = table.rename_columns([draw.choice((name, "label", "image", "")) for name in table.column_names])
    elif kind == 5:
        table = table.slice(0, draw.choice((0, 1))) if draw.random() < 0.5 else table.remove_column(at)
    elif metadata:
        key = draw.choice(sorted(metadata))
        table = table.replace_schema_metadata({**metadata, key: _json(metadata[key], draw, deeper)})
    out = io.BytesIO()
    more = {"row_group_size": draw.choice((1, 5, 100)), "use_dictionary": draw.random() < 0.5}
    pq.write_table(table, out, compression=draw.choice(("none", "zstd", "snappy", "gzip")), **more)
    return out.getvalue()


# pictures


def _png(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]))
        at += 12 + size
    at = draw.randrange(len(chunks))
    kind, body = chunks[at]
    how = draw.randrange(8)
    if how == 0:
        chunks[at] = kind, damaged_bytes(body, draw)
    elif how in (1, 2):  # the size, the depth, the kind of colours
        head = bytearray(chunks[0][1])
        spot = draw.choice((0, 4, 8, 9, 10, 11, 12))
        if spot < 8:
            head[spot : spot + 4] = (draw.choice(EDGES) % 2**32).to_bytes(4, "big")
        else:
            head[spot] = draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = chunks[0][0], bytes(head)
    elif how == 3:
        for i, (name, data) in enumerate(chunks):
            if name == b"IDAT":
                pixels = zlib.decompress(data)
                pixels = draw.choice(
                    (pixels[:-9], pixels * 2, bytes((9,)) + pixels[1:], damaged_bytes(pixels, draw), b"")
                )
                chunks[i] = name, zlib.compress(pixels, 1)
                break
    elif how == 4:
        chunks = _shuffled(chunks, draw)
    elif how == 5:
        bomb = zlib.compress(bytes(1 << 22), 9)
        more = draw.choice(
            (
                (b"PLTE", draw.randbytes(draw.choice((0, 3, 7, 768, 999)))),
                (b"tRNS", draw.randbytes(draw.choice((0, 1, 2, 6, 300)))),
                (b"zTXt", b"a\0\0" + bomb),
                (b"iTXt", b"a\0\1\0\0\0" + bomb),
                (b"iCCP", b"a\0\0" + bomb),
                (b"gAMA", draw.randbytes(4)),
                (b"acTL", struct.pack(">II", draw.choice(EDGES) % 2**32, 0)),
                (b"fcTL", draw.randbytes(26)),
                (b"eXIf", draw.randbytes(40)),
            )
        )
        chunks.insert(draw.randrange(1, len(chunks) + 1), more)
    elif how == 6:
        chunks[at] = bytes((kind[0] ^ 32, *kind[1:])), body
    else:
        chunks[at] = kind, b""
    return raw[:8] + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )


def _jpeg(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    """Segments up to the pixels; what a marker declares."""
    segments, at = [], 2
    while at + 4 <= len(raw) and raw[at] == 0xFF and raw[at + 1] != 0xDA:
        size = int.from_bytes(raw[at + 2 : at + 4], "big")
        segments.append((raw[at + 1], raw[at + 4 : at + 2 + size]))
        at += 2 + size
    scan = raw[at:]
    at = draw.randrange(len(segments))
    marker, body = segments[at]
    frame = next((i for i, (m, _) in enumerate(segments) if 0xC0 <= m <= 0xCF and m not in (0xC4, 0xC8, 0xCC)), None)
    how = draw.randrange(6)
    if how == 0:
        segments[at] = marker, damaged_bytes(body, draw)[:65000]
    elif how in (1, 2) and frame is not None:
        head = bytearray(segments[frame][1])
        spot = draw.randrange(len(head))
        head[spot] = draw.choice((0, 1, 2, 3, 4, 8, 12, 0x11, 0x22, 0x44, 255))
        kind = draw.choice((segments[frame][0],) * 4 + (0xC0, 0xC1, 0xC2, 0xC3, 0xC9))
        segments[frame] = kind, bytes(head)
    elif how == 3:
        segments = _shuffled(segments, draw)
    elif how == 4:
        scan = damaged_bytes(scan, draw)
    else:
        segments[at] = draw.choice((0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE, 0xFE)), body
    made = b"".join(bytes((0xFF, kind)) + (2 + len(body)).to_bytes(2, "big") + body for kind, body in segments)
    return raw[:2] + made + scan


# pickles: whole operations


SNIPPETS = (
    b"cos\nsystem\n",
    b"cbuiltins\nbytearray\n",
    b"cbuiltins\nset\n",
    b"cnumpy\ndtype\n",
    b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"c_codecs\nencode\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"(t", b"(l", b"(d", b")", b"]", b"}", b"N", b"R", b"b", b"a", b"s", b"e", b"u", b"t", b"0", b"2", b"(", b"\x85",
    b"\x86", b"\x87", b"\x81", b"\x94", b"h\0", b"q\0", b"q\xff", b"r\xff\xff\xff\x7f", b"j\0\0\0\0", b"K\x05", b"Q",
    b"Pabc\n", b"I01\n", b"L99999999999999999999L\n", b"F1e400\n", b"G\x7f\xf8" + bytes(6), b"\x8a\x08" + b"\xff" * 8,
    b"X\x03\0\0\0abc", b"C\x04abcd", b"B\x04\0\0\0abcd", b"U\x02<f", b"V\\u0000\n", b"\x8e" + (2**40).to_bytes(8,
    "little"),
    b"\x96" + (2**62).to_bytes(8, "little"), b"\x80\x05", b"\x80\xff", b"\x95" + b"\xff" * 8, b"\x97", b"\x98", b"\x88",
)  # fmt: skip


def _pickle(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    places = [at for _, _, at in pickletools.genops(raw)]
    end = raw.index(b".", places[-1]) + 1
    words = [raw[begin:stop] for begin, stop in zip(places, [*places[1:], end], strict=True)]
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(words))
        kind = draw.randrange(5)
        if kind == 0:
            words = _shuffled(words, draw)
        elif kind == 1:
            words.insert(at, draw.choice(SNIPPETS))
        elif kind == 2:
            words[at] = draw.choice(SNIPPETS)
        elif kind == 3 and len(words[at]) > 1:
            word = bytearray(words[at])
            spot = draw.randrange(1, min(len(word), 12))
            word[spot] = draw.choice((0, 1, 255, draw.randrange(256)))
            words[at] = bytes(word)
        else:
            value = draw.choice(
                (
                    None,
                    -1,
                    2**70,
                    1e400,
                    "x",
                    b"y",
                    [],
                    {},
                    (),
                    set(),
                    [[1]],
                    {"data": 1},
                    {b"labels": [1]},
                    True,
                    "\udc80",
                )
            )
            words[at] = pickle.dumps(value, draw.choice((0, 2, 2, 4)))[2 if draw.random() < 0.5 else 0 : -1]
    return b"".join(words) + raw[end:]


# text


EVIL: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x", "x" * 300,
    "a\0b",
    "\x1b[31m", "../../x", "/dev/zero", "\ud800", [], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["a", "a"], "8/255",
    "1e999",
)  # fmt: skip


def _json(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    if draw.random() < 0.15:
        return _words(raw, draw, deeper)
    whole = json.loads(raw)
    spots: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, member in members:
            spots.append((value, key))
            if isinstance(member, str) and member[:1] in "[{" and draw.random() < 0.5:  # JSON within JSON
                with contextlib.suppress(ValueError):
                    json.loads(member)
                    value[key] = _json(member.encode(), draw, deeper).decode("utf-8", "replace")
            walk(value[key])

    walk(whole)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not spots:
            break
        holder, key = draw.choice(spots[:: draw.choice((1, -1))][: draw.choice((8, 100, len(spots)))])
        with contextlib.suppress(LookupError):
            kind = draw.randrange(6)
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[draw.choice((key + "x", key.upper(), "", "format", "images"))] = holder.pop(key)
            elif kind == 2 and isinstance(holder[key], int):
                holder[key] += draw.choice((-1, 1, holder[key]))
            elif kind == 3:
                other, name = draw.choice(spots)
                holder[key] = json.loads(json.dumps(other[name]))
            else:
                holder[key] = draw.choice(EVIL)
    text = json.dumps(whole if draw.random() < 0.97 else draw.choice(EVIL))
    return text.encode("utf-8", "surrogatepass")


def _words(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    """Words, numbers and signs of a text."""
    words = re.findall(rb"\s+|[\w.]+|[^\w\s]", raw)
    signs = (b"&a ", b"*a", b"*b", b"!!python/object:os.system ", b"!!set ", b"!!binary ", b"<<: *a\n", b": ", b"- ",
    b"\n",
             b"[", b"]", b"{", b"}", b",", b"|\n", b">\n", b"%YAML 9\n", b"---\n", b"...\n", b"? ", b"'", b'"',
             b"\t", b"#",
             b"2001-99-99", b"1:99:99", b"0o777", b"0x" + b"f" * 40, b".nan", b"~", b"yes", b"\xef\xbb\xbf",
             b"9" * 5000,
             b"[" * 400, b"\x85", b"\xe2\x80\xa8", b"\x1b[31m", b"1" * 30)  # fmt: skip
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(words))
        kind = draw.randrange(4)
        if kind == 0:
            words = _shuffled(words, draw)
        elif kind == 1:
            words.insert(at, draw.choice(signs))
        elif kind == 2:
            words[at] = draw.choice((*signs, *WORDS))
        else:
            words[at] = str(draw.choice(EVIL)).encode("utf-8", "surrogatepass")
        if not words:
            break
    return b"".join(words)


# .beton: its tables


def _beton(raw: bytes, draw: random.Random, deeper: Deeper) -> bytes:
    """The header, a field, a row of the table of samples or of that of allocations, or an image."""
    fields, samples, table = (int.from_bytes(raw[a:b], "little") for a, b in ((2, 4), (8, 16), (16, 24)))
    rows = 24 + 1041 * fields
    places = [(0, 24), (24, 24 + 60), (rows, rows + 32 * samples), (table, table + 24 * samples)]
    begin, stop = draw.choice(places)
    data = bytearray(raw)
    if draw.random() < 0.75:
        for _ in range(draw.choice((1, 1, 2))):
            part = data[begin:stop]
            _numbers(part, draw)
            data[begin:stop] = part
    else:
        at = table + 24 * draw.randrange(samples)
        where, size = (int.from_bytes(raw[at + b : at + b + 8], "little") for b in (8, 16))
        image = deeper(raw[where : where + size])[:size].ljust(size, b"\0")
        data[where : where + size] = image
    return bytes(data)


def _is_pickle(raw: bytes) -> bool:
    return raw[:1] == b"\x80" and raw[1:2] in b"\x01\x02\x03\x04\x05"


def _is_text(raw: bytes) -> bool:
    return 0 < len(raw) < 1 << 17 and not re.search(rb"[\x00-\x08\x0e-\x1f\x7f-\xff]", raw[:2048])


KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes, random.Random, Deeper], bytes]], ...] = (
    (lambda raw: raw[:4] == b"PK\x03\x04", _zip),
    (lambda raw: raw[:2] == b"\x1f\x8b", _gz),
    (lambda raw: raw[257:262] == b"ustar", _tar),
    (lambda raw: raw[:6] == b"\x93NUMPY", _npy),
    (lambda raw: raw[:8] == b"\x89PNG\r\n\x1a\n", _png),
    (lambda raw: raw[:3] == b"\xff\xd8\xff", _jpeg),
    (lambda raw: raw[:6] == b"MATLAB", _mat),
    (lambda raw: raw[:4] == b"PAR1", _parquet),
    (lambda raw: raw[8:9] == b"{" and 0 < int.from_bytes(raw[:8], "little") <= len(raw), _safetensors),
    (lambda raw: raw[:2] == b"\x02\0" and len(raw) > 1 << 20, _beton),
    (_is_pickle, _pickle),
    (lambda raw: raw[:1] in (b"{", b"["), _json),
    (_is_text, _words),
)
