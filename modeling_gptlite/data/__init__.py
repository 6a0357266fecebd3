"""Text to packed ids to windows; uses tokenizers, but no model.

source = open_source(SourceArguments(train_file=["my_book.txt"]))
prepared = prepare(source, make_tokenizer(source), context=256, windows_per_step=64, max_steps=1000)
"""

from ..errors import UserError


class DataError(UserError, ValueError):
    """The text cannot be read, or not be used as asked; the message says why and what to do."""
