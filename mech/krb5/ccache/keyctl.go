package ccache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// maxKey is the size of the largest key there is, a big_key.
const maxKey = 1 << 20

// Keyrings is the way to KEYRING caches. A process keyring belongs to the thread that made it and
// to threads that one starts; so one thread does all the work, and process and thread caches last
// as long as it does.
type Keyrings struct {
	jobs chan func()
	done chan struct{}
	stop sync.Once
	quit chan struct{}
}

// NewKeyrings starts the thread. Close ends it.
func NewKeyrings() *Keyrings {
	k := &Keyrings{jobs: make(chan func()), done: make(chan struct{}), quit: make(chan struct{})}
	go func() {
		defer close(k.done)
		runtime.LockOSThread() // never unlocked: the thread ends here, and its keyrings with it
		for {
			select {
			case job := <-k.jobs:
				job()
			case <-k.quit:
				return
			}
		}
	}()
	return k
}

// Close ends the thread, and with it the process and thread caches. Every operation after it fails.
func (k *Keyrings) Close() error {
	k.stop.Do(func() { close(k.quit) })
	<-k.done
	return nil
}

// do runs job on the thread. No system call in it waits for anything but memory.
func (k *Keyrings) do(ctx context.Context, name string, job func() error) error {
	var err error
	ran := make(chan struct{})
	select {
	case k.jobs <- func() {
		defer close(ran)
		// A fault over what somebody has put into a key is the end of this job only.
		defer func() {
			if fault := recover(); fault != nil {
				err = fmt.Errorf("panic: %T", fault)
			}
		}()
		err = job()
	}:
		<-ran
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-k.done:
		err = errors.New("closed")
	}
	return keyError(name, err)
}

func keyError(name string, err error) error {
	if _, known := errors.AsType[*Error](err); known || err == nil {
		return err
	}
	e := &Error{Name: name, Code: ErrIO, Err: err}
	switch {
	case errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENFILE):
		e.Code = ErrQuota
		e.Text = "the user's quota of keys is used up, see /proc/key-users; " +
			"remove caches, or raise kernel.keys.maxkeys and maxbytes (for root root_maxkeys and root_maxbytes)"
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYEXPIRED), errors.Is(err, unix.EKEYREVOKED):
		e.Code = ErrNoCache
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Code = ErrAccess
	case errors.Is(err, unix.ENOSYS):
		e.Code, e.Text = ErrKind, "this kernel, or what confines this process, does not let it use keyrings"
	}
	return e
}

// session returns the session keyring to write to. Where the process has none of its own the user's
// is meant, but some kernels would make a new one for the process when written to, unless the
// user's is named.
func session() int {
	s, err1 := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	u, err2 := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_SESSION_KEYRING, false)
	if err1 == nil && err2 == nil && s == u {
		return unix.KEY_SPEC_USER_SESSION_KEYRING
	}
	return unix.KEY_SPEC_SESSION_KEYRING
}

func addKey(kind, name string, payload []byte, ring int) (int, error) {
	id, err := unix.AddKey(kind, name, payload, ring)
	return id, os.NewSyscallError("add_key", err)
}

func search(ring int, kind, name string) (int, error) {
	id, err := unix.KeyctlSearch(ring, kind, name, 0)
	return id, os.NewSyscallError("keyctl_search", err)
}

// readKey returns a key's payload, which the caller clears if it is secret.
func readKey(id int) ([]byte, error) {
	for size := 4096; ; {
		b := make([]byte, size)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0)
		switch {
		case err != nil:
			return nil, os.NewSyscallError("keyctl_read", err)
		case n <= len(b):
			return b[:n], nil
		case n > maxKey:
			return nil, fmt.Errorf("key %d has %d bytes, expected at most %d", id, n, maxKey)
		}
		clear(b)
		size = n
	}
}

// keys returns the keys linked from a keyring.
func keys(ring int) ([]int, error) {
	b, err := readKey(ring)
	if err != nil {
		return nil, err
	}
	var ids []int
	for ; len(b) >= 4; b = b[4:] {
		ids = append(ids, int(int32(binary.NativeEndian.Uint32(b))))
	}
	return ids, nil
}
