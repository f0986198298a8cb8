"""The encoder: single bases in, hidden states out.

``config`` describes one, ``layers`` are its parts, ``model`` is the whole, ``checkpoints`` its folder on disk.
"""

from genosparse.encoder.config import EncoderConfig
from genosparse.encoder.model import Encoder

__all__ = ["Encoder", "EncoderConfig"]
