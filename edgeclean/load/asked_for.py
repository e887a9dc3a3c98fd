"""What a pickle asks for beside tensors: what is only left unread, and what refuses the file.

Nothing of it is imported or called in either case (`pickles`). That a training script leaves its
settings, numbers of numpy or the class of its optimiser beside the weights is common and harmless.
That a file asks for a shell, a downloader or an evaluator is neither: whoever made it meant to run
something on the machine that loads it, and then his weights are not to be read either. The list of
these names is as incomplete as all such lists, and no safety rests on it.
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_NAMES = 20
# Of PyTorch itself, and how pickles write plain values; whatever else is named is told to the user.
_PLAIN_MODULES = ("torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules of the standard library and others whose business is to run, fetch or write something.
# Not among them: what may as well be a training project's own (`code`, `test`, `commands`).
_MODULES = _words(
    """
    _imp _io _osx_support _posixsubprocess _pyrepl _thread antigravity asyncio atexit bdb cffi cgitb
    cloudpickle codeop compileall cprofile cpickle ctypes _ctypes dbm dill distutils doctest
    ensurepip faulthandler ftplib http httplib idlelib imaplib imp importlib jsonpickle lib2to3
    mailcap marshal modulefinder multiprocessing nntplib nt os paramiko pdb pexpect pickle _pickle
    pip pkg_resources pkgutil platform popen2 poplib posix psutil pty py_compile pydoc readline
    requests rlcompleter runpy setuptools shelve shutil signal site smtplib socket socketserver
    sqlite3 ssl subprocess sys sysconfig tarfile telnetlib tempfile timeit urllib urllib2 urllib3
    venv webbrowser winreg wsgiref xmlrpc zipapp zipfile zipimport
    """
)
_BUILTINS = _words(
    """
    __build_class__ __import__ __loader__ apply breakpoint compile copyright credits delattr eval
    exec execfile exit file globals help input intern license locals open quit raw_input reload
    setattr vars
    """
)
_NAMES = _words(
    """
    bz2.open code.interact code.InteractiveConsole code.InteractiveInterpreter codecs.open
    commands.getoutput commands.getstatusoutput fabric.Connection gzip.open invoke.run
    io.FileIO io.open io.open_code linecache.getline lzma.open mmap.mmap
    numpy.fromfile numpy.genfromtxt numpy.load numpy.loadtxt numpy.memmap numpy.save numpy.savetxt
    operator.attrgetter operator.methodcaller torch.compile torch.load torch.save
    torch.serialization.load torch.serialization.save types.CodeType types.FunctionType
    types.LambdaType types.MethodType types.ModuleType profile.run profile.runctx trace.Trace
    """
)
# Attributes by which code climbs from any class to every module; nested classes are none of them.
_WAYS_OUT = _words(
    """
    __base__ __bases__ __builtins__ __class__ __closure__ __code__ __dict__ __getattribute__
    __globals__ __import__ __loader__ __mro__ __reduce__ __reduce_ex__ __self__ __spec__
    __subclasses__ mro
    """
)
_PLAIN = _words(
    """
    _codecs.encode builtins.dict builtins.list builtins.object builtins.set collections.OrderedDict
    copyreg._reconstructor torch.Size
    """
)
_BELOW = (
    *("logging.config.", "numpy.distutils.", "numpy.f2py.", "numpy.testing."),
    *("torch._inductor.", "torch.distributed.rpc.", "torch.hub.", "torch.jit.", "torch.ops."),
    *("torch.package.", "torch.utils.bottleneck.", "torch.utils.cpp_extension."),
    "torch.utils.model_zoo.",
)


def code_asked_for(names: Iterable[str], attributes: Iterable[str]) -> bool:
    """Return whether a file asks for what runs, fetches or writes something.

    Args:
        names: all that a pickle would import, with full names.
        attributes: all that it would look up by ``getattr``; a nested class, say.
    """
    return any(map(_is_code, names)) or not _WAYS_OUT.isdisjoint(attributes)


def beside_tensors(names: Iterable[str]) -> list[str]:
    """Return what is neither PyTorch's own way to write tensors nor a plain container, sorted."""
    return sorted(name for name in set(names) if not _is_plain(name))


def _is_code(name: str) -> bool:
    root, _, below = name.partition(".")
    builtin = root == "builtins" and below in _BUILTINS
    return builtin or root.lower() in _MODULES or name in _NAMES or name.startswith(_BELOW)


def _is_plain(name: str) -> bool:
    module, _, last = name.rpartition(".")
    storage = module in ("torch", "torch.cuda") and last.endswith(("Storage", "Tensor"))
    return name in _PLAIN or module in _PLAIN_MODULES or storage
