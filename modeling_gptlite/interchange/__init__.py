"""Import and export: other projects' formats to GPTLite and back.

from modeling_gptlite.interchange import convert

convert("out/quickstart", "out/quickstart-gguf", target_format="gguf", dtype="q8_0")
"""

from .fields import ConversionError
from .formats import FORMATS, Format, VerificationError, convert, read, readable, verify, writable, write
from .material import Engine, Material


__all__ = [
    "FORMATS",
    "ConversionError",
    "Engine",
    "Format",
    "Material",
    "VerificationError",
    "convert",
    "read",
    "readable",
    "verify",
    "writable",
    "write",
]
