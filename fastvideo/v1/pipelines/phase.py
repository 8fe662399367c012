"""The three phases of making a video; each can be its own job with one model in memory."""

from enum import StrEnum


class Phase(StrEnum):
    """A phase's value is the name of its folder in the store."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


ALL_PHASES = tuple(Phase)
