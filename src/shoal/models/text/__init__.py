"""Text to token ids and back, and conversations to prompts."""

from shoal.models.text.codec import TextCodec
from shoal.models.text.detokenizer import Detokenizer

__all__ = ["Detokenizer", "TextCodec"]
