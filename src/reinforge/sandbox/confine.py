"""The program that ties a worker's hands, then becomes the worker. Standard library only, nothing of ours.

Started as `python -I -S confine.py SPEC COMMAND...` by the isolating tiers. SPEC is JSON:

    uid             run as this user and group, or null; needs root
    keep_reading    keep CAP_DAC_READ_SEARCH as that user: Python lies where only root may look. Landlock limits it.
    own_namespace   enter a user namespace if the kernel lets us: the number of processes is then counted in there
    max_processes, max_files, max_cpus
    read, write     paths that Landlock leaves open, or null for no Landlock; "{self}" is our folder in /proc
    list            folder whose names Landlock lets be listed: that of our package, or Python would not find it
    life, folder    descriptor of a pipe that ends with the trainer (all then ends and the folder goes), or null
    seccomp         BPF program in base64, or ""
    self            the constant in it that stands for our process id
    proxy_port      of the listener that is handed out over `channel` (a descriptor), the one thing to connect to from a
                    network of our own; or null

Whatever fails here ends the process: code never runs with less than was asked for.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import resource
import struct
import sys
from typing import Any

PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 22, 36, 38, 47
CLONE_NEWUSER = 0x10000000
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION = 0x20080522
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # landlock_*, the same number on every machine

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
MAKE_DEVICES = 1 << 6 | 1 << 11
MAX_DESCRIPTOR = 1024
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        sys.exit(f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, *values: int) -> None:
    filled = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    check(libc.prctl(option, *filled), f"prctl {option}")


def become(uid: int, keep_reading: bool) -> None:
    """Another user without groups and without capabilities but, where asked for, that of reading."""
    prctl(PR_SET_KEEPCAPS, int(keep_reading))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kept = 1 << CAP_DAC_READ_SEARCH if keep_reading else 0
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    data = struct.pack("=6I", kept, kept, kept, 0, 0, 0)
    check(libc.capset(header, data), "capset")
    if keep_reading:
        prctl(PR_CAP_AMBIENT, 2, CAP_DAC_READ_SEARCH)


def other_tasks() -> int:
    """Processes and threads that this user has already: RLIMIT_NPROC counts them too."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # it ended meanwhile
    return count


def limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def restrict_files(listed: str, read: list[str], write: list[str]) -> None:
    """Landlock: no file but these paths, no TCP, no signal or abstract socket to anybody outside."""
    version = check(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1), "Landlock is missing")
    files = (1 << 13) - 1
    files |= (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0) | (IOCTL_DEVICE if version >= 5 else 0)
    words = [files]
    if version >= 4:
        words.append(0b11)  # bind and connect of TCP
    if version >= 6:
        words.append(0b11)  # abstract unix sockets and signals
    attributes = struct.pack(f"={len(words)}Q", *words)
    size = ctypes.c_size_t(len(attributes))
    ruleset = check(libc.syscall(CREATE_RULESET, attributes, size, 0), "landlock_create_ruleset")
    allow(ruleset, listed, READ_DIR)
    for path in read:
        allow(ruleset, path, (EXECUTE | READ_FILE | READ_DIR) & files)
    for path in write:
        allow(ruleset, path, files & ~(MAKE_DEVICES | IOCTL_DEVICE))
    check(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= FILE_RIGHTS
    rule = struct.pack("=Qi", rights, descriptor)
    check(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    os.close(descriptor)


def restrict_calls(program: bytes, stands_for_self: int) -> None:
    program = program.replace(struct.pack("=I", stands_for_self), struct.pack("=I", os.getpid()))
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    head = Program(len(program) // 8, ctypes.addressof(instructions))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(head))


def end_with(life: int, folder: str) -> None:
    """Leave a shell in our process group that waits for the end of the trainer. User code cannot reach it: it is
    outside of what Landlock allows, and no child of the worker."""
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.dup2(life, 0)
            os.closerange(1, MAX_DESCRIPTOR)
            os.chdir("/")
            os.execv("/bin/sh", ["sh", "-c", 'read line; rm -rf "$0"; kill -KILL 0', folder])
        os._exit(0)
    os.waitpid(child, 0)
    os.close(life)


def hand_out_listener(port: int, channel: int) -> None:
    """Whoever holds the other end of the channel accepts what the worker connects to. None of it stays with us."""
    import socket

    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    with listener, socket.socket(fileno=os.dup(channel)) as sender:
        socket.send_fds(sender, [b"L"], [listener.fileno()])


def confine(spec: dict[str, Any]) -> None:
    if spec["life"] is not None:
        end_with(spec["life"], spec["folder"])
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) > spec["max_cpus"]:
        first = os.getpid() % len(cpus)
        os.sched_setaffinity(0, [cpus[(first + i) % len(cpus)] for i in range(spec["max_cpus"])])
    if spec["proxy_port"] is not None:
        hand_out_listener(spec["proxy_port"], spec["channel"])
    if spec["uid"] is not None:
        become(spec["uid"], spec["keep_reading"])
    counted_alone = spec["uid"] is not None
    if spec["own_namespace"]:
        counted_alone |= libc.unshare(CLONE_NEWUSER) == 0
    limit(resource.RLIMIT_NPROC, spec["max_processes"] + (0 if counted_alone else other_tasks()))
    limit(resource.RLIMIT_NOFILE, spec["max_files"])
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans become the worker's children: it sees what a call leaves behind
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if spec["read"] is not None:
        own = f"/proc/{os.getpid()}"
        restrict_files(spec["list"], [path.replace("{self}", own) for path in spec["read"]], spec["write"])
    if spec["seccomp"]:
        restrict_calls(base64.b64decode(spec["seccomp"]), spec["self"])


if __name__ == "__main__":
    confine(json.loads(sys.argv[1]))
    os.environ.pop("PWD", None)  # set by bwrap
    os.execv(sys.argv[2], sys.argv[2:])
