"""A worker's sandbox: once its model is loaded, it can only compute, read files and use its pipes.

A model and its template are untrusted, and a million lines of C++ read them. An attacker who takes
over this code must not reach the network, start programs, affect other processes, or write outside
the cache folder. Linux has two mechanisms that need no privileges: a seccomp filter refuses system
calls by number (network, programs, processes), and Landlock refuses writes by path. Both also apply
to threads that start later, and cannot be undone.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

EPERM, ENOSYS = 1, 38
CLONE_THREAD = 0x10000
O_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_libc = ctypes.CDLL(None, use_errno=True)


class _Machine(NamedTuple):
    """A processor architecture."""

    audit_arch: int  # AUDIT_ARCH_... in linux/audit.h
    column: int  # its column in the tables below


# By the processor, and the bits of an address: a kernel also runs programs of fewer bits.
_MACHINES = {
    ("x86_64", 64): _Machine(0xC000003E, 0),
    ("aarch64", 64): _Machine(0xC00000B7, 1),
    ("riscv64", 64): _Machine(0xC00000F3, 1),
    ("arm", 32): _Machine(0x40000028, 2),
}

# System calls and their numbers on x86_64, on newer architectures (asm-generic/unistd.h), and on
# 32-bit ARM (EABI); None if the architecture lacks the call.
_Numbers = tuple[int | None, int | None, int | None]
_Calls = dict[str, _Numbers]
_SECCOMP: _Calls = {"seccomp": (317, 277, 383)}
_LANDLOCK: _Calls = {
    "landlock_create_ruleset": (444, 444, 444),
    "landlock_add_rule": (445, 445, 445),
    "landlock_restrict_self": (446, 446, 446),
}
_NEVER: _Calls = {
    # network
    "socket": (41, 198, 281), "connect": (42, 203, 283), "bind": (49, 200, 282),
    "listen": (50, 201, 284), "accept": (43, 202, 285), "accept4": (288, 242, 366),
    # programs and processes
    "execve": (59, 221, 11), "execveat": (322, 281, 387), "fork": (57, None, 2),
    "vfork": (58, None, 190),
    # other processes
    "tkill": (200, 130, 238), "rt_sigqueueinfo": (129, 138, 178),
    "rt_tgsigqueueinfo": (297, 240, 363), "pidfd_open": (434, 434, 434),
    "pidfd_send_signal": (424, 424, 424), "pidfd_getfd": (438, 438, 438), "ptrace": (101, 117, 26),
    "process_vm_readv": (310, 270, 376), "process_vm_writev": (311, 271, 377),
    # ways around a filter: calls that the kernel makes for the process, other views of the files
    "io_uring_setup": (425, 425, 425), "io_uring_enter": (426, 426, 426),
    "io_uring_register": (427, 427, 427), "open_by_handle_at": (304, 265, 371),
    "mount": (165, 40, 21), "umount2": (166, 39, 52), "pivot_root": (155, 41, 218),
    "chroot": (161, 51, 61), "unshare": (272, 97, 337), "setns": (308, 268, 375),
    # parts of the kernel that a worker does not need
    "bpf": (321, 280, 386), "perf_event_open": (298, 241, 364), "userfaultfd": (323, 282, 388),
    "keyctl": (250, 219, 311), "add_key": (248, 217, 309), "request_key": (249, 218, 310),
    # permissions of files
    "chmod": (90, None, 15), "fchmodat": (268, 53, 333), "chown": (92, None, 182),
    "lchown": (94, None, 16), "fchownat": (260, 54, 325), "fchmodat2": (452, 452, 452),
    "chown32": (None, None, 212), "lchown32": (None, None, 198),
}  # fmt: skip
# Refused in addition if the kernel lacks Landlock and no folder for writes was given.
_WRITES: _Calls = {
    "creat": (85, None, 8), "truncate": (76, 45, 92), "unlink": (87, None, 10),
    "unlinkat": (263, 35, 328), "rename": (82, None, 38), "renameat": (264, 38, 329),
    "renameat2": (316, 276, 382), "link": (86, None, 9), "linkat": (265, 37, 330),
    "symlink": (88, None, 83), "symlinkat": (266, 36, 331), "mkdir": (83, None, 39),
    "mkdirat": (258, 34, 323), "rmdir": (84, None, 40), "mknod": (133, None, 14),
    "mknodat": (259, 33, 324), "truncate64": (None, None, 193),
}  # fmt: skip
_OPENS: dict[str, tuple[_Numbers, int]] = {  # numbers; index of flags
    "open": ((2, None, 5), 1),
    "openat": ((257, 56, 322), 2),
}
_OPENAT2 = (437, 437, 437)  # its flags are in memory, which a filter cannot read
_CLONE, _CLONE3 = (56, 220, 120), (435, 435, 435)
# Only to itself, for abort():
_OWN_SIGNALS: _Calls = {"kill": (62, 129, 37), "tgkill": (234, 131, 268)}
_X32 = 0x40000000  # numbers from here on belong to a different ABI of x86_64


def bound_writes(folder: str | None) -> bool:
    """The part of the sandbox that covers only this thread, and threads that it starts later.

    For a process that starts threads before it can `enter` the sandbox. False: not supported.
    Raises OSError if the folder cannot be opened.
    """
    machine = _machine()
    has_given_up = machine and _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    return bool(machine and has_given_up and _allow_writes_in(folder, machine))


def enter(
    folder: str | None, *, writes_are_bound: bool | None = None, accepts: bool = False
) -> list[str]:
    """Puts this process into the sandbox. Writes stay allowed in `folder`, which must exist.

    Connections that are open stay so. `accepts`: those of a listening socket may be accepted.
    `writes_are_bound` is what `bound_writes` has returned; None: it was not called.
    Returns a sentence for each missing protection. Raises OSError if the folder cannot be opened.
    """
    machine = _machine()
    if machine is None:
        n_bits, name = _address_bits(), platform.machine()
        return [f"there is no sandbox for {platform.system()} on {name} with {n_bits} bits"]
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return ["this kernel has no sandbox: a process cannot give up privileges"]
    bounds_writes = writes_are_bound
    if bounds_writes is None:
        bounds_writes = _allow_writes_in(folder, machine)
    refuses_all = not bounds_writes and folder is None
    has_filter = _install(_program(machine, refuses_all, accepts), machine)
    missing = []
    if not has_filter:
        missing.append("this kernel has no seccomp: network and programs are allowed")
    if not bounds_writes and not (refuses_all and has_filter):
        missing.append("this kernel has no Landlock: writes are allowed")
    return missing


def _machine() -> _Machine | None:
    """The architecture of this process; None if the tables lack it."""
    name, n_bits = platform.machine(), _address_bits()
    # uname shows the kernel's: armv6l, armv7l, or aarch64, which also runs programs of 32 bits.
    if n_bits == 32 and name.startswith(("arm", "aarch64")):
        name = "arm"
    is_known = platform.system() == "Linux" and sys.byteorder == "little"
    return _MACHINES.get((name, n_bits)) if is_known else None


def _address_bits() -> int:
    return 8 * ctypes.sizeof(ctypes.c_void_p)


# ---- seccomp: filters system calls ---------------------------------------------------------

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FOR_ALL_THREADS = 1, 1
# Classic BPF: load a word; jump if equal, if not less, if any bit is set; return.
_LOAD, _EQUAL, _NOT_LESS, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_...; _REFUSE is combined with an errno


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


_Rule = list[_Instruction]  # decides about one system call; for others, the next rule runs


def _refused(number: int, errno: int = EPERM) -> _Rule:
    return [_Instruction(_EQUAL, 0, 1, number), _Instruction(_RETURN, 0, 0, _REFUSE | errno)]


def _tested(number: int, argument: int, test: int, operand: int, *, refuse_if: bool) -> _Rule:
    """Refuses a call if the test (_EQUAL or _ANY_BIT) of its argument gives `refuse_if`."""
    verdicts = (_REFUSE | EPERM, _ALLOW) if refuse_if else (_ALLOW, _REFUSE | EPERM)
    return [
        _Instruction(_EQUAL, 0, 4, number),
        _Instruction(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument),
        _Instruction(test, 0, 1, operand),
        *(_Instruction(_RETURN, 0, 0, verdict) for verdict in verdicts),
    ]


def _program(machine: _Machine, refuse_writes: bool, accepts: bool = False) -> list[_Instruction]:
    return [
        _Instruction(_LOAD, 0, 0, _ARCH_AT),
        _Instruction(_EQUAL, 1, 0, machine.audit_arch),
        _Instruction(_RETURN, 0, 0, _REFUSE | EPERM),
        _Instruction(_LOAD, 0, 0, _NUMBER_AT),
        _Instruction(_NOT_LESS, 0, 1, _X32),
        _Instruction(_RETURN, 0, 0, _REFUSE | EPERM),
        *chain.from_iterable(_rules(machine.column, refuse_writes, accepts)),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    ]


def _rules(column: int, refuse_writes: bool, accepts: bool = False) -> Iterator[_Rule]:
    never = {name: each for name, each in _NEVER.items() if not (accepts and "accept" in name)}
    yield from map(_refused, _numbers(never, column))
    yield _tested(_CLONE[column], 0, _ANY_BIT, CLONE_THREAD, refuse_if=False)
    yield _refused(_CLONE3[column], ENOSYS)  # the C library falls back to clone
    for number in _numbers(_OWN_SIGNALS, column):
        yield _tested(number, 0, _EQUAL, os.getpid(), refuse_if=False)
    if refuse_writes:
        yield from map(_refused, _numbers(_WRITES, column))
        for numbers, argument in _OPENS.values():
            if (opening := numbers[column]) is not None:
                yield _tested(opening, argument, _ANY_BIT, O_FOR_WRITING, refuse_if=True)
        yield _refused(_OPENAT2[column], ENOSYS)


def _numbers(calls: _Calls, column: int) -> Iterable[int]:
    return [number for numbers in calls.values() if (number := numbers[column]) is not None]


def _install(code: list[_Instruction], machine: _Machine) -> bool:
    instructions = (_Instruction * len(code))(*code)
    program = _Program(len(code), instructions)
    number = _SECCOMP["seccomp"][machine.column]
    flags = ctypes.c_ulong(_FOR_ALL_THREADS)
    return _call(number, _SET_MODE_FILTER, flags, ctypes.byref(program)) == 0


# ---- Landlock: restricts writes to files ---------------------------------------------------

_VERSION = 1  # flag: return the version of the interface
_PATH_BENEATH = 1
# Access rights, by the version that introduced them.
_EXECUTE, _WRITE_FILE, _REMOVE_FILE, _MAKE_REGULAR, _TRUNCATE = 1, 1 << 1, 1 << 5, 1 << 8, 1 << 14
_RIGHTS = {
    1: _EXECUTE | _WRITE_FILE | 0x1FF0,  # 0x1FF0: to remove and create entries of every kind
    2: 1 << 13,  # to move files to another folder
    3: _TRUNCATE,
}


class _Ruleset(ctypes.Structure):
    _fields_ = [("handled_access_fs", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def _allow_writes_in(folder: str | None, machine: _Machine) -> bool:
    """Refuses all other writes of this thread and its children. False: not supported."""
    create, add, restrict = (numbers[machine.column] for numbers in _LANDLOCK.values())
    version = _call(create, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    handled = sum(rights for since, rights in _RIGHTS.items() if since <= version)
    ruleset = _Ruleset(handled)
    fd = _call(create, ctypes.byref(ruleset), ctypes.c_size_t(ctypes.sizeof(ruleset)), 0)
    if fd < 0:
        return False
    try:
        if folder is not None:
            folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            allowed = handled & (_WRITE_FILE | _REMOVE_FILE | _MAKE_REGULAR | _TRUNCATE)
            rule = _PathBeneath(allowed, folder_fd)
            added = _call(add, fd, _PATH_BENEATH, ctypes.byref(rule), 0)
            os.close(folder_fd)
            if added != 0:
                return False
        return _call(restrict, fd, 0) == 0
    finally:
        os.close(fd)


def _call(number: int | None, *arguments: Any) -> int:
    """Makes a system call for which the C library has no function."""
    return int(_libc.syscall(ctypes.c_long(number or -1), *arguments))
