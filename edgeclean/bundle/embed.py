"""Write a file of a bundle as source code that firmware links: a C array or ``.incbin``.

The bytes are those of ``model.onnx`` or of any other file, aligned, with a header that says their
size, their SHA-256 and the network's input. The text depends on the bundle alone: no time, no path.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.verify import VerifiedBundle, open_bundle
from edgeclean.errors import UsageError
from edgeclean.files.text import shown
from edgeclean.settings import Settings, setting

Form = Literal["c", "incbin"]
BYTES_PER_LINE = 12
MAX_ALIGNMENT = 4096
TAKEN = frozenset({"", ".h", ".c", ".s", ".o", ".d"})  # of what is written, and what is made of it
# C, C++ and assemblers reserve names: those with __, POSIX those that end in _t, and these.
_SYMBOL = re.compile(r"(?!.*__)(?!.*_t$)[A-Za-z][A-Za-z0-9_]{0,99}")
_KEYWORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char class co_await co_return
co_yield compl concept const const_cast consteval constexpr constinit continue decltype default
delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline
int long main mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected
public register reinterpret_cast requires restrict return short signed sizeof static static_assert
static_cast struct switch template this thread_local throw true try typedef typeid typename typeof
typeof_unqual union unsigned using virtual void volatile while xor xor_eq i386 linux unix
"""
# A folder of ours is before the library's own where a compiler looks for a header.
_HEADERS = """
aio alloca ar assert byteswap complex cpio ctype dirent dlfcn elf endian err errno error fcntl
features fenv float fmtmsg fnmatch ftw getopt glob grp iconv inttypes iso646 langinfo libgen limits
link locale malloc math memory monetary mqueue ndbm netdb nl_types poll pthread pwd regex sched
search semaphore setjmp signal spawn stab stdalign stdarg stdatomic stdbit stdbool stdckdint stddef
stdint stdio stdlib stdnoreturn string strings stropts syscall sysexits syslog tar termios tgmath
threads time trace uchar ucontext ulimit unistd utime utmp utmpx values wait wchar wctype wordexp
"""
# Ends of the program's parts, which linkers define and heaps begin at; and names of types.
_TAKEN_NAMES = "end edata etext std va_list uint ulong ushort"
# Of which limits.h and stdint.h define NAME_WIDTH (C23), as the header does of the image.
_WITH_WIDTH = """
bool char schar uchar short ushrt int uint long ulong llong ullong intmax uintmax intptr uintptr
size ptrdiff wchar wint sig_atomic
"""
_WITH_WIDTH_AND_BITS = re.compile(r"u?int(_least|_fast)?(8|16|32|64)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings(Settings):
    """Settings of the source code.

    Attributes:
        symbol: the array's name in C, and the files' names; in capitals, the macros' prefix.
        align: alignment of the array's first byte, in bytes, a power of two.
        form: "c" for an array that any compiler takes, "incbin" for an assembler file that takes
            the bytes from a file beside it (GNU as or clang, ELF), which compiles at once.
        file: name of the bundle's file, such as ``litert/model.tflite``.
    """

    symbol: str = setting("edgeclean_model", longest=100)
    align: int = setting(64, at_least=1, at_most=MAX_ALIGNMENT)
    form: Form = "c"
    file: str = setting(texts.MODEL, longest=400)

    def check_together(self) -> None:
        """Refuse a name that no compiler takes, and an alignment that is no power of two.

        Raises:
            UsageError: the name or the alignment is refused.
        """
        if not _SYMBOL.fullmatch(self.symbol) or self.symbol in _KEYWORDS.split():
            raise UsageError(
                f"symbol is {shown(self.symbol)}; it must be a name in C and C++: letters, "
                "digits and single _, a letter first, no keyword, and no type's name (_t)"
            )
        if self.symbol.lower() in _HEADERS.split() or _in_c_library(self.symbol):
            raise UsageError(
                f"symbol is {self.symbol}, which the C library has a header or a function of; name "
                f"it otherwise, such as {self.symbol}_model"
            )
        if self.symbol.isupper() or _is_taken(self.symbol):
            raise UsageError(
                f"symbol is {self.symbol}, which the compiler, the linker or a standard header may "
                f"have for something else; name it otherwise, such as {self.symbol.lower()}_model"
            )
        if self.align & (self.align - 1):
            raise UsageError(f"align is {self.align}; it must be a power of two")
        if not texts.is_file_name(self.file):
            raise UsageError(
                f"file is {shown(self.file)}; it must name a file of the bundle, such as "
                "litert/model.tflite"
            )

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of the files that are written, the header first."""
        if self.form == "c":
            return f"{self.symbol}.h", f"{self.symbol}.c"
        return f"{self.symbol}.h", self.bytes_name, f"{self.symbol}.S"

    @property
    def bytes_name(self) -> str:
        """The name of the file of bytes that ``.incbin`` takes; not one that is written beside."""
        suffix = PurePosixPath(self.file).suffix
        return f"{self.symbol}{suffix if suffix.lower() not in TAKEN else '.bin'}"


def _is_taken(symbol: str) -> bool:
    """Return whether a name, or a macro that begins with it, is usually there before."""
    small = symbol.lower()
    width = small in _WITH_WIDTH.split() or _WITH_WIDTH_AND_BITS.fullmatch(small) is not None
    return symbol in _TAKEN_NAMES.split() or width


def _in_c_library(symbol: str) -> bool:
    """Return whether this machine's C library exports a name, which an array would replace."""
    for library in ("libc.so.6", "libm.so.6"):
        with suppress(OSError, AttributeError):  # another C library, or no such name in it
            getattr(ctypes.CDLL(library), symbol)
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedFiles:
    """The source files of a network.

    Attributes:
        files: contents by file name, the header first.
        model_bytes: the size of the file, the network's ONNX file if no other was named.
        model_sha256: the SHA-256 of that file.
    """

    files: Mapping[str, bytes]
    model_bytes: int
    model_sha256: str


def embed_bundle(bundle: Path, settings: EmbedSettings) -> EmbeddedFiles:
    """Return the source files of a file of a bundle; nothing is written.

    They are of the bytes that were verified, whatever becomes of the folder meanwhile.

    Raises:
        InputRejectedError: the bundle does not verify.
        UsageError: the bundle has no such file, or its manifest does not bind it.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    model = _chosen(opened, settings.file)
    symbol = settings.symbol
    files = {f"{symbol}.h": _header(model, manifest, opened.record.manifest_sha256, settings)}
    if settings.form == "c":
        files[f"{symbol}.c"] = _c_source(model, settings)
    else:
        files[settings.bytes_name] = model
        files[f"{symbol}.S"] = _assembler_source(model, settings)
    return EmbeddedFiles(files=files, model_bytes=len(model), model_sha256=texts.sha256(model))


def _chosen(opened: VerifiedBundle, name: str) -> bytes:
    bound = opened.manifest["files"]  # reports are none of them: no hash of the manifest is theirs
    if name not in bound:
        raise UsageError(
            f"the bundle has no file {shown(name)} to embed; it has {', '.join(sorted(bound))}"
        )
    if not opened.files[name]:
        raise UsageError(f"{name} is empty; C has no array without elements")
    return opened.files[name]


def _c_source(model: bytes, settings: EmbedSettings) -> bytes:
    symbol, prefix = settings.symbol, settings.symbol.upper()
    rows = (
        "    0x" + model[start : start + BYTES_PER_LINE].hex(",").replace(",", ", 0x") + ",\n"
        for start in range(0, len(model), BYTES_PER_LINE)
    )
    text = _C_SOURCE.format(symbol=symbol, prefix=prefix, align=settings.align, tag=_tag(model))
    return (text + "".join(rows) + "};\n").encode()


def _assembler_source(model: bytes, settings: EmbedSettings) -> bytes:
    symbol, prefix = settings.symbol, settings.symbol.upper()
    return _ASSEMBLER.format(
        symbol=symbol,
        prefix=prefix,
        align=settings.align,
        tag=_tag(model),
        size=len(model),
        bytes_name=settings.bytes_name,
    ).encode()


def _header(
    model: bytes, manifest: Mapping[str, Any], manifest_sha256: str, settings: EmbedSettings
) -> bytes:
    network = manifest["model"]
    channels, height, width = network["input_shape"]
    return _HEADER.format(
        symbol=settings.symbol,
        prefix=settings.symbol.upper(),
        tag=_tag(model),
        size=len(model),
        align=settings.align,
        file=settings.file,
        sha256=texts.sha256(model),
        manifest_sha256=manifest_sha256,
        input=_input(settings.file, manifest),
        arena=_arena(settings, manifest),
        channels=channels,
        height=height,
        width=width,
        classes=network["classes"],
        mean=_floats([*map(float, network["mean"])]),
        std=_floats([*map(float, network["std"])]),
    ).encode()


def _runtime(file: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = manifest.get("runtimes", {}).get(file.partition("/")[0], {})
    return found


def _input(file: str, manifest: Mapping[str, Any]) -> str:
    """Return what the file's own input holds, in words."""
    pixels = "(pixel in [0, 1] - mean) / std"
    if not file.startswith("litert"):
        return f"float32, channels first: {pixels}."
    if _runtime(file, manifest).get("precision") == "int8":
        return f"int8, channels last: {pixels}, by the input's own scale and zero point."
    return f"float32, channels last: {pixels}."


def _arena(settings: EmbedSettings, manifest: Mapping[str, Any]) -> str:
    """Return the memory that its interpreter takes as a macro, where the manifest knows it."""
    used = _runtime(settings.file, manifest).get("arena_bytes")
    prefix = settings.symbol.upper()
    note = "/* Of the interpreter, measured with pointers of 64 bits: enough for 32. */"
    return "" if used is None else f"{note}\n#define {prefix}_ARENA_BYTES {used}\n\n"


def _tag(model: bytes) -> str:
    """Return the tag that source and header both hold: of different networks, neither compiles."""
    return texts.sha256(model)[:16].upper()


def _floats(numbers: list[float]) -> str:
    return "{" + ", ".join(f"{number!r}f" for number in numbers) + "}"


_HEADER = """\
/* Written by `edgeclean embed`; do not change it. The network is data: it holds no code. */
#ifndef {prefix}_H
#define {prefix}_H

#define {prefix}_OF_{tag} 1
#define {prefix}_SIZE {size}
#define {prefix}_ALIGN {align}
#define {prefix}_FILE "{file}"
#define {prefix}_SHA256 "{sha256}"
#define {prefix}_MANIFEST_SHA256 "{manifest_sha256}"

{arena}/* One image, {input} */
#define {prefix}_CHANNELS {channels}
#define {prefix}_HEIGHT {height}
#define {prefix}_WIDTH {width}
#define {prefix}_CLASSES {classes}
#define {prefix}_MEAN {mean}
#define {prefix}_STD {std}

#ifndef __ASSEMBLER__
#ifdef __cplusplus
extern "C" {{
#endif
extern const unsigned char {symbol}[{prefix}_SIZE];
#ifdef __cplusplus
}}
#endif
#endif

#endif
"""

_C_SOURCE = """\
/* Written by `edgeclean embed`; do not change it. */
#include "{symbol}.h"

#ifndef {prefix}_OF_{tag}
#error "{symbol}.h describes another network; run edgeclean embed again"
#endif

#if defined(__cplusplus) && __cplusplus >= 201103L
#define {prefix}_ALIGNED alignas({align})
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define {prefix}_ALIGNED _Alignas({align})
#elif defined(__GNUC__)
#define {prefix}_ALIGNED __attribute__((aligned({align})))
#else
#error "this compiler has no way to align an array; use C11"
#endif

{prefix}_ALIGNED const unsigned char {symbol}[{prefix}_SIZE] = {{
"""

# % and not @ before a type: @ begins a comment for 32-bit Arm.
_ASSEMBLER = """\
/* Written by `edgeclean embed`; do not change it. Its folder must be on the include path (-I). */
#include "{symbol}.h"

#ifndef {prefix}_OF_{tag}
#error "{symbol}.h describes another network; run edgeclean embed again"
#endif

    .section .rodata.{symbol}, "a", %progbits
    .balign {align}
    .global {symbol}
    .type {symbol}, %object
{symbol}:
    .incbin "{bytes_name}"
.L{symbol}_end:
    .size {symbol}, .L{symbol}_end - {symbol}
    .if (.L{symbol}_end - {symbol}) != {size}
    .error "{bytes_name} is another network; run edgeclean embed again"
    .endif

    .section .note.GNU-stack, "", %progbits
"""
