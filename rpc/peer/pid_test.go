package peer

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

// all is what is known of a process, by field.
func all(p *Info) map[string]any {
	m := map[string]any{"uid": p.UID, "gid": p.GID, "pid": p.PID}
	put(m, "groups", p.Groups)
	put(m, "program", p.Program)
	put(m, "trusted", p.Trusted)
	put(m, "place", p.Place)
	put(m, "apparmor", p.AppArmor)
	put(m, "selinux", p.SELinux)
	put(m, "mountns", p.MountNS)
	return m
}

func put[T any](m map[string]any, name string, v Maybe[T]) {
	if value, known := v.Get(); known {
		m[name] = value
	}
}

// What is said of a process by its number is what is said of a connection of its.
func TestFromPID(t *testing.T) {
	program, attr := self(t), &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "peer")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		program = filepath.Join(dir, "program")
		copySelf(t, program)
		attr.Credential = &syscall.Credential{Uid: 12345, Gid: 23456, Groups: []uint32{7, 23456, 8}}
	}
	l, path := listen(t)
	c := start(t, program, attr, "connect", path)
	_, of := accept(t, l)
	c.ready(t)
	want := all(of)
	got, err := FromPID(int32(c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if is := all(got); !reflect.DeepEqual(is, want) {
		t.Errorf("%v, want %v", is, want)
	}
	if os.Geteuid() == 0 && (got.UID != 12345 || want["program"] != program) {
		t.Errorf("the comparison is about nothing: %v", want)
	}
	c.end(t)
	if _, err := FromPID(int32(c.Process.Pid)); err == nil || !strings.Contains(err.Error(), "no process") {
		t.Errorf("of a process that has ended: %v", err)
	}
	for _, pid := range []int32{0, -1} {
		if _, err := FromPID(pid); err == nil {
			t.Errorf("there is a process %d", pid)
		}
	}
}
