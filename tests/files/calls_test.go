package files

import (
	"os"
	"testing"

	"gssproxyd/tests/lab"
)

// calls is the begin of programs in Python that make system calls and say what does not end as it has to.
const calls = `
import ctypes, errno, fcntl, json, os, select, signal, socket, stat, struct, sys
fs, target = sys.argv[1], sys.argv[2]
ops = fs + "/modules/krb5/operations/"
init, names, status = ops + "init/", ops + "names/", fs + "/modules/krb5/status"
ask = json.dumps({"target": target}).encode()
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    r = getattr(libc, name)(*args)
    if r < 0: raise OSError(ctypes.get_errno(), name)
    return r
def says(what, f, *want):
    try: r = f()
    except OSError as e: r = errno.errorcode[e.errno]
    if r not in want: print(what, "is", r, "and not", *want)
def opened(path, flags, **more):
    return os.close(os.open(path, flags, **more))
def become(uid):
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
def transact(flags=0): return os.open(init + "transact", os.O_RDWR | flags)
def answer(fd): return json.loads(os.read(fd, 1 << 16))
`

// TestCalls: every other system call on what is open here, or has a name, does what it does elsewhere or
// has its number.
func TestCalls(t *testing.T) {
	m := newMount(t, "")
	out, err := m.run(t, both, "/usr/bin/python3", "-u", "-c", calls+`
read, write = os.pipe2(os.O_NONBLOCK)
tmp = os.open(os.environ["HOME"] + "/tmp", os.O_RDWR | os.O_CREAT)
os.write(tmp, ask)
e = init + "execution/x"
os.mkdir(e)
i, st, fd = os.open(e + "/inputs", os.O_RDWR), os.open(status, os.O_RDONLY), transact()
text = os.read(st, 1 << 16)

# What the kernel moves: to here, and not from here.
os.write(write, ask)
says("splice to", lambda: os.splice(read, fd, len(ask)), len(ask))
says("what was moved", lambda: answer(fd)["established"], False)
says("sendfile to", lambda: os.sendfile(fd, tmp, 0, 1 << 16), len(ask))
says("what was sent", lambda: answer(fd)["established"], False)
says("sendfile from", lambda: os.sendfile(write, st, 0, 1 << 16), 0, "EIO", "EINVAL", "ENODEV")
says("copy_file_range from", lambda: os.copy_file_range(st, tmp, 1 << 16, 0, 100), 0, "EXDEV")
says("copy_file_range to", lambda: os.copy_file_range(tmp, i, len(ask), 0, 0), "EXDEV")
says("clone", lambda: fcntl.ioctl(i, 0x40049409, tmp), "EXDEV", "ENOTSUP")

# How it is opened, and where it is read.
for flags in (0, os.O_DIRECT, os.O_APPEND, os.O_SYNC, os.O_NONBLOCK, os.O_TRUNC, os.O_CREAT, os.O_NOFOLLOW):
    f = transact(flags)
    for round in range(2):
        says("written with %x" % flags, lambda: os.write(f, ask), len(ask))
        says("read with %x" % flags, lambda: answer(f)["established"], False)
        says("refused with %x" % flags, lambda: os.write(f, b"x"), "EINVAL")
        says("why with %x" % flags, lambda: answer(f)["reason"], "bad-argument")
    os.close(f)
says("read directly", lambda: os.read(os.open(status, os.O_RDONLY | os.O_DIRECT), 4096), text, b"")
for flags, want in ((os.O_NOATIME, "EPERM"), (os.O_CREAT | os.O_EXCL, "EEXIST"), (os.O_DIRECTORY, "ENOTDIR")):
    says("open with %x" % flags, lambda: transact(flags), want)
for off in (1, 7, 4095, 1 << 40):
    says("preadv at %d" % off, lambda: os.preadv(fd, [bytearray(3), bytearray(5)], off), "ESPIPE")
    says("pwritev at %d" % off, lambda: os.pwritev(fd, [b"{", b"}"], off), "ESPIPE")
    says("preadv of status at %d" % off, lambda: os.preadv(st, [bytearray(3), bytearray(5)], off), len(text[off:off + 8]))
    says("pwritev of inputs at %d" % off, lambda: os.pwritev(i, [b" ", b"  "], off), 3)
os.writev(fd, [ask[:5], ask[5:9], ask[9:]])
parts = [bytearray(9), bytearray(1), bytearray(1 << 16)]
n = os.readv(fd, parts)
says("readv of writev", lambda: json.loads(b"".join(parts)[:n])["established"], False)

# What is open.
uint = struct.pack
for name, want, f in (
    ("fsync", ("ENOTSUP", None), os.fsync), ("fdatasync", ("ENOTSUP", None), os.fdatasync),
    ("syncfs", (0,), lambda f: call("syncfs", f)), ("sync_file_range", (0, "ESPIPE"), lambda f: call("sync_file_range", f, ctypes.c_long(0), ctypes.c_long(0), 7)),
    ("fallocate", ("ENOTSUP", "ESPIPE"), lambda f: call("fallocate", f, 0, ctypes.c_long(0), ctypes.c_long(9))),
    ("punch", ("ENOTSUP", "ESPIPE"), lambda f: call("fallocate", f, 3, ctypes.c_long(0), ctypes.c_long(9))),
    ("fadvise", (None, "ESPIPE"), lambda f: os.posix_fadvise(f, 0, 0, os.POSIX_FADV_WILLNEED)),
    ("readahead", (0, "EINVAL"), lambda f: call("readahead", f, ctypes.c_long(0), 4096)),
    ("flock", (None,), lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    ("lock", (None,), lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 0)),
    ("lease", ("EACCES", 0), lambda f: fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)),
    ("notify", ("ENOTDIR",), lambda f: fcntl.fcntl(f, fcntl.F_NOTIFY, fcntl.DN_MODIFY)),
    ("seal", ("EINVAL",), lambda f: fcntl.fcntl(f, 1033, 1)),
    ("ioctl", ("ENOTTY",), lambda f: fcntl.ioctl(f, 0x5413, b" " * 8)), # TIOCGWINSZ
    ("flags", ("ENOTTY", "EACCES"), lambda f: fcntl.ioctl(f, 0x80086601, b" " * 8)), # FS_IOC_GETFLAGS
    ("freeze", ("EPERM",), lambda f: fcntl.ioctl(f, 0xC0045877, 0)),
    ("poll", (True,), lambda f: bool(select.select([f], [f], [], 60)[0])),
    ("epoll", ("EPERM", None), lambda f: select.epoll().register(f)),
    ("fchmod", ("EPERM",), lambda f: os.fchmod(f, 0o777)), ("fchown", ("EPERM",), lambda f: os.fchown(f, 2001, 2001)),
    ("futimes", ("EPERM", None), lambda f: os.utime(f, (1, 1))),
    ("fsetxattr", ("ENOTSUP",), lambda f: os.setxattr(f, "user.x", b"x")), ("flistxattr", ([], "ENOTSUP"), os.listxattr),
    ("truncate to more", ("EINVAL",), lambda f: os.ftruncate(f, 1 << 40)),
    ("exec", ("EACCES",), lambda f: os.execve(f, ["x"], {})),
    ("chdir", ("ENOTDIR",), os.fchdir), ("mount", ("EPERM",), lambda f: call("syscall", 428, f, b"", 0x1001)), # open_tree, a clone
):
    says(name + " of transact", lambda: f(fd), *want)
    says(name + " of inputs", lambda: f(i), *want)
for whence in (os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_END, 9):
    says("lseek %d of transact" % whence, lambda: os.lseek(fd, 0, whence), "ESPIPE", "EINVAL")
    says("lseek %d of status" % whence, lambda: os.lseek(st, 0, whence), 0, "ENXIO", "EINVAL")

# What has a name: ours, what is in it, everybody's, and none.
no = "EPERM", "EACCES", "ENOTSUP", "EROFS"
watch = call("inotify_init1", os.O_NONBLOCK)
handle = ctypes.create_string_buffer(uint("Ii", 128, 0) + b" " * 128)
for name, want, f in (
    ("chmod", ("EPERM",), lambda p: os.chmod(p, 0o777)), ("chown", ("EPERM",), lambda p: os.chown(p, 2001, 2001)), ("given away", ("EPERM",), lambda p: os.chown(p, 2002, 2002)),
    ("utimes", ("EPERM", "EACCES", None), lambda p: os.utime(p)), ("times made up", ("EPERM", None), lambda p: os.utime(p, (1, 1))),
    ("setxattr", no, lambda p: os.setxattr(p, "user.x", b"x")), ("trusted xattr", ("EPERM", "ENOTSUP"), lambda p: os.setxattr(p, "trusted.x", b"x")),
    ("ACL", ("ENOTSUP", "EPERM"), lambda p: os.setxattr(p, "system.posix_acl_access", uint("<IHHIHHIHHI", 2, 1, 7, 2**32-1, 4, 7, 2**32-1, 32, 7, 2**32-1))),
    ("getxattr", ("ENOTSUP", "ENODATA"), lambda p: os.getxattr(p, "user.x")), ("capability", ("EINVAL", "EPERM"), lambda p: os.setxattr(p, "security.capability", b"x" * 20)),
    ("link", no, lambda p: os.link(p, init + "execution/link")), ("link out", ("EXDEV", "EPERM"), lambda p: os.link(p, os.environ["HOME"] + "/link")),
    ("rename", no + ("EINVAL",), lambda p: os.rename(p, init + "execution/other")), ("rename out", ("EXDEV", "EACCES"), lambda p: os.rename(p, os.environ["HOME"] + "/other")),
    ("exchange", no + ("EINVAL",), lambda p: call("renameat2", -100, p.encode(), -100, e.encode(), 2) or "exchanged" if p != e else "EPERM"),
    ("unlink", no + ("EISDIR",), os.unlink), ("swapon", ("EPERM",), lambda p: call("swapon", p.encode(), 0)), ("chroot", ("EPERM", "ENOTDIR"), os.chroot),
    ("quota", ("EPERM", "ENOTBLK", "ENOSYS", "ESRCH"), lambda p: call("quotactl", 0x80000701, p.encode(), 0, None)), ("pivot_root", ("EPERM",), lambda p: call("syscall", 155, p.encode(), p.encode())),
    ("inotify", (True,), lambda p: call("inotify_add_watch", watch, p.encode(), 0xfff) > 0),
    ("handle", (0, "ENOTSUP"), lambda p: call("name_to_handle_at", -100, p.encode(), handle, ctypes.byref(ctypes.c_int()), 0)),
    ("open by handle", ("EPERM",), lambda p: call("open_by_handle_at", st, handle, os.O_RDWR)),
    ("access", (True,), lambda p: os.access(p, os.R_OK)), ("statfs", (True,), lambda p: os.statvfs(p).f_blocks == 0),
):
    for p in e, e + "/inputs", status, ops + "init":
        says(name + " of " + p, lambda: f(p), *want)
for name, want, f in (
    ("mknod", no, lambda p: os.mknod(p, 0o600 | stat.S_IFREG)), ("a device", no, lambda p: os.mknod(p, 0o600 | stat.S_IFCHR, 0x103)),
    ("fifo", no, os.mkfifo), ("symlink", no, lambda p: os.symlink("/etc/passwd", p)),
    ("bind", no, lambda p: os.chdir(os.path.dirname(p)) or socket.socket(socket.AF_UNIX).bind(os.path.basename(p))),
    ("open", no, lambda p: opened(p, os.O_CREAT | os.O_RDWR)), ("open nothing", ("ENOENT",), lambda p: opened(p, os.O_RDWR)),
    ("into", ("EXDEV",), lambda p: os.rename(os.environ["HOME"] + "/tmp", p)), ("link into", ("EXDEV",), lambda p: os.link(os.environ["HOME"] + "/tmp", p)),
    ("rmdir", ("ENOENT",), os.rmdir), ("unlink", ("ENOENT",), os.unlink),
):
    for dir in init + "execution", e, init, fs:
        says(name + " in " + dir, lambda: f(dir + "/none"), *want)
for dir, want in ((e, "EPERM"), (init, "EACCES"), (fs, "EACCES")):
    says("mkdir in " + dir, lambda: os.mkdir(dir + "/none"), want)
for dir in (init, init + "execution", fs + "/contexts"):
    says("rmdir of " + dir, lambda: os.rmdir(dir), "EPERM", "EACCES", "EBUSY")

# openat2: where a path leads to does not change who asks.
def openat2(dir, path, resolve):
    os.close(call("syscall", 437, dir, path.encode(), ctypes.create_string_buffer(uint("QQQ", os.O_RDWR, 0, resolve), 24), 24))
d, up = os.open(init, os.O_PATH), os.open(os.path.dirname(fs), os.O_PATH)
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = 1, 2, 4, 8, 16, 32
for resolve, want in ((0, None), (NO_XDEV, None), (NO_MAGICLINKS | NO_SYMLINKS, None), (BENEATH, None), (IN_ROOT, None)):
    says("openat2 %d" % resolve, lambda: openat2(d, "transact", resolve), want)
says("openat2 of what is known", lambda: openat2(d, "transact", CACHED), None, "EAGAIN")
says("openat2 up", lambda: openat2(d, "../accept/transact", BENEATH), "EXDEV")
says("openat2 up in a root", lambda: openat2(d, "../../transact", IN_ROOT), None)
says("openat2 across", lambda: openat2(up, init[len(os.path.dirname(fs)) + 1:] + "transact", NO_XDEV), "EXDEV")
says("openat2 by a link of proc", lambda: openat2(-100, "/proc/self/fd/%d/transact" % d, NO_MAGICLINKS), "ELOOP")
says("the same", lambda: openat2(-100, "/proc/self/fd/%d/transact" % d, 0), None)

# And all of it is as it was.
says("its mode", lambda: oct(os.stat(e).st_mode & 0o7777), "0o700")
says("its owner", lambda: os.stat(e).st_uid, 2001)
says("what there is", lambda: sorted(os.listdir(e)), ["control", "error", "inputs", "outputs"])
says("what is beside it", lambda: os.listdir(init + "execution"), ["x"])
f = transact()
says("asked again", lambda: os.write(f, ask), len(ask))
says("answered again", lambda: answer(f)["established"], False)
os.chdir("/")
os.rmdir(e)
print("done")
`, m.dir, "HTTP@"+lab.Host)
	if err != nil || out != "done\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// TestHandedOn: what is handed on in other ways than as an open file is opened again, by who does; and
// an open file asks as who opened it, whoever shares it.
func TestHandedOn(t *testing.T) {
	lab.NeedPrograms(t, "/usr/bin/strace", "/usr/bin/unshare")
	m := newMount(t, "")
	setuid := m.Path("setuid")
	b, err := os.ReadFile("/usr/bin/dd")
	check(t, err)
	check(t, os.WriteFile(setuid, b, 0o755))
	check(t, os.Chmod(setuid, os.ModeSetuid|0o755))
	out, err := m.run(t, lab.Root, "/usr/bin/python3", "-u", "-c", calls+`
import re, subprocess
setuid = sys.argv[3]
def whose(text): return re.search(r"service/(\w+) .* matches", text.decode() + "\nservice/nobody matches").group(1) if "matches" in text.decode() else "nobody"
def who(fd): return whose(os.read(fd, 1 << 16))
def at(uid, f): # in a process of that user's
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if uid: become(uid)
            f()
        except BaseException as e: print("uid", uid, repr(e))
        os._exit(0)
    os.waitpid(pid, 0)
ours, theirs = socket.socketpair()
def send(*fds): socket.send_fds(ours, [b"x"], fds)
def receive(): return socket.recv_fds(theirs, 1, 9)[1]
def again(fd, flags): return os.open("/proc/self/fd/%d" % fd, flags)
e = init + "execution/x"

# Paths that are open as such: of transact, status, an execution and its files.
def first():
    os.mkdir(e)
    send(*(os.open(p, os.O_PATH) for p in (init + "transact", status, e, e + "/inputs")), os.open(e + "/inputs", os.O_RDWR))
    theirs.close()
    ours.recv(1) # the leader of its session stays
def others(uid, name, asks, enters):
    tr, st, dir, i, open_i = receive_once
    def f():
        says("read as %d" % uid, lambda: os.read(tr, 1), "EBADF")
        says("status of %d" % uid, lambda: who(again(st, os.O_RDONLY)), name)
        says("transact of %d" % uid, lambda: os.write(again(tr, os.O_RDWR), ask), *asks)
        says("transact of %d to write" % uid, lambda: os.write(again(tr, os.O_WRONLY), ask), "EACCES")
        says("an execution's inputs, for %d" % uid, lambda: again(i, os.O_RDWR), "EACCES")
        says("inputs that are open, again, for %d" % uid, lambda: again(open_i, os.O_RDWR), "EACCES")
        for file, flags in ("inputs", os.O_RDWR), ("outputs", os.O_RDONLY), ("control", os.O_WRONLY):
            says(file + " of an execution, for %d" % uid, lambda: os.open(file, flags, dir_fd=dir), *enters)
        says("its list, for %d" % uid, lambda: os.listdir(again(dir, os.O_RDONLY)), "EACCES", *[["control", "error", "inputs", "outputs"]] * (uid in (0, 2001)))
    at(uid, f)
pid = os.fork()
if pid == 0:
    os.setsid()
    become(2001)
    first()
    os._exit(0)
receive_once = receive()
others(2003, "nobody", ("EACCES",), ("EACCES",))
others(2002, "client", (len(ask),), ("EACCES",))
others(0, "root", ("EACCES",), ("EACCES", "ENOENT"))
others(2001, "both", (len(ask),), ("EACCES",)) # in another session

# By the handle that names it below all paths.
def handle(path):
    h, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + b" " * 128), ctypes.c_int()
    return h if call("name_to_handle_at", -100, path.encode(), h, ctypes.byref(mount), 0) == 0 else None
def by_handle(path, flags): return call("open_by_handle_at", root, handle(path), flags)
root = os.open(fs, os.O_RDONLY)
says("status by its handle", lambda: who(by_handle(status, os.O_RDONLY)), "root", "ENOTSUP", "ESTALE")
says("transact by its handle", lambda: os.write(by_handle(init + "transact", os.O_RDWR), ask), "EACCES", "ENOTSUP", "ESTALE")
says("inputs by its handle", lambda: by_handle("/proc/self/fd/%d" % receive_once[3], os.O_RDWR), "EACCES", "ENOTSUP", "ESTALE", "ELOOP")

# A root process that opens what a process of somebody else's has open.
for fd in os.listdir("/proc/%d/fd" % pid):
    fd = "/proc/%d/fd/%s" % (pid, fd)
    if os.readlink(fd).endswith("inputs"): says("root, of a user's", lambda: os.open(fd, os.O_RDWR), "EACCES")
ours.close(); theirs.close()
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)

# A table of files that two users share: clone(CLONE_FILES).
def sharing():
    os.setgroups([])
    child = call("syscall", 56, ctypes.c_long(0x400 | signal.SIGCHLD), 0, 0, 0, 0)
    if child == 0:
        become(2002)
        os.dup2(os.open(status, os.O_RDONLY), 50)
        f = transact()
        os.dup2(f, 51)
        os._exit(0)
    os.waitpid(child, 0)
    become(2003)
    says("status, of the other one's table", lambda: who(50), "client")
    says("transact, of the other one's table", lambda: os.write(51, ask), len(ask))
    says("its answer", lambda: answer(51)["established"], False)
    says("his own", lambda: who(os.open(status, os.O_RDONLY)), "nobody")
    says("his own transact", transact, "EACCES")
at(0, sharing)

# Programs that have more rights: with a file that is open, and with a path.
def more():
    f = transact()
    p = subprocess.run([setuid, "of=" + init + "transact", "status=none"], input=ask, capture_output=True)
    says("a path of ours", lambda: b"Permission denied" in p.stderr, True)
    p = subprocess.run([setuid, "status=none"], input=ask, stdout=f, stderr=subprocess.PIPE)
    says("a file of ours", lambda: (p.returncode, p.stderr), (0, b""))
    says("asked as its opener", lambda: answer(f)["established"], False)
    e = init + "execution/y"
    os.mkdir(e)
    p = subprocess.run([setuid, "of=" + e + "/inputs", "status=none"], input=ask, capture_output=True)
    says("inputs of ours", lambda: (p.returncode, os.stat(e + "/inputs").st_size, os.read(os.open(e + "/inputs", os.O_RDONLY), 99)), (1, 0, b""))
    os.rmdir(e)
at(2001, more)

# Who is traced, and who is root in a user namespace of his own, is himself.
cat = "cat " + status
for uid, name in (2001, "both"), (2003, "nobody"):
    for before in ["strace", "-f", "-o", "/dev/null"], ["unshare", "-U"], ["unshare", "-U", "-r"], ["unshare", "-U", "-r", "-m"]:
        at(uid, lambda: says(" ".join(before), lambda: whose(subprocess.run(before + ["cat", status], stdout=subprocess.PIPE).stdout), name))
        at(uid, lambda: says("keys, " + " ".join(before), lambda: subprocess.run(before + ["cat", fs + "/keys"], capture_output=True).returncode, 1))
print("done")
`, m.dir, "HTTP@"+lab.Host, setuid)
	if err != nil || out != "done\n" {
		t.Errorf("%v: %s", err, out)
	}
}
