package peer

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gssproxyd/tests/lab"
)

// onThread calls f in a thread of its own, which ends with it. It is not this process's first one,
// which ends with nothing.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			begun := make(chan struct{})
			onThread(func() { close(begun); f() })
			<-begun // until then the first thread is this goroutine's
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
}

// thread starts a thread that does that and waits until the test has ended, and returns its number.
func thread(t testing.TB, do func() error) (tid int32) {
	t.Helper()
	begun, end, ended := make(chan int32), make(chan struct{}), make(chan struct{})
	onThread(func() {
		defer close(ended)
		if err := do(); err != nil {
			t.Error(err)
		}
		begun <- int32(unix.Gettid())
		<-end
	})
	t.Cleanup(func() {
		close(end)
		<-ended
	})
	return <-begun
}

func nothing() error { return nil }

var uid, gid = uint32(os.Geteuid()), uint32(os.Getegid())

func open(t *testing.T, tid int32, uid, gid uint32) *Opener {
	t.Helper()
	o, err := FromThread(tid, uid, gid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// A thread is its process, of which the same is said as by its number.
func TestFromThread(t *testing.T) {
	attr := &syscall.SysProcAttr{Setsid: true}
	owner, group := uid, gid
	if uid == 0 {
		owner, group = 12345, 23456
		attr.Credential = &syscall.Credential{Uid: owner, Gid: group, Groups: []uint32{7, group, 8}}
	}
	program := self(t)
	if uid == 0 {
		dir, err := os.MkdirTemp("", "peer")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		program = dir + "/program"
		copySelf(t, program)
	}
	c := start(t, program, attr, "hold")
	c.ready(t)
	want, err := FromPID(int32(c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/" + strconv.Itoa(c.Process.Pid) + "/task")
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, thread := range threads {
		tid, err := strconv.ParseInt(thread.Name(), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		o := open(t, int32(tid), owner, group)
		if is := all(o.Info); !reflect.DeepEqual(is, all(want)) {
			t.Errorf("thread %d: %v, want %v", tid, is, all(want))
		}
		if o.UID != owner || o.GID != group || o.PID != int32(c.Process.Pid) || o.Session.ID != o.PID || o.Err() != nil {
			t.Errorf("thread %d: %+v, %v", tid, o, o.Err())
		}
	}
}

// This process has a thread that is not its first.
func TestFromOwnThread(t *testing.T) {
	tid := thread(t, nothing)
	o := open(t, tid, uid, gid)
	session, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	if int(tid) == os.Getpid() || o.PID != int32(os.Getpid()) || o.Session.ID != int32(session) {
		t.Errorf("thread %d: process %d, session %d; want %d, %d", tid, o.PID, o.Session.ID, os.Getpid(), session)
	}
	if name, known := o.Program.Get(); !known || name != self(t) {
		t.Errorf("%q, known %t", name, known)
	}
}

// Who acts with the ids of somebody else is nobody.
func TestFromThreadOther(t *testing.T) {
	needRoot(t)
	set := func(call uintptr, ids ...uintptr) func() error {
		return func() error {
			ids := append(ids, 0, 0)
			if _, _, e := unix.RawSyscall(call, ids[0], ids[1], ids[2]); e != 0 { // of this thread alone
				return e
			}
			return nil
		}
	}
	const keep = ^uintptr(0)
	for name, test := range map[string]struct {
		do       func() error
		uid, gid uint32
		want     bool
	}{
		"itself":                             {nothing, 0, 0, true},
		"a uid in the request":               {nothing, 65534, 0, false},
		"a gid in the request":               {nothing, 0, 65534, false},
		"a uid for files":                    {set(unix.SYS_SETFSUID, 65534), 65534, 0, false},
		"a gid for files":                    {set(unix.SYS_SETFSGID, 65534), 0, 65534, false},
		"a uid for files, not in force":      {set(unix.SYS_SETFSUID, 65534), 0, 0, false},
		"a gid for files, not in force":      {set(unix.SYS_SETFSGID, 65534), 0, 0, false},
		"an effective uid of this thread":    {set(unix.SYS_SETRESUID, keep, 65534, keep), 65534, 0, true},
		"an effective gid of this thread":    {set(unix.SYS_SETRESGID, keep, 65534, keep), 0, 65534, true},
		"an effective uid, the process's":    {set(unix.SYS_SETRESUID, keep, 65534, keep), 0, 0, false},
		"a real uid that is somebody else's": {set(unix.SYS_SETRESUID, 65534, keep, keep), 0, 0, true},
	} {
		o, err := FromThread(thread(t, test.do), test.uid, test.gid)
		if (err == nil) != test.want || err != nil && !strings.Contains(err.Error(), "somebody else") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if o.UID != test.uid || o.GID != test.gid {
				t.Errorf("%s: uid %d, gid %d", name, o.UID, o.GID)
			}
			o.Close()
		}
	}
}

// Who is not there, or is no process, is nobody.
func TestFromThreadNobody(t *testing.T) {
	dead := make(chan int32)
	onThread(func() { dead <- int32(unix.Gettid()) })
	tid := <-dead
	lab.Await(t, "the end of a thread", func() bool {
		_, err := os.Stat(proc(tid))
		return errors.Is(err, os.ErrNotExist)
	})
	c := start(t, self(t), nil, "hold")
	c.ready(t)
	c.end(t)
	for tid, want := range map[int32]string{0: "not visible", -1: "not visible", tid: "has ended", int32(c.Process.Pid): "has ended"} {
		if _, err := FromThread(tid, uid, gid); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %s", tid, err, want)
		}
	}
	if comm, err := readFile("/proc/2/comm"); err == nil && string(comm) == "kthreadd\n" {
		if _, err := FromThread(2, 0, 0); err == nil || !strings.Contains(err.Error(), "of the kernel") {
			t.Errorf("a kernel thread: %v", err)
		}
	}
}

// What is read at OPEN stays true of the process when it has ended. What is wanted later is not
// known, and after Close nothing can be decided by that.
func TestOpenerReadNow(t *testing.T) {
	for _, wanted := range []Evidence{0, EvidenceProgram, EvidenceTrusted, EvidencePlace | EvidenceAppArmor} {
		c := start(t, self(t), nil, "hold")
		c.ready(t)
		o := open(t, int32(c.Process.Pid), uid, gid)
		o.ReadNow(wanted)
		if read, also := o.Read(), wanted&EvidenceTrusted/EvidenceTrusted*EvidenceProgram; read != wanted|also {
			t.Errorf("%b was read, wanted was %b", read, wanted)
		}
		c.end(t)
		if _, known := o.Program.Get(); known != (wanted&(EvidenceProgram|EvidenceTrusted) != 0) || o.Err() != nil {
			t.Errorf("wanted %b: the program is known: %t, %v", wanted, known, o.Err())
		}
	}
	for asked, ask := range map[Evidence]func(*Info){
		EvidenceProgram:  func(p *Info) { p.Program.Get(); p.MountNS.Get() },
		EvidenceTrusted:  func(p *Info) { p.Trusted.Get() },
		EvidencePlace:    func(p *Info) { p.Place.Get() },
		EvidenceAppArmor: func(p *Info) { p.AppArmor.Get() },
	} {
		before, after := open(t, int32(os.Getpid()), uid, gid), open(t, int32(os.Getpid()), uid, gid)
		before.ReadNow(asked)
		before.Close()
		after.Close()
		ask(before.Info)
		if err := before.Err(); err != nil {
			t.Errorf("%b, read before: %v", asked, err)
		}
		ask(after.Info)
		if err := after.Err(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%b after Close: %v", asked, err)
		}
		if _, known := after.Groups.Get(); !known {
			t.Error("the groups are unknown")
		}
	}
}

// A session is over when its leader has ended, and is told from another one.
func TestSession(t *testing.T) {
	in, keep, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer keep.Close()
	c := startFiles(t, self(t), &syscall.SysProcAttr{Setsid: true}, []*os.File{in}, "lead")
	number, err := strconv.ParseInt(c.ready(t), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	follower := int32(number)
	led := open(t, follower, uid, gid).Session
	leads := open(t, int32(c.Process.Pid), uid, gid).Session
	own := open(t, int32(os.Getpid()), uid, gid).Session
	if led != leads || led.ID != int32(c.Process.Pid) || led == own || led.Over() || own.Over() {
		t.Errorf("%+v of the follower, %+v of the leader, own %+v", led, leads, own)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	lab.Await(t, "the end of the session, whose leader nobody has waited for", led.Over)
	c.Wait()
	if !led.Over() {
		t.Error("not over any more")
	}
	orphan := open(t, follower, uid, gid).Session
	if orphan == led || orphan.ID != led.ID || orphan.Over() {
		t.Errorf("%+v without a leader, %+v with one", orphan, led)
	}
	if (Session{}).Over() {
		t.Error("none is over")
	}
	// The number is another process's, or a thread's, later.
	for _, session := range []Session{{int32(os.Getpid()), led.started + "0"}, {thread(t, nothing), led.started}} {
		if !session.Over() {
			t.Errorf("%+v is not over", session)
		}
	}
}

// Other pid namespaces: callers in one below are visible, from there nobody is.
func TestPIDNamespace(t *testing.T) {
	needRoot(t)
	c := start(t, self(t), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Setsid: true}, "look")
	if line := c.ready(t); !strings.HasPrefix(line, "the caller is a process that is not visible") {
		t.Errorf("from within: %s", line)
	}
	o := open(t, int32(c.Process.Pid), uid, gid)
	if o.PID != int32(c.Process.Pid) || o.Session.ID != o.PID || o.Session.Over() {
		t.Errorf("%+v", o)
	}
}

// Who connects from another pid namespace has other numbers of processes.
func TestSamePIDNamespace(t *testing.T) {
	needRoot(t)
	l, path := listen(t)
	for _, flags := range []uintptr{0, syscall.CLONE_NEWPID} {
		start(t, self(t), &syscall.SysProcAttr{Cloneflags: flags}, "connect", path).ready(t)
		_, p := accept(t, l)
		if same := p.SamePIDNamespace(); same != (flags == 0) {
			t.Errorf("flags %#x: the same: %t", flags, same)
		}
	}
	if new(Info).SamePIDNamespace() {
		t.Error("who is made up is in our namespace")
	}
}

// No descriptor stays open, whatever comes of it.
func TestFromThreadNoLeak(t *testing.T) {
	tid := thread(t, nothing)
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	once := func() {
		o, err := FromThread(tid, uid, gid)
		if err != nil {
			t.Fatal(err)
		}
		o.ReadNow(EvidenceProgram | EvidenceTrusted | EvidencePlace | EvidenceAppArmor)
		o.Session.Over()
		o.Close()
		for _, tid := range []int32{0, int32(gone.Process.Pid)} {
			if _, err := FromThread(tid, uid, gid); err == nil {
				t.Fatal(tid)
			}
		}
		if _, err := FromThread(tid, uid+1, gid); err == nil {
			t.Fatal("another uid")
		}
	}
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	once()
	before := count()
	for range 50 {
		once()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// BenchmarkFromThread: what finding a caller costs in processor time, which is what can be compared on
// a machine that does other things. The caller is not the leader of its session.
func BenchmarkFromThread(b *testing.B) {
	for name, tid := range map[string]int32{"first": int32(os.Getpid()), "other": thread(b, nothing)} {
		b.Run(name, func(b *testing.B) {
			begin := processorTime(b)
			for range b.N {
				o, err := FromThread(tid, uid, gid)
				if err != nil {
					b.Fatal(err)
				}
				o.Close()
			}
			b.ReportMetric(float64(processorTime(b)-begin)/float64(b.N), "cpu-ns/op")
		})
	}
}

func processorTime(b *testing.B) int64 {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return used.Utime.Nano() + used.Stime.Nano()
}
