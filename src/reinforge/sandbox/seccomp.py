"""Which system calls user code may make: a seccomp filter as the BPF program the kernel takes.

What the filter stops (EPERM unless said): sockets of every family (a pair of connected stream sockets is allowed, for
event loops; TCP over IPv4 where a worker has a network of its own with hosts it may reach), ptrace and reading other
processes' memory, key rings, userfaultfd, BPF, io_uring, mounts, namespaces, System V and POSIX message queues and
shared memory, memory files, limits, priorities and CPUs of other processes. `clone3`, and every call newer than the
table below, answer ENOSYS, so that the C library takes the older way.
"""

from __future__ import annotations

import errno
import struct
import sys

SELF = 0x7EADBEEF
"""Stands for the process id of the worker, which is not known yet when the program is written."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> column of the tables, AUDIT_ARCH_*. From asm/unistd_64.h and asm-generic/unistd.h of Linux 6.1."""

_FORBIDDEN = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "ioperm": (173, None),
    "iopl": (172, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "sysfs": (139, None),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}

_METADATA = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "truncate": (76, 45),
}
"""Change a file without opening it for writing, which Landlock does not see."""

_ESCAPES = {"setsid": (112, 157), "setpgid": (109, 154)}
"""Leave the process group, which is what is killed where there is no process namespace."""

_SIGNALS = {"tkill": (200, 130), "pidfd_send_signal": (424, 424), "rt_tgsigqueueinfo": (297, 240)}
_SIGNALS_TO_SELF = {"kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138)}

_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR, _SETSOCKOPT, _PRLIMIT, _IOCTL, _FCNTL = (
    (56, 220),
    (435, 435),
    (41, 198),
    (53, 199),
    (54, 208),
    (302, 261),
    (16, 29),
    (72, 25),
)
_FIRST_UNKNOWN = 463
_X32 = 0x40000000
_NEW_NAMESPACE = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETOWN, _F_SETOWN_EX = 8, 15
_AF_UNIX, _AF_INET, _SOCK_STREAM, _SOCK_TYPES = 1, 2, 1, 0xF
_DEFAULT_PROTOCOL, _TCP = 0, 6
_TCP_ULP = 31
"""Option that puts other protocols of the kernel (TLS) onto a connection."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; of an argument the lower half comes first on both machines."""

_Numbers = tuple[int, int | None]


def known_machine() -> bool:
    """Whether there is a table for this machine."""
    return sys.platform == "linux" and _machine() in _ARCHITECTURES


def _machine() -> str:
    import platform

    return platform.machine()


def filter_program(*, own_files_only: bool, own_group_only: bool, own_signals_only: bool, tcp: bool = False) -> bytes:
    """The filter as `struct sock_filter` entries.

    `own_files_only` also forbids changing modes, owners and times of files; `own_group_only` leaving the process
    group; `own_signals_only` signals to any other process, children included. `tcp` lets sockets of TCP over IPv4 be
    made and connected: where to, the network must see to.

    Example:
        >>> program = filter_program(own_files_only=False, own_group_only=False, own_signals_only=False)
        >>> len(program) % 8, len(program) // 8 < 4096
        (0, True)
    """
    column, architecture = _ARCHITECTURES[_machine()]
    program = [
        _entry(_LOAD, _ARCHITECTURE),
        _entry(_EQUAL, architecture, 1, 0),
        _entry(_RETURN, _KILL),
        _entry(_LOAD, _NUMBER),
    ]
    if _machine() == "x86_64":
        program += [_entry(_AT_LEAST, _X32, 0, 1), _entry(_RETURN, _ERRNO | errno.ENOSYS)]
    program += [_entry(_AT_LEAST, _FIRST_UNKNOWN, 0, 1), _entry(_RETURN, _ERRNO | errno.ENOSYS)]
    program += _refuse(_CLONE3[column], errno.ENOSYS)
    names = _FORBIDDEN | (_METADATA if own_files_only else {}) | (_ESCAPES if own_group_only else {})
    names |= _SIGNALS if own_signals_only else {}
    for name, numbers in names.items():
        if not (tcp and name in ("socket", "connect")):
            program += _refuse(numbers[column])
    if tcp:
        program += _unless_tcp(_SOCKET[column])
        program += _unless(_SETSOCKOPT[column], 2, [_TCP_ULP])
    program += _unless_stream_pair(_SOCKETPAIR[column])
    program += _only_if(_PRLIMIT[column], 0, [0])
    program += _unless(_IOCTL[column], 1, [_TIOCSTI, _TIOCLINUX])
    program += _unless_bits(_CLONE[column], 0, _NEW_NAMESPACE)
    if own_signals_only:
        program += _unless(_FCNTL[column], 1, [_F_SETOWN, _F_SETOWN_EX])
        for numbers in _SIGNALS_TO_SELF.values():
            program += _only_if(numbers[column], 0, [0, SELF])
    return b"".join([*program, _entry(_RETURN, _ALLOW)])


def _entry(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int | None, error: int = errno.EPERM) -> list[bytes]:
    return [] if number is None else [_entry(_EQUAL, number, 0, 1), _entry(_RETURN, _ERRNO | error)]


def _argument(number: int, index: int, checks: list[bytes], last: int) -> list[bytes]:
    """For one system call: load an argument, run the checks, end with `last`. Other calls jump over all of it."""
    body = [_entry(_LOAD, _ARGUMENTS + 8 * index), *checks, _entry(_RETURN, last)]
    return [_entry(_EQUAL, number, 0, len(body)), *body]


def _only_if(number: int, index: int, values: list[int]) -> list[bytes]:
    checks = [entry for value in values for entry in (_entry(_EQUAL, value, 0, 1), _entry(_RETURN, _ALLOW))]
    return _argument(number, index, checks, _ERRNO | errno.EPERM)


def _unless(number: int, index: int, values: list[int]) -> list[bytes]:
    refused = _ERRNO | errno.EPERM
    checks = [entry for value in values for entry in (_entry(_EQUAL, value, 0, 1), _entry(_RETURN, refused))]
    return _argument(number, index, checks, _ALLOW)


def _unless_stream_pair(number: int) -> list[bytes]:
    """Pairs of datagram sockets can send to any socket with a name."""
    checks = [
        _entry(_EQUAL, _AF_UNIX, 0, 4),
        _entry(_LOAD, _ARGUMENTS + 8),
        _entry(_AND, _SOCK_TYPES),
        _entry(_EQUAL, _SOCK_STREAM, 0, 1),
        _entry(_RETURN, _ALLOW),
    ]
    return _argument(number, 0, checks, _ERRNO | errno.EPERM)


def _unless_tcp(number: int) -> list[bytes]:
    """No other kind of socket, nor another protocol behind stream sockets (MPTCP, SCTP)."""
    checks = [
        _entry(_EQUAL, _AF_INET, 0, 7),
        _entry(_LOAD, _ARGUMENTS + 8),
        _entry(_AND, _SOCK_TYPES),
        _entry(_EQUAL, _SOCK_STREAM, 0, 4),
        _entry(_LOAD, _ARGUMENTS + 16),
        _entry(_EQUAL, _DEFAULT_PROTOCOL, 1, 0),
        _entry(_EQUAL, _TCP, 0, 1),
        _entry(_RETURN, _ALLOW),
    ]
    return _argument(number, 0, checks, _ERRNO | errno.EPERM)


def _unless_bits(number: int, index: int, bits: int) -> list[bytes]:
    checks = [_entry(_ANY_BIT, bits, 0, 1), _entry(_RETURN, _ERRNO | errno.EPERM)]
    return _argument(number, index, checks, _ALLOW)
