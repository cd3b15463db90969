"""A state machine of well-formed UTF-8 (the Unicode Standard, table 3-7).

The state says which bytes may follow. Sampling from a byte model masks all others, so its output is valid UTF-8.
"""

from __future__ import annotations

import numpy as np

START = 0
# state: [(first byte allowed, last, next state), …]
_ROWS: dict[int, list[tuple[int, int, int]]] = {
    START: [
        (0x00, 0x7F, START),
        (0xC2, 0xDF, 1),
        (0xE0, 0xE0, 4),
        (0xE1, 0xEC, 2),
        (0xED, 0xED, 5),
        (0xEE, 0xEF, 2),
        (0xF0, 0xF0, 6),
        (0xF1, 0xF3, 3),
        (0xF4, 0xF4, 7),
    ],
    1: [(0x80, 0xBF, START)],  # one more byte
    2: [(0x80, 0xBF, 1)],  # two more
    3: [(0x80, 0xBF, 2)],  # three more
    4: [(0xA0, 0xBF, 1)],  # after E0: nothing that fits in two bytes
    5: [(0x80, 0x9F, 1)],  # after ED: no surrogates
    6: [(0x90, 0xBF, 2)],  # after F0: nothing that fits in three bytes
    7: [(0x80, 0x8F, 2)],  # after F4: nothing past U+10FFFF
}

NEXT = np.full((len(_ROWS), 256), -1, np.int8)  # (state, byte) → state, -1 where the byte is not allowed
for _state, _spans in _ROWS.items():
    for _low, _high, _to in _spans:
        NEXT[_state, _low : _high + 1] = _to
ALLOWED = NEXT >= 0  # (state, byte)


def state_after(data: bytes) -> int:
    """The state after some bytes; a byte that is not allowed returns to START."""
    state = START
    for byte in data:
        state = max(int(NEXT[state, byte]), START)
    return state
