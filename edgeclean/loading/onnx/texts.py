"""Every text of an untrusted ONNX file is text.

Protocol buffers hand out bytes where a name is no UTF-8, and whatever reads names expects none.
"""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from edgeclean.errors import InputRejectedError


def check_texts(message: Message) -> None:
    """Refuse a text, anywhere in the file, that is no UTF-8.

    Raises:
        InputRejectedError: names the field.
    """
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == FieldDescriptor.TYPE_STRING:
            if not all(isinstance(one, str) for one in values):
                raise InputRejectedError(
                    f"not an ONNX file (the bytes of a {field.name} are no text in UTF-8)"
                )
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for one in values:  # as deep as protocol buffers allow, which is 100
                check_texts(one)
