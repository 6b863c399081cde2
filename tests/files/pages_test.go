package files

import (
	"testing"

	"gssproxyd/tests/lab"
)

// TestPages: an open file is a conversation of its own also where the kernel reads it for splice(2),
// sendfile(2) and mmap(2): the pages that these read belong to the file's inode, which is everybody's.
func TestPages(t *testing.T) {
	m := newMount(t, "")
	out, err := m.run(t, lab.Root, "/usr/bin/python3", "-u", "-c", calls+`
import mmap
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
read, write = os.pipe2(os.O_NONBLOCK)
# What write(2) does with a page that cannot be read is EFAULT, where a load is a signal.
def mapped(fd):
    at = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
    def look():
        call("write", write, at, 4096)
        return os.read(read, 1 << 16).rstrip(b"\0")
    return look
def spliced(fd):
    def look():
        os.splice(fd, write, 1 << 16)
        return os.read(read, 1 << 16)
    return look
def sent(fd):
    def look():
        os.sendfile(write, fd, None, 1 << 16)
        return os.read(read, 1 << 16)
    return look
nothing = b"", "EAGAIN", "EFAULT", "EIO", "EINVAL", "ENODEV"
for way in mapped, spliced, sent:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        become(2001)
        fd = transact()
        look = way(fd)
        os.write(fd, b" " * 4000) # by which the kernel takes the file for longer
        theirs.send(b"x")
        theirs.recv(1)
        says("what another user is answered, " + way.__name__, look, *nothing)
        os._exit(0)
    ours.recv(1)
    if os.fork() == 0:
        become(2002)
        fd = transact()
        look = way(fd)
        os.write(fd, ask)
        try: look()
        except OSError: pass
        os._exit(0)
    os.wait()
    ours.send(b"x")
    os.wait()
print("done")
`, m.dir, "HTTP@"+lab.Host)
	if err != nil || out != "done\n" {
		t.Errorf("%v: %.600s", err, out)
	}
}
