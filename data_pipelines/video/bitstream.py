"""What a packet says about itself: whether and how decoding can begin with it, and whether it shows a frame.

Containers mark as key frames what their muxer took for one. From an H.264 picture that is no IDR, decoding is exact
only where a recovery point without further frames promises it (ITU-T H.264, D.2.8). VP8 and VP9 know frames that others
refer to and nobody sees (RFC 6386, 9.1; VP9 bitstream specification, 6.2), and AV1 key frames that are shown later than
they come (AV1 bitstream specification, 7.6).
"""

import functools
import re
from collections.abc import Callable, Iterator

import av

_IDR, _SEI = 5, 6  # NAL unit types of H.264
_RECOVERY_POINT = 6  # payload type of an SEI message
_START_CODE = re.compile(b"\0\0\1")


PacketFlags = tuple[bool, bool, bool]  # decoding can begin here; cleanly, as `PacketTable` has it; a frame is shown


def packet_inspector(context: av.VideoCodecContext) -> Callable[[memoryview], PacketFlags] | None:
    """What a stream's codec says of each packet; None where the container's word is all that there is."""
    extra = context.extradata or b""
    if context.codec.canonical_name in _LENGTH_AT:
        at, inspect = _LENGTH_AT[context.codec.canonical_name]
        return functools.partial(inspect, (extra[at] & 3) + 1 if len(extra) > at and extra[0] == 1 else 0)
    return _INSPECTORS.get(context.codec.canonical_name)


def _h264(length: int, packet: memoryview) -> PacketFlags:
    exact = False
    for unit in _units(length, packet):
        kind = unit[0] & 31
        if kind == _SEI:
            exact = exact or _recovers_at_once(bytes(unit[1:]))
        elif 1 <= kind <= _IDR:
            return exact or kind == _IDR, kind == _IDR, True
    return False, False, False


def _recovers_at_once(messages: bytes) -> bool:
    """Whether SEI messages hold a recovery point from which on every later picture is exact."""
    at = 0
    while at + 2 < len(messages):
        kind, at = _number(messages, at)
        size, at = _number(messages, at)
        if kind == _RECOVERY_POINT and at < len(messages):
            return messages[at] >> 5 == 0b110  # recovery_frame_cnt = 0 is one bit, then exact_match, no broken_link
        at += size
    return False


def _number(messages: bytes, at: int) -> tuple[int, int]:
    """(a number in the bytes of an SEI message, where what follows begins)."""
    total = 0
    while messages[at:at + 1] == b"\xff":
        total, at = total + 255, at + 1
    return total + (messages[at] if at < len(messages) else 0), at + 1


def _hevc(length: int, packet: memoryview) -> PacketFlags:
    for unit in _units(length, packet):
        kind = unit[0] >> 1 & 63
        if kind < 32:
            begins = 16 <= kind <= 23  # IRAP pictures; decoders skip what leads them and refers to others
            return begins, begins, True
    return False, False, False


def _vp8(packet: memoryview) -> PacketFlags:
    key = not packet[0] & 1
    return key, key, bool(packet[0] & 0x10)


def _vp9(packet: memoryview) -> PacketFlags:
    head = packet[0] << (packet[0] >> 4 & 3 == 3)  # profile 3 has a bit more
    existing, inter, shown = (bool(head & bit) for bit in (8, 4, 2))
    several = packet[-1] >> 5 == 0b110  # a superframe: its last frame is shown
    key = not (existing or inter)
    return key, key, several or existing or shown


def _av1(packet: memoryview) -> PacketFlags:
    at = 0
    while at + 2 < len(packet):
        kind, extended, sized = packet[at] >> 3 & 15, packet[at] >> 2 & 1, packet[at] >> 1 & 1
        at, size = at + 1 + extended, len(packet)
        if sized:
            size, at = _leb128(packet, at)
        if kind in (3, 6) and at < len(packet):  # a frame, or its header
            key = packet[at] >> 4 == 0b0001  # it exists already: no; its type: a key frame; it is shown: yes
            return key, key, True
        at += size
    return False, False, True


def _leb128(packet: memoryview, at: int) -> tuple[int, int]:
    """(a number of AV1, where what follows begins)."""
    value = shift = 0
    while at < len(packet) and shift < 56:
        value |= (packet[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if packet[at - 1] < 128:
            break
    return value, at


def _mpeg4(packet: memoryview) -> PacketFlags:
    begin = bytes(packet).find(b"\0\0\1\xb6") + 4
    intra = begin > 3 and begin < len(packet) and packet[begin] >> 6 == 0
    return intra, intra, True


def _units(length: int, packet: memoryview) -> Iterator[memoryview]:
    """The NAL units of a packet that are not empty. length: bytes of the size before each; 0: they begin with start
    codes."""
    if not length:
        begins = [match.end() for match in _START_CODE.finditer(packet)]
        yield from (packet[begin:end] for begin, end in zip(begins, [*begins[1:], len(packet)]) if begin < end)
        return
    at = 0
    while at + length < len(packet):
        begin = at + length
        at = begin + int.from_bytes(packet[at:begin], "big")
        if begin < at:
            yield packet[begin:at]


_INSPECTORS = {"vp8": _vp8, "vp9": _vp9, "av1": _av1, "libaom-av1": _av1, "mpeg4": _mpeg4}
_LENGTH_AT = {"h264": (4, _h264), "hevc": (21, _hevc)}  # where the codec's configuration says how long sizes are
