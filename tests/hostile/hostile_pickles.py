"""Pickles: code, bombs of memory and time, and files that are none."""

from __future__ import annotations

import pickle

from hostile_case import Case, compressing
from hostile_tensors import TENSORS
from pickle_writing import (
    PYTHON,
    TOUCH,
    call,
    dict_of,
    doubled,
    file_case,
    legacy_with_second_pickle,
    saved,
    side_module,
    text,
    zip_case,
)
from torch import nn


def beside_good_weights(value: bytes) -> bytes:
    """A pickled dict of weights that fit (with no numbers: those are read last) and a value."""
    return b"\x80\x02}(" + text("state_dict") + b"}" + text("args") + value + b"u."


ASKS = r"asks for code: {}.*nothing was run"
CODE_CASES = [
    zip_case(
        "os.system",
        "the classic: loading runs a shell command",
        dict_of(call("posix", "system", TOUCH)),
        ASKS.format(r"posix\.system"),
        bait=True,
    ),
    zip_case(
        "eval",
        "Python text evaluated while it loads",
        dict_of(call("builtins", "eval", PYTHON)),
        ASKS.format(r"builtins\.eval"),
        bait=True,
    ),
    zip_case(
        "exec under its old name",
        "Python 2's module name, which pickle still translates",
        dict_of(call("__builtin__", "exec", PYTHON)),
        ASKS.format(r"builtins\.exec"),
        bait=True,
    ),
    zip_case(
        "subprocess",
        "a process of its own, past lists that know os.system only",
        dict_of(call("subprocess", "getoutput", TOUCH)),
        ASKS.format(r"subprocess\.getoutput"),
        bait=True,
    ),
    zip_case(
        "runpy",
        "runs a file that was unpacked beside the checkpoint",
        dict_of(call("runpy", "run_path", "net.py")),
        ASKS.format(r"runpy\.run_path"),
    ),
    zip_case(
        "pip",
        "installs a package while it loads",
        dict_of(call("pip", "main", "install")),
        ASKS.format(r"pip\.main"),
    ),
    zip_case(
        "torch.load inside",
        "asks torch itself to load another file, without the safe switch",
        dict_of(call("torch.serialization", "load", "b.pth")),
        ASKS.format(r"torch\.serialization\.load"),
    ),
    zip_case(
        "torch.hub",
        "torch's own downloader of code",
        dict_of(call("torch.hub", "load", "evil/evil", "evil")),
        ASKS.format(r"torch\.hub\.load"),
    ),
    zip_case(
        "getattr chain",
        "builds os.system from harmless names, so that no list of names sees it",
        dict_of(
            b"cbuiltins\ngetattr\n(" + call("builtins", "__import__", "os") + text("system") + b"tR"
            b"(" + text(TOUCH) + b"tR"
        ),
        ASKS.format(r"builtins\.__import__, builtins\.getattr"),
        bait=True,
    ),
    zip_case(
        "compiled code",
        "a code object by marshal, called as a function: no source to grep for",
        dict_of(call("marshal", "loads", "x")),
        ASKS.format(r"marshal\.loads"),
    ),
    zip_case(
        "name from the stack",
        "module and name as computed texts (STACK_GLOBAL), not as a line of the file",
        b"\x80\x04}"
        + text("w")
        + text("posix")
        + text("system")
        + b"\x93("
        + text(TOUCH)
        + b"tRs.",
        ASKS.format(r"posix\.system"),
        bait=True,
    ),
    zip_case(
        "OBJ opcode",
        "an old way to call a class, forgotten by readers that only watch REDUCE",
        dict_of(b"(csubprocess\nPopen\n" + text(TOUCH) + b"o"),
        ASKS.format(r"subprocess\.Popen"),
    ),
    zip_case(
        "INST opcode",
        "a still older one, with the name in the opcode itself",
        dict_of(b"(" + text(TOUCH) + b"iposix\nsystem\n"),
        ASKS.format(r"posix\.system"),
        bait=True,
    ),
    zip_case(
        "extension registry",
        "a global by number (EXT1): no name in the file at all",
        dict_of(b"\x82\x01"),
        r"damaged",
    ),
    zip_case(
        "state with code",
        "an innocent class whose state is set by an attacker's __setstate__",
        dict_of(b"ctorch.nn.modules.module\nModule\n)\x81}" + text("_x") + text("y") + b"sb"),
        r"torch\.nn\.modules\.module\.Module",
    ),
    Case(
        kind="pickle",
        name="module beside the file",
        story="the checkpoint comes in a folder with evil.py, and asks for evil.run",
        build=side_module,
        message=ASKS.format(r"evil\.run"),
    ),
    Case(
        kind="pickle",
        name="os.system in the old format",
        story="without the archive: a bare pickle, as torch.save wrote it until 2020",
        build=lambda folder: compressing(folder, "a.pth", dict_of(call("posix", "system", TOUCH))),
        message=ASKS.format(r"posix\.system"),
        bait=True,
    ),
    file_case(
        "second pickle",
        "the first three pickles of the file are good; scanners have stopped after the first",
        legacy_with_second_pickle,
        ASKS.format(r"posix\.system"),
    ),
    file_case(
        "whole network",
        "torch.save(model) of another network: its tensors are read, none of its classes",
        lambda: saved(nn.Sequential(nn.Conv2d(1, 1, 1))),
        "names do not match the architecture",
    ),
]
CODE_CASES += [
    zip_case(
        "code beside good weights",
        "the weights are right and fit; the shell command waits in the settings beside them",
        lambda: beside_good_weights(call("posix", "system", TOUCH)),
        ASKS.format(r"posix\.system"),
        bait=True,
    ),
    zip_case(
        "code in a harmless object",
        "the settings are an ordinary Namespace, with a call as one of its values",
        lambda: beside_good_weights(
            b"cargparse\nNamespace\n)R}" + text("a") + call("builtins", "eval", PYTHON) + b"sb"
        ),
        ASKS.format(r"argparse\.Namespace, builtins\.eval"),
        bait=True,
    ),
    zip_case(
        "way out by attributes",
        "no dangerous module is named: it climbs from a harmless class to all that is loaded",
        dict_of(
            b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\n" + text("__subclasses__") + b"tR"
        ),
        ASKS.format(r"builtins\.getattr"),
    ),
    zip_case(
        "code within a storage",
        "the pickle of a tensor's numbers holds another pickle, which torch would load as well",
        lambda: dict_of(
            b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n("
            + pickle.dumps(dict_of(call("posix", "system", TOUCH)), 3)[2:-1]
            + b"tRK\x00)))NtR"
        ),
        ASKS.format(r"posix\.system"),
    ),
    zip_case(
        "module within itself",
        "a pickled network that is its own layer: whoever walks it never ends",
        b"\x80\x02cx\nNet\n)\x81q\x00}("
        + text("_parameters")
        + b"}"
        + text("_modules")
        + b"}"
        + text("m")
        + b"h\x00sub.",
        "nested deeper than 100",
    ),
]
BOMBS = [
    zip_case(
        "hash bomb",
        "a dict key of nested tuples: 300 bytes that take 2^60 steps",
        b"\x80\x02}" + doubled(60) + b"K\x01s.",
        r"used up its processor time; .*cpu_seconds 10",
    ),
    zip_case(
        "64 GiB bytearray",
        "a callable that torch's own list allows, with a large number",
        dict_of(b"c__builtin__\nbytearray\n" + pickle.dumps(2**36, 2)[2:-1] + b"\x85R"),
        r"'w' asks for code: builtins\.bytearray; nothing was run",
    ),
    zip_case(
        "text of 2^60 bytes",
        "a length that the file does not have",
        b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"x.",
        r"damaged.* 1152921504606846976 bytes",
    ),
    zip_case(
        "deep nest",
        "a million lists in lists: readers that recurse overflow their stack",
        b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
        "is of type list, not a filled state dict",
    ),
    zip_case(
        "stack without an end",
        "the pickle stops in the middle",
        b"\x80\x02}" + text("w"),
        r"damaged",
    ),
    zip_case(
        "protocol 255", "a pickle of the future", b"\x80\xff}.", "is of type dict, not a filled"
    ),
    zip_case("nothing on the stack", "pops what is not there", b"\x80\x02000000.", r"damaged"),
]


NO_PICKLES = [
    Case(
        kind="pickle",
        name="a web page",
        story="the download was a login page, saved as model.pth",
        build=lambda folder: compressing(folder, "a.pth", b"<!doctype html><title>Sign in"),
        message="neither a zip archive nor a pickle",
    ),
    Case(
        kind="pickle",
        name="nothing",
        story="the download broke off at once",
        build=lambda folder: compressing(folder, "a.pth", b""),
        message="the file is empty",
    ),
    Case(
        kind="pickle",
        name="text pickle",
        story="protocol 0 has no magic number, and runs code as well as any",
        build=lambda folder: compressing(
            folder, "a.pth", f"cposix\nsystem\n(S'{TOUCH}'\ntR.".encode()
        ),
        message="neither a zip archive nor a pickle",
        bait=True,
    ),
]


PICKLES = [*CODE_CASES, *BOMBS, *(file_case(*one) for one in TENSORS), *NO_PICKLES]
