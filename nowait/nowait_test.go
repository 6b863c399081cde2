package nowait_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/nowait"
)

// pair returns the ends of a connection that does not block.
func pair(t *testing.T) (a, b uintptr) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(ends[0]); unix.Close(ends[1]) })
	return uintptr(ends[0]), uintptr(ends[1])
}

func TestSocket(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 4)
	if n, err := nowait.Read(b, buf); n != 0 || err != unix.EAGAIN {
		t.Errorf("nothing to be read: %d, %v", n, err)
	}
	if there, err := nowait.Poll(b, unix.POLLIN); there != 0 || err != nil {
		t.Errorf("nothing to be read: %#x, %v", there, err)
	}
	if n, err := nowait.Write(a, []byte("hello")); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if there, err := nowait.Poll(b, unix.POLLIN); there != unix.POLLIN || err != nil {
		t.Errorf("something to be read: %#x, %v", there, err)
	}
	if n, err := nowait.Read(b, buf); n != 4 || err != nil || string(buf) != "hell" {
		t.Errorf("%d, %v, %q", n, err, buf)
	}
	if n, err := nowait.Read(b, buf); n != 1 || err != nil || buf[0] != 'o' {
		t.Errorf("%d, %v, %q", n, err, buf)
	}
	full := make([]byte, 1<<20)
	for {
		n, err := nowait.Write(a, full)
		if err == unix.EAGAIN {
			break
		}
		if n <= 0 || err != nil {
			t.Fatal(n, err)
		}
	}
	unix.Shutdown(int(b), unix.SHUT_WR)
	if n, err := nowait.Read(a, buf); n != 0 || err != nil {
		t.Errorf("the end: %d, %v", n, err)
	}
	if n, err := nowait.Read(a, nil); n != 0 || err != nil {
		t.Errorf("no room: %d, %v", n, err)
	}
}

// TestOrder: the race detector knows that who has read something comes after who has written it.
func TestOrder(t *testing.T) {
	a, b := pair(t)
	said := ""
	go func() {
		said = "hello"
		nowait.Write(a, []byte{0})
	}()
	for {
		if _, err := nowait.Read(b, make([]byte, 1)); err == nil {
			break
		}
	}
	if said != "hello" {
		t.Errorf("%q", said)
	}
}
