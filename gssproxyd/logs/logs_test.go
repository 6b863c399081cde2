package logs

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"gssproxyd/mech/krb5/etype"
)

// journald is a socket that takes entries.
type journald struct {
	*net.UnixConn
	path string
}

func listen(t testing.TB, path string) *journald {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &journald{c, path}
}

// handler is a handler with a journald, and what it takes for the standard error.
func handler(t testing.TB, stderr *os.File) (*slog.Logger, *journald) {
	t.Helper()
	j := listen(t, filepath.Join(t.TempDir(), "socket"))
	h, err := newJournal(j.path, stderr, slog.LevelDebug)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(h.fd) })
	return slog.New(h), j
}

// next is the next entry, as journald reads it.
func (j *journald) next(t testing.TB) map[string]string {
	t.Helper()
	b, oob := make([]byte, 1<<20), make([]byte, unix.CmsgSpace(4))
	j.SetReadDeadline(time.Now().Add(time.Minute))
	n, oobn, _, _, err := j.ReadMsgUnix(b, oob)
	if err != nil {
		t.Fatal(err)
	}
	if b = b[:n]; oobn > 0 {
		b = sealed(t, oob[:oobn])
	}
	fields, err := parse(b)
	if err != nil {
		t.Fatalf("%v: %q", err, b)
	}
	return fields
}

// sealed reads an entry that came as a file.
func sealed(t testing.TB, oob []byte) []byte {
	t.Helper()
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(controls) != 1 {
		t.Fatal(controls, err)
	}
	fds, err := unix.ParseUnixRights(&controls[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	f := os.NewFile(uintptr(fds[0]), "entry")
	defer f.Close()
	const want = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&want != want {
		t.Errorf("the file can be changed: seals %#x, %v", seals, err)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parse reads an entry. No field may be there twice.
func parse(b []byte) (map[string]string, error) {
	fields := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok {
			return nil, errors.New("no end of a line")
		}
		name, value, bare := strings.Cut(string(line), "=")
		if !bare {
			if len(rest) < 8 {
				return nil, errors.New("no length")
			}
			n := binary.LittleEndian.Uint64(rest)
			if rest = rest[8:]; n >= uint64(len(rest)) || rest[n] != '\n' {
				return nil, fmt.Errorf("field %q is not %d bytes and a newline", name, n)
			}
			value, rest = string(rest[:n]), rest[n+1:]
		}
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("field %q is there twice", name)
		}
		fields[name], b = value, rest
	}
	return fields, nil
}

type valuer struct{ v slog.Value }

func (v valuer) LogValue() slog.Value { return v.v }

type marshaler struct{ s string }

func (m *marshaler) MarshalText() ([]byte, error) { return []byte(m.s), nil }

func TestEntry(t *testing.T) {
	log, j := handler(t, os.Stderr)
	const hostile = "/tmp/x\nPRIORITY=0\nMESSAGE=all is well\n_UID=0\n"
	with := log.With("service", "web").WithGroup("caller").With("uid", 1000)
	for _, test := range []struct {
		log   *slog.Logger
		level slog.Level
		msg   string
		args  []any
		want  map[string]string // but for what each entry has
	}{
		{log, slog.LevelWarn, "refused", []any{"reason", "replay", "uid", uint32(1000), "hint", "look at the clock"}, map[string]string{
			"PRIORITY": "4", "MESSAGE": `refused reason=replay uid=1000 hint="look at the clock"`,
			"GSSPROXYD_REASON": "replay", "GSSPROXYD_UID": "1000", "GSSPROXYD_HINT": "look at the clock"}},
		{log, slog.LevelInfo, "Initialization complete.", nil, map[string]string{"PRIORITY": "6", "MESSAGE": "Initialization complete."}},
		{log, slog.LevelDebug, "d", nil, map[string]string{"PRIORITY": "7", "MESSAGE": "d"}},
		{log, slog.LevelError, hostile, []any{"program", hostile}, map[string]string{
			"PRIORITY": "3", "MESSAGE": fmt.Sprintf("%q program=%q", hostile, hostile), "GSSPROXYD_PROGRAM": hostile}},
		{log, slog.LevelError, "", []any{"none", "", "bytes", "\x00\xff=\n"}, map[string]string{
			"PRIORITY": "3", "MESSAGE": ` none="" bytes="\x00\xff=\n"`, "GSSPROXYD_NONE": "", "GSSPROXYD_BYTES": "\x00\xff=\n"}},
		{log, slog.LevelError, "keys", []any{"_UID", 1, "message", 2, "a\nb", 3, strings.Repeat("k", 100), 4}, map[string]string{
			"PRIORITY": "3", "MESSAGE": `keys _UID=1 message=2 "a\nb"=3 ` + strings.Repeat("k", 100) + "=4",
			"GSSPROXYD__UID": "1", "GSSPROXYD_MESSAGE": "2", "GSSPROXYD_A_B": "3", "GSSPROXYD_" + strings.Repeat("K", 54): "4"}},
		{with, slog.LevelInfo, "grouped", []any{"pid", 7, slog.Group("in", "a", 1), slog.Group("", "b", 2)}, map[string]string{
			"PRIORITY": "6", "MESSAGE": "grouped service=web caller.uid=1000 caller.pid=7 caller.in.a=1 caller.b=2",
			"GSSPROXYD_SERVICE": "web", "GSSPROXYD_CALLER_UID": "1000", "GSSPROXYD_CALLER_PID": "7", "GSSPROXYD_CALLER_IN_A": "1", "GSSPROXYD_CALLER_B": "2"}},
	} {
		test.log.Log(t.Context(), test.level, test.msg, test.args...)
		test.want["SYSLOG_IDENTIFIER"], test.want["SYSLOG_FACILITY"] = "gssproxyd", "3"
		if diff := cmp.Diff(test.want, j.next(t)); diff != "" {
			t.Errorf("%q: -want +got\n%s", test.msg, diff)
		}
	}
}

// A handler that another is made from stays what it is.
func TestWithAttrs(t *testing.T) {
	log, j := handler(t, os.Stderr)
	base := log.With("a", 1)
	x, y := base.With("x", 1), base.With("y", 2)
	for logger, want := range map[*slog.Logger]string{log: "m", base: "m a=1", x: "m a=1 x=1", y: "m a=1 y=2"} {
		logger.Info("m")
		if got := j.next(t); got["MESSAGE"] != want {
			t.Errorf("%q, not %q", got["MESSAGE"], want)
		}
	}
}

// The text is that of slog's text handler, on one line, and JSON has the same keys and values.
func TestFormatsAgree(t *testing.T) {
	log, j := handler(t, os.Stderr)
	rapid.Check(t, func(t2 *rapid.T) {
		var attrs []slog.Attr
		for i := range rapid.IntRange(0, 5).Draw(t2, "attributes") {
			s := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~]*`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).
				Filter(func(s string) bool { return !strings.Contains(s, "\x7f") }).Draw(t2, "text") // slog prints that as it is
			v := rapid.SampledFrom([]any{s, len(s), uint64(len(s)), true, nil, 1.5, time.Duration(len(s)) * time.Millisecond, time.Unix(int64(len(s)), 5e6),
				errors.New(s), &marshaler{s}, slog.LevelWarn, struct{ S string }{s}, []string{s}, valuer{slog.StringValue(s)},
				slog.GroupValue(slog.String("in", s)), valuer{slog.GroupValue(slog.String("in", s))}}).Draw(t2, "value")
			attrs = append(attrs, slog.Any(fmt.Sprint("key", i), v))
		}
		var text, inJSON bytes.Buffer
		bare := func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && slices.Contains([]string{slog.TimeKey, slog.LevelKey, slog.MessageKey}, a.Key) {
				return slog.Attr{}
			}
			return a
		}
		slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: bare})).LogAttrs(t.Context(), slog.LevelInfo, "", attrs...)
		log.LogAttrs(t.Context(), slog.LevelInfo, "msg", attrs...)
		got := j.next(t)
		want := strings.TrimSuffix("msg "+text.String(), "\n")
		if got["MESSAGE"] != strings.TrimSuffix(want, " ") || strings.Contains(got["MESSAGE"], "\n") {
			t2.Errorf("the journal has\n%q, slog's text\n%q", got["MESSAGE"], want)
		}
		h, err := New("json", &inJSON, slog.LevelInfo)
		if err != nil {
			t2.Fatal(err)
		}
		slog.New(h).LogAttrs(t.Context(), slog.LevelInfo, "msg", attrs...)
		dec := json.NewDecoder(&inJSON)
		dec.UseNumber()
		var object map[string]any
		if err := dec.Decode(&object); err != nil || inJSON.Len() != 0 && inJSON.String() != "\n" {
			t2.Fatalf("%v, and then %q", err, &inJSON)
		}
		for _, a := range attrs {
			name, value := "GSSPROXYD_"+strings.ToUpper(a.Key), object[a.Key]
			if group, ok := value.(map[string]any); ok {
				name, value = name+"_IN", group["in"]
			}
			if _, isTime := a.Value.Any().(time.Time); isTime {
				continue // JSON has nanoseconds
			}
			if utf8.ValidString(got[name]) && fmt.Sprint(value) != got[name] {
				t2.Errorf("JSON has %q, the journal %q", value, got[name])
			}
		}
	})
}

// A value that panics spoils no call and no other value.
func TestPanic(t *testing.T) {
	log, j := handler(t, os.Stderr)
	var out bytes.Buffer
	h, err := New("json", &out, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*slog.Logger{log, slog.New(h)} {
		l.Info("m", "bad", (*marshaler)(nil), "good", 1)
	}
	if got := j.next(t); !strings.HasPrefix(got["GSSPROXYD_BAD"], "!PANIC: ") || got["GSSPROXYD_GOOD"] != "1" {
		t.Errorf("%q", got)
	}
	if !strings.Contains(out.String(), `"bad":"!PANIC: `) || !strings.Contains(out.String(), `"good":1}`) {
		t.Errorf("%s", &out)
	}
}

// hidden is a type as those are that hold keys: it says how it prints.
type hidden struct {
	etype.Redacted
	Key   []byte
	inner etype.Secret
}

// What holds a secret says so in each format, however it gets there.
func TestSecrets(t *testing.T) {
	const bytesOfKey = "sixteen bytes!!!"
	secret := etype.Secret(bytesOfKey)
	key := hidden{Key: []byte(bytesOfKey), inner: secret}
	attrs := []any{"a", secret, "b", &secret, "c", key, "d", &key, "e", []etype.Secret{secret}, "f", valuer{slog.AnyValue(secret)}, "g", fmt.Errorf("of %v", secret),
		slog.Group("h", "i", secret), "j", struct{ K etype.Secret }{secret}, "k", map[string]any{"k": secret}}
	log, j := handler(t, os.Stderr)
	var text, inJSON bytes.Buffer
	for format, w := range map[string]io.Writer{"text": &text, "json": &inJSON} {
		h, err := New(format, w, slog.LevelInfo)
		if err != nil {
			t.Fatal(err)
		}
		slog.New(h).Info("m", attrs...)
		slog.New(h).With(attrs...).Info("m")
	}
	log.Info("m", attrs...)
	entry := j.next(t)
	log.With(attrs...).Info("m")
	if diff := cmp.Diff(entry, j.next(t)); diff != "" {
		t.Errorf("with the same attributes, -want +got\n%s", diff)
	}
	journal := strings.Join(slices.Collect(maps.Values(entry)), "\n")
	for format, said := range map[string]string{"text": text.String(), "json": inJSON.String(), "journal": journal} {
		if n := strings.Count(said, "[redacted]"); n != 20 {
			t.Errorf("%s: redacted %d times:\n%s", format, n, said)
		}
		for _, form := range []string{bytesOfKey, fmt.Sprintf("%x", bytesOfKey), strings.Trim(fmt.Sprint([]byte(bytesOfKey)), "[]"), "c2l4dGVlbiBieXRlcyEhIQ"} {
			if strings.Contains(said, form) {
				t.Errorf("%s: the key is in it:\n%s", format, said)
			}
		}
	}
}

// What no datagram can hold goes in a file.
func TestLongEntry(t *testing.T) {
	log, j := handler(t, os.Stderr)
	long := strings.Repeat("x", 1<<19)
	log.Info("m", "stack", long)
	got := j.next(t)
	if got["GSSPROXYD_STACK"] != long || got["MESSAGE"] != "m stack="+long {
		t.Errorf("%d bytes of %d", len(got["GSSPROXYD_STACK"]), len(long))
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it closes files, too
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		log.Info("m", "stack", long)
		j.next(t)
	}
	if after, err := os.ReadDir("/proc/self/fd"); err != nil || len(after) > len(before) {
		t.Errorf("%d descriptors, then %d, %v", len(before), len(after), err)
	}
}

// fill fills a pipe.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Write(fd, make([]byte, 4096)); err == unix.EAGAIN {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}

// A journal that reads nothing keeps nobody waiting: lines go to the standard error, and where that
// is full too, they are counted.
func TestFullJournal(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil { // files of os.Pipe would not block
		t.Fatal(err)
	}
	r, stderr := os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe")
	defer r.Close()
	defer stderr.Close()
	log, j := handler(t, stderr)
	ready := func() bool {
		poll := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(poll, 0)
		return err == nil && poll[0].Revents&unix.POLLIN != 0
	}
	sent := 0
	for ; !ready(); sent++ {
		if sent == 1<<16 {
			t.Fatal("the socket takes everything")
		}
		log.Warn("refused", "n", sent)
	}
	taken := sent - 1
	line := make([]byte, 8192)
	n, err := r.Read(line)
	if err != nil || !strings.HasSuffix(string(line[:n]), fmt.Sprintf(" level=WARN msg=refused n=%d\n", taken)) {
		t.Errorf("standard error has %q, %v", line[:n], err)
	}
	log.With("a", 1).WithGroup("g").Warn("refused", "text", strings.Repeat("x", 8192))
	n, err = r.Read(line)
	if err != nil || n != maxLine || !strings.Contains(string(line[:n]), " a=1 g.text=xx") || line[n-1] != '\n' {
		t.Errorf("of a long line standard error has %q, %v", line[:n], err)
	}

	fill(t, stderr)
	for range 3 {
		log.Warn("refused")
	}
	for i := range taken {
		if got := j.next(t); got["GSSPROXYD_N"] != fmt.Sprint(i) {
			t.Fatalf("entry %d: %q", i, got)
		}
	}
	log.Warn("refused", "n", "last")
	if got := j.next(t); got["MESSAGE"] != "refused n=last lost=3" || got["GSSPROXYD_LOST"] != "3" {
		t.Errorf("after three were lost: %q", got)
	}
	log.Warn("refused")
	if got := j.next(t); got["MESSAGE"] != "refused" {
		t.Errorf("later: %q", got)
	}
}

// A journald that is started again gets what comes then.
func TestOtherJournald(t *testing.T) {
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	log, j := handler(t, stderr)
	log.Info("first")
	j.next(t)
	j.Close()
	if err := os.Remove(j.path); err != nil {
		t.Fatal(err)
	}
	log.Info("second")
	j = listen(t, j.path)
	log.Info("third")
	if got := j.next(t); got["MESSAGE"] != "third" {
		t.Errorf("%q", got)
	}
	if b, err := os.ReadFile(stderr.Name()); err != nil || !strings.HasSuffix(string(b), " level=INFO msg=second\n") || bytes.Count(b, []byte("\n")) != 1 {
		t.Errorf("standard error: %q, %v", b, err)
	}
}

func TestLevel(t *testing.T) {
	var level slog.LevelVar
	h, err := newJournal("/nonexistent", os.Stderr, &level)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(h.fd)
	for _, h := range []slog.Handler{h, h.WithAttrs(nil), h.WithGroup("g")} {
		level.Set(slog.LevelInfo)
		if h.Enabled(t.Context(), slog.LevelDebug) || !h.Enabled(t.Context(), slog.LevelInfo) {
			t.Error("the level is not what was set")
		}
		if level.Set(slog.LevelDebug); !h.Enabled(t.Context(), slog.LevelDebug) {
			t.Error("the level does not change")
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := New("xml", io.Discard, slog.LevelInfo); err == nil || err.Error() != `log format "xml": write text, json or journal` {
		t.Error(err)
	}
	for format, want := range map[string]string{"": " level=INFO msg=m a=1s\n", "text": " level=INFO msg=m a=1s\n", "json": `,"level":"INFO","msg":"m","a":"1s"}` + "\n"} {
		var out bytes.Buffer
		h, err := New(format, &out, slog.LevelInfo)
		if err != nil {
			t.Fatal(err)
		}
		slog.New(h).Info("m", "a", time.Second)
		slog.New(h).Debug("m")
		if !strings.HasSuffix(out.String(), want) || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%q: %q", format, &out)
		}
	}
}

// BenchmarkRefusal is the line of a refused call, in text to the socket of a stream as it is under
// systemd, and as an entry with fields.
func BenchmarkRefusal(b *testing.B) {
	attrs := []any{"connection", uint64(12345), "uid", uint32(33), "pid", int32(4711), "program", "/usr/sbin/apache2", "procedure", "ACCEPT_SEC_CONTEXT", "service", "HTTP",
		"reason", "replay", "hint", "a program sent the same token twice; look at the clocks", "status", "GSS_S_DUPLICATE_TOKEN",
		"error", "the authenticator of alice@EXAMPLE.COM for HTTP/www.example.com@EXAMPLE.COM has been used before"}
	drained := func(b *testing.B, kind int) (ours *os.File) {
		pair, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		theirs, ours := os.NewFile(uintptr(pair[1]), "journald"), os.NewFile(uintptr(pair[0]), "stderr")
		done := make(chan struct{})
		go func() { defer close(done); io.Copy(io.Discard, theirs); theirs.Close() }()
		b.Cleanup(func() { ours.Close(); <-done })
		return ours
	}
	for _, format := range []string{"text", "json"} {
		b.Run(format, func(b *testing.B) {
			h, err := New(format, drained(b, unix.SOCK_STREAM), slog.LevelInfo)
			if err != nil {
				b.Fatal(err)
			}
			benchmark(b, h, attrs)
		})
	}
	b.Run("journal", func(b *testing.B) {
		log, j := handler(b, os.Stderr)
		h := log.Handler().(*journalHandler)
		h.otherwise = slog.DiscardHandler // with one processor the reader is behind
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for buf := make([]byte, 1<<16); ; {
				if _, err := j.Read(buf); err != nil {
					return
				}
			}
		}()
		defer func() { j.Close(); <-ended }()
		benchmark(b, h, attrs)
	})
}

func benchmark(b *testing.B, h slog.Handler, attrs []any) {
	log := slog.New(h)
	b.ReportAllocs()
	for b.Loop() {
		log.Log(context.Background(), slog.LevelWarn, "refused", attrs...)
	}
}
