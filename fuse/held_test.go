package fuse

import (
	"bufio"
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// memory is a file whose pages arrive when free is closed.
type memory struct {
	fs.Inode
	begun, free chan struct{}
}

func (m *memory) Getattr(_ context.Context, _ fs.FileHandle, out *gofuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o666, 1<<20
	return 0
}

func (m *memory) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (m *memory) Read(_ context.Context, _ fs.FileHandle, dest []byte, _ int64) (gofuse.ReadResult, syscall.Errno) {
	select {
	case m.begun <- struct{}{}:
	default:
	}
	<-m.free
	return gofuse.ReadResultData(dest), 0
}

type memories struct {
	fs.Inode
	one *memory
}

func (r *memories) OnAdd(ctx context.Context) {
	r.AddChild("memory", r.NewPersistentInode(ctx, r.one, fs.StableAttr{Mode: syscall.S_IFREG}), true)
}

// TestHeldDirectory: who reads a directory of its own into memory that does not arrive, as it is with a
// file system of its own, has the kernel hold it. Nothing of others' is kept for longer by that.
func TestHeldDirectory(t *testing.T) {
	dir, s := mounted(t, everything)
	other := t.TempDir()
	m := &memory{begun: make(chan struct{}, 1), free: make(chan struct{})}
	if _, err := fs.Mount(other, &memories{one: m}, &fs.Options{MountOptions: gofuse.MountOptions{AllowOther: true, DirectMountStrict: true}}); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(other, unix.MNT_DETACH)
	names := &s.executions[len(operations)-1]
	all := func(*kept) bool { return true }

	holder := command(t, dir, 0, fmt.Sprintf(`exec python3 -c '
import ctypes, mmap, os
fd = os.open(%q, os.O_RDWR)
memory = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
os.mkdir("modules/krb5/operations/names/execution/held")
d = os.open("modules/krb5/operations/names/execution/held", os.O_RDONLY | os.O_DIRECTORY)
i = os.open("modules/krb5/operations/names/execution/held/inputs", os.O_RDONLY)
ctypes.CDLL(None).syscall(%d, d, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory))), 4096)
'`, other+"/memory", unix.SYS_GETDENTS64))
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer holder.Wait()
	defer close(m.free)
	<-m.begun
	for _, k := range names.where(all) {
		s.lapse(names, k)
	}
	until(t, "it is about to be forgotten", func() bool {
		s.leaving.mu.Lock()
		defer s.leaving.mu.Unlock()
		return len(s.leaving.set) == 0
	})

	leaver := command(t, dir, 1001, inNames+"mkdir execution/left; cd /; echo made; read -r _")
	in, out := begin(t, leaver)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	if n := len(names.where(all)); n != 1 {
		t.Fatalf("%d are kept", n)
	}
	in.Close()
	leaver.Wait()
	until(t, "what is left behind is dropped, and not paid for", func() bool { return len(names.where(all)) == 0 && s.o.Limits.Kept.Held(1001) == 0 })
}
