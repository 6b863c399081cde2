package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/logs"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/keytab/seal"
	"gssproxyd/limits"
	"gssproxyd/rpc"
	"gssproxyd/rpc/rpctest"
	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

// testDaemon is a daemon as far as serve makes one before it starts.
func testDaemon(log io.Writer) *daemon {
	return &daemon{
		o: &options{userproxy: true}, limits: limits.ForProcess(), box: seal.New(), log: slog.New(slog.NewTextHandler(log, nil)),
		listeners: make(map[string]*net.UnixListener), lost: make(chan *net.UnixListener), stopping: make(chan struct{}),
	}
}

// clockTick is longer than the times of files are behind the clock.
const clockTick = 50 * time.Millisecond

// A file whose times are in the future is read once, and again when it changes.
func TestFingerprint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "krb5.conf")
	write := func(text string, mtime time.Time) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	future := time.Now().Add(time.Hour)
	write("a", future)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if f := takeFingerprint([]string{path}, time.Unix(st.Ctim.Unix())); !f.changed() {
		t.Error("a file that was written just now may have been read half old")
	}
	time.Sleep(clockTick) // at least
	f := takeFingerprint([]string{path, path + ".absent"}, time.Now())
	if f.changed() {
		t.Error("a file dated in the future changes for ever")
	}
	time.Sleep(clockTick)
	write("b", future) // size and modification time as before
	if !f.changed() {
		t.Error("the change is not seen")
	}
}

// Services' own uids have a reserve, of the configuration that is in force.
func TestReserve(t *testing.T) {
	t.Setenv("KRB5_CONFIG", os.DevNull)
	d := testDaemon(io.Discard)
	d.level = new(slog.LevelVar)
	d.procs = proc.New(proc.Options{Box: d.box, Users: nss.NewDirect(), Limits: d.limits, Log: d.log})
	defer d.procs.Close()
	for _, service := range []uint32{31000, 32000} {
		cfg := &configuration{conf: conf.UserProxy(service)}
		if err := errors.Join(cfg.readKrb5(), d.apply(cfg)); err != nil {
			t.Fatal(err)
		}
		taken := make(map[uint32]int)
		for uid := uint32(100_000); uid < 110_000; uid++ {
			for d.limits.Conns.Take(uid, 1) == nil {
				taken[uid]++
			}
		}
		for _, uid := range []uint32{31000, 32000} {
			err := d.limits.Conns.Take(uid, 1)
			if (err == nil) != (uid == service) {
				t.Errorf("with the service of uid %d, uid %d gets: %v", service, uid, err)
			}
			if err == nil {
				d.limits.Conns.Give(uid, 1)
			}
		}
		for uid, n := range taken {
			d.limits.Conns.Give(uid, n)
		}
	}
}

// A krb5.conf with an error is followed, what it newly includes as well: it is read again when that
// is corrected, and not before.
func TestKrb5Corrected(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(clockTick) // or it might have been read half old
	}
	t.Setenv("KRB5_CONFIG", filepath.Join(dir, "krb5.conf"))
	d := testDaemon(io.Discard)
	d.level = new(slog.LevelVar)
	d.procs = proc.New(proc.Options{Box: d.box, Users: nss.NewDirect(), Log: d.log})
	defer d.procs.Close()
	put("krb5.conf", "[libdefaults]\n")
	d.conf = conf.UserProxy(uint32(os.Geteuid()))
	if err := d.applyKrb5(); err != nil || d.krb5Files.changed() {
		t.Fatalf("%v, changed %t", err, d.krb5Files.changed())
	}
	put("more.conf", "[libdefaults]\nallow_rc4 = maybe\n")
	put("krb5.conf", "include "+filepath.Join(dir, "more.conf")+"\n")
	if !d.krb5Files.changed() {
		t.Error("the error is not seen")
	}
	if err := d.applyKrb5(); err == nil || d.krb5Files.changed() {
		t.Errorf("%v, changed %t", err, d.krb5Files.changed())
	}
	put("more.conf", "[libdefaults]\nallow_rc4 = yes\n")
	if !d.krb5Files.changed() {
		t.Error("the correction is not seen")
	}
	if err := d.applyKrb5(); err != nil || d.krb5Files.changed() {
		t.Errorf("%v, changed %t", err, d.krb5Files.changed())
	}
}

// The key for handles gets its successor while the daemon runs.
func TestSealRenewed(t *testing.T) {
	dir := t.TempDir()
	box, err := seal.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	d := testDaemon(&log)
	d.box = box
	keys := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "handle.key"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first, now := keys(), time.Now()
	if d.renewSeal(now.Add(sealRotation - time.Hour)); keys() != first {
		t.Error("replaced before its time")
	}
	if d.renewSeal(now.Add(sealRotation + time.Hour)); keys() == first {
		t.Error("not replaced")
	}

	// What fails is tried again, but not all the time.
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	defer os.Rename(dir+".away", dir)
	later := now.Add(2 * sealRotation)
	for range 3 {
		d.renewSeal(later)
	}
	d.renewSeal(later.Add(sealRetry))
	if n := strings.Count(log.String(), "could not be replaced"); n != 2 {
		t.Errorf("%d lines: %s", n, &log)
	}
}

// A call that takes longer than the daemon has to stop is cut off, and the stop is an orderly one.
func TestStopCutsOff(t *testing.T) {
	defer func(d time.Duration) { shutdownTimeout = d }(shutdownTimeout)
	shutdownTimeout = 100 * time.Millisecond
	var log bytes.Buffer
	d := testDaemon(&log)
	called := make(chan struct{})
	d.rpc = &rpc.Server{
		Log: d.log,
		Match: rpctest.Everybody(func(ctx context.Context, _ *rpc.Call, reply []byte) ([]byte, rpc.AcceptStat) {
			close(called)
			<-ctx.Done()
			return reply, rpc.Success
		}),
	}
	path := filepath.Join(t.TempDir(), "sock")
	l, err := rpc.Listen(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	d.serveOn(t.Context(), map[string]*net.UnixListener{path: l})
	c, err := rpc.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		c.Call(t.Context(), uint32(xdr.ProcIndicateMechs), nil)
	}()
	<-called
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	if err := d.wait(t.Context(), signals); err != nil {
		t.Errorf("the stop fails: %v", err)
	}
	<-answered
	if !strings.Contains(log.String(), "cut off") {
		t.Errorf("the log does not say that a call was cut off: %s", &log)
	}
}

// The daemon ends when nobody has called for as long as it was told to, and no later; with a call
// that time begins again.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := testDaemon(io.Discard)
		d.o.idleTimeout = 3
		d.procs = proc.New(proc.Options{Box: d.box, Users: nss.NewDirect(), Limits: d.limits, Log: d.log})
		d.listeners["socket"] = nil // one that is left to serve
		began := time.Now()
		d.idleFrom()
		ended := make(chan time.Duration)
		go func() {
			if err := d.wait(t.Context(), nil); err != nil {
				t.Error(err)
			}
			ended <- time.Since(began)
		}()
		time.Sleep(2900 * time.Millisecond)
		d.match(t.Context(), nil, 0)
		if got := <-ended; got != 5900*time.Millisecond {
			t.Errorf("it ends %v after the start, want 3s after the call at 2.9s", got)
		}
	})
}

// The debug level of a service ends by itself, and each when it is to.
func TestDebugEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := testDaemon(io.Discard)
		d.asked, d.conf = make(chan func()), conf.UserProxy(1)
		d.conf.Services = append(d.conf.Services, &conf.Service{Name: "other"})
		d.procs = proc.New(proc.Options{Box: d.box, Users: nss.NewDirect(), Limits: d.limits, Log: d.log})
		d.listeners["socket"] = nil // one that is left to serve
		signals, ended := make(chan os.Signal), make(chan error)
		go func() { ended <- d.wait(t.Context(), signals) }()
		// ask sets something, and returns what is set then.
		ask := func(a xdr.AdminArgDebug) string {
			t.Helper()
			var res xdr.AdminResDebug
			if err := d.adminDebug(t.Context(), &a, &res); err != nil {
				return err.Error()
			}
			text := ""
			for _, s := range res.Services {
				text += fmt.Sprintf("%s %d;", s.Service, s.Level)
			}
			return text
		}
		for _, test := range []struct {
			after time.Duration
			arg   xdr.AdminArgDebug
			want  string
		}{
			{0, xdr.AdminArgDebug{}, ""},
			{0, xdr.AdminArgDebug{Service: "user-proxy", Level: 2, Seconds: 60}, "user-proxy 2;"},
			{30 * time.Second, xdr.AdminArgDebug{Service: "other", Level: 1, Seconds: 60}, "other 1;user-proxy 2;"},
			{29 * time.Second, xdr.AdminArgDebug{}, "other 1;user-proxy 2;"},
			{time.Second, xdr.AdminArgDebug{}, "other 1;"},
			{30 * time.Second, xdr.AdminArgDebug{}, ""},
			{0, xdr.AdminArgDebug{Service: "other", Level: 1, Seconds: 60}, "other 1;"},
			{0, xdr.AdminArgDebug{Service: "other", Level: 0, Seconds: 60}, ""},
			{0, xdr.AdminArgDebug{Service: "othre", Level: 1, Seconds: 60}, `there is no service "othre": did you mean other?`},
		} {
			time.Sleep(test.after)
			synctest.Wait()
			if got := ask(test.arg); got != test.want {
				t.Errorf("%v later, %+v: %q, want %q", test.after, test.arg, got, test.want)
			}
		}
		signals <- syscall.SIGTERM
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A daemon whose last socket fails ends, and one with another left goes on. Connections on the
// socket are no reason to wait, and are not cut.
func TestLostSockets(t *testing.T) {
	for _, all := range []bool{false, true} {
		var log lab.LogBuffer
		d := testDaemon(&log)
		known := make(chan struct{}, 2) // to the main loop
		d.rpc = &rpc.Server{
			Log: d.log,
			Lost: func(l *net.UnixListener, socket string, err error) {
				d.lose(l, socket, err)
				known <- struct{}{}
			},
			Match: rpctest.Everybody(nil),
		}
		opened := map[string]*net.UnixListener{}
		for _, name := range []string{"one", "two"} {
			path := filepath.Join(t.TempDir(), name)
			l, err := rpc.Listen(path, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			opened[path] = l
		}
		d.serveOn(t.Context(), opened)
		signals, ended := make(chan os.Signal), make(chan error, 1)
		go func() { ended <- d.wait(t.Context(), signals) }()
		for path, l := range opened {
			c, err := rpc.Dial(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Call(t.Context(), uint32(xdr.ProcNull), nil); err != nil {
				t.Fatal(err)
			}
			if !all && filepath.Base(path) != "one" {
				continue
			}
			unlisten(t, l)
			if all {
				continue
			}
			<-known
			if !strings.Contains(log.String(), "not served any more") {
				t.Errorf("the log does not tell of the loss: %s", &log)
			}
			if _, err := c.Call(t.Context(), uint32(xdr.ProcNull), nil); err != nil {
				t.Errorf("a connection that was there: %v", err)
			}
		}
		if !all {
			select {
			case err := <-ended:
				t.Fatalf("ended with a socket left: %v", err)
			case signals <- syscall.SIGTERM: // it waits for the next thing to happen
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			continue
		}
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "no socket is left") {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("goes on without a socket")
		}
	}
}

// unlisten puts a socket that does not listen in a listener's place, so that accept(2) fails.
func unlisten(t *testing.T, l *net.UnixListener) {
	t.Helper()
	other, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(other)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = syscall.Dup3(other, int(fd), syscall.O_CLOEXEC) })
	if err != nil {
		t.Fatal(err)
	}
	l.SetDeadline(time.Now()) // who waits in accept(2) calls it again
}

// Only a listening unix stream socket is taken over.
func TestPassedListener(t *testing.T) {
	dir := t.TempDir()
	unixSocket := func(name string, kind int, listen bool) int {
		fd, err := syscall.Socket(syscall.AF_UNIX, kind, 0)
		if err == nil {
			err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, name)})
		}
		if err == nil && listen {
			err = syscall.Listen(fd, 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	inet, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	regular, err := syscall.Open(filepath.Join(dir, "file"), syscall.O_CREAT|syscall.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		fd   int
		want string
	}{
		{unixSocket("good", syscall.SOCK_STREAM, true), ""},
		{unixSocket("deaf", syscall.SOCK_STREAM, false), "does not listen"},
		{unixSocket("datagram", syscall.SOCK_DGRAM, false), "no stream"},
		{unixSocket("packets", syscall.SOCK_SEQPACKET, true), "no stream"},
		{inet, "not a unix socket"},
		{regular, "non-socket"},
	} {
		f := os.NewFile(uintptr(test.fd), "passed")
		l, err := passedListener(f)
		f.Close()
		if test.want == "" {
			if err != nil {
				t.Error(err)
				continue
			}
			l.Close()
		} else if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want one with %q", err, test.want)
		}
	}
}

// Each line goes to syslog with the priority of its level.
func TestSyslogPriorities(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	w, err := syslog.Dial("unixgram", path, syslog.LOG_AUTHPRIV|syslog.LOG_INFO, "gssproxy")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, format := range []string{"text", "json"} {
		h, err := logs.New(format, syslogLines{w}, slog.LevelDebug)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			level slog.Level
			want  string // <facility*8+severity>, LOG_AUTHPRIV being 10
		}{{slog.LevelError, "<83>"}, {slog.LevelWarn, "<84>"}, {slog.LevelInfo, "<86>"}, {slog.LevelDebug, "<87>"}} {
			slog.New(h).Log(t.Context(), test.level, "said level=ERROR", "level", "WARN")
			b := make([]byte, 4096)
			server.SetReadDeadline(time.Now().Add(time.Minute))
			n, err := server.Read(b)
			if line := string(b[:n]); err != nil || !strings.HasPrefix(line, test.want) || !strings.Contains(line, "said level=ERROR") {
				t.Errorf("%s, %v: %q, %v", format, test.level, line, err)
			}
		}
	}
}

// A pid file is a new file, whatever has its name, and only it is removed.
func TestPIDFileReplacesLink(t *testing.T) {
	dir := t.TempDir()
	link, target := filepath.Join(dir, "pid"), filepath.Join(dir, "target")
	if err := errors.Join(os.WriteFile(target, []byte("important"), 0o600), os.Symlink("target", link)); err != nil {
		t.Fatal(err)
	}
	d := &daemon{o: &options{pidFile: link}, log: slog.New(slog.DiscardHandler)}
	d.removePIDFile()
	d.writePIDFile()
	if b, err := os.ReadFile(target); err != nil || string(b) != "important" {
		t.Errorf("the link's target has %q, %v", b, err)
	}
	if b, err := os.ReadFile(link); err != nil || string(b) != string(pidLine()) {
		t.Errorf("the pid file has %q, %v", b, err)
	}
	if st, err := os.Lstat(link); err != nil || st.Mode() != 0o644 {
		t.Errorf("the pid file is %v, %v", st.Mode(), err)
	}
	d.removePIDFile()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v are left, expected the link's target", entries, err)
	}
}
