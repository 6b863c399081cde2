package lab

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/keytab"
	"golang.org/x/sys/unix"
)

// someKeys are a keytab's, made once: it takes a while.
var someKeys = sync.OnceValues(func() (*keytab.Keytab, error) {
	kt := keytab.New()
	for i, e := range []int32{17, 18, 19, 20, 23} {
		if err := kt.AddEntry("svc/"+Host, Name, fmt.Sprint("password", i), time.Now(), 1, e); err != nil {
			return nil, err
		}
	}
	return kt, nil
})

// withKeytab is a realm that is nothing but a keytab, and the keys in that.
func withKeytab(t *testing.T) (r *Realm, keys [][]byte) {
	t.Helper()
	r = &Realm{Dir: t.TempDir()}
	kt, err := someKeys()
	check(t, err)
	b, err := kt.Marshal()
	check(t, err)
	path := filepath.Join(r.Dir, "keytab")
	check(t, os.WriteFile(path, b, 0o600))
	check(t, r.secrets.addKeytab(path))
	for _, e := range kt.Entries {
		keys = append(keys, e.Key.KeyValue)
	}
	return r, keys
}

// TestSecretsAreFound: a key is found however it is written and whatever is beside it, and nothing is
// found where there is none.
func TestSecretsAreFound(t *testing.T) {
	r, keys := withKeytab(t)
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	ways := map[string]func(b []byte) []byte{
		"raw":       func(b []byte) []byte { return b },
		"%x":        func(b []byte) []byte { return fmt.Appendf(nil, "%x", b) },
		"%X":        func(b []byte) []byte { return fmt.Appendf(nil, "%X", b) },
		"% x":       func(b []byte) []byte { return fmt.Appendf(nil, "% x", b) },
		"%v":        func(b []byte) []byte { return fmt.Append(nil, b) },
		"%#v":       func(b []byte) []byte { return fmt.Appendf(nil, "%#v", b) },
		"%q":        func(b []byte) []byte { return fmt.Appendf(nil, "%q", b) },
		"%+q":       func(b []byte) []byte { return fmt.Appendf(nil, "%+q", b) },
		"base64":    func(b []byte) []byte { return base64.StdEncoding.AppendEncode(nil, b) },
		"base64url": func(b []byte) []byte { return base64.RawURLEncoding.AppendEncode(nil, b) },
		"JSON": func(b []byte) []byte {
			out, err := json.Marshal(struct{ Key []byte }{b})
			check(t, err)
			return out
		},
		"slog": func(b []byte) []byte {
			var out bytes.Buffer
			slog.New(slog.NewTextHandler(&out, nil)).Info("a call", "key", fmt.Sprintf("%x", b))
			return out.Bytes()
		},
	}
	for name, write := range ways {
		for _, key := range keys {
			for before := range 4 {
				if before > 0 && strings.HasSuffix(name, "q") {
					break // bytes of a string that make a rune together are quoted as one
				}
				text := write(bytes.Join([][]byte{noise(before), key, noise(before)}, nil))
				for _, around := range []int{0, 1, 7, 100} {
					err := r.Scan("a log", bytes.Join([][]byte{noise(around), text, noise(around)}, nil))
					if err == nil {
						t.Errorf("%s: not found, with %d bytes beside it and %d around", name, before, around)
					} else if msg := err.Error(); strings.Contains(msg, string(key)) || strings.Contains(msg, fmt.Sprintf("%x", key)) {
						t.Error("the error has the key")
					}
				}
			}
			if err := r.Scan("a log", write(append(noise(20), key[:len(key)-1]...))); err != nil {
				t.Errorf("%s: all but one byte of a key: %v", name, err)
			}
		}
		if err := r.Scan("a log", write(noise(1<<16))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.Close(); err == nil || !strings.Contains(err.Error(), "a log has a secret at byte ") {
		t.Errorf("Close: %v", err)
	}
}

// TestSecretsOfADaemon: a key in what a daemon has written is found when it ends, and those that it
// seals handles with are secrets too.
func TestSecretsOfADaemon(t *testing.T) {
	sealing := bytes.Repeat([]byte("0123456789abcdef"), 2)
	for name, plant := range map[string]func(t *testing.T, d *Daemon, key []byte) (file string){
		"log": func(t *testing.T, d *Daemon, key []byte) string {
			appendTo(t, d.Log, fmt.Sprintf("key=%x\n", key))
			return d.Log
		},
		"log over the end of a piece": func(t *testing.T, d *Daemon, key []byte) string {
			appendTo(t, d.Log, strings.Repeat("-", 1<<20-10-len("nothing\n"))+fmt.Sprintf("%x\n", key))
			return d.Log
		},
		"log, half of it seen before": func(t *testing.T, d *Daemon, key []byte) string {
			appendTo(t, d.Log, fmt.Sprintf("%x", key[:8]))
			check(t, d.scan())
			appendTo(t, d.Log, fmt.Sprintf("%x", key[8:]))
			return d.Log
		},
		"audit": func(t *testing.T, d *Daemon, key []byte) string {
			appendTo(t, filepath.Join(d.Options.Dir, "audit.log"), base64.StdEncoding.EncodeToString(key))
			return "audit.log"
		},
		"rotated audit": func(t *testing.T, d *Daemon, key []byte) string {
			appendTo(t, filepath.Join(d.Options.Dir, "audit.log.1"), string(key))
			return "audit.log.1"
		},
		"sealing": func(t *testing.T, d *Daemon, _ []byte) string {
			appendTo(t, d.Log, fmt.Sprintf("%X\n", sealing))
			return "handle.key"
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, keys := withKeytab(t)
			dir := t.TempDir()
			d := &Daemon{Kind: "ours", Options: Options{Dir: dir}, Process: &Process{Log: filepath.Join(dir, "log")}, realm: r, scanned: scanned{}}
			check(t, d.Configure("[gssproxy]\n  audit = "+filepath.Join(dir, "audit.log")+"\n"))
			check(t, os.Mkdir(filepath.Join(dir, "state"), 0o700))
			check(t, os.WriteFile(filepath.Join(dir, "state", "handle.key"), append([]byte("GSSPXKEY\x00\x00\x00\x01\x00\x00\x00\x01iiiiiiiicccccccc"), sealing...), 0o600))
			check(t, d.scan())
			appendTo(t, d.Log, "nothing\n")
			check(t, d.scan())
			file := plant(t, d, keys[0])
			if err := d.scan(); err == nil || !strings.Contains(err.Error(), file) {
				t.Errorf("%v, want one about %s", err, file)
			}
			if r.Close() == nil {
				t.Error("Close says nothing")
			}
		})
	}
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(t, err)
	_, err = f.WriteString(text)
	check(t, errors.Join(err, f.Close()))
}

// TestSecretsOfAReply: a connection to our daemon hands out no reply with a key; one to the C daemon is
// not looked at.
func TestSecretsOfAReply(t *testing.T) {
	r, keys := withKeytab(t)
	for kind, found := range map[string]bool{"ours": true, "C": false} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		check(t, err)
		var ends [2]net.Conn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "socket")
			ends[i], err = net.FileConn(f)
			check(t, errors.Join(err, f.Close()))
			defer ends[i].Close()
		}
		w := (&Daemon{Kind: kind, realm: r}).newWire(ends[0].(*net.UnixConn))
		for _, reply := range []string{"no key of anybody", "key: " + string(keys[4])} {
			_, err = ends[1].Write(append([]byte{0x80, 0, 0, byte(len(reply))}, reply...))
			check(t, err)
			_, err := w.Receive()
			if leak := strings.HasPrefix(reply, "key: "); (err != nil) != (leak && found) {
				t.Errorf("%s, leak %v: %v", kind, leak, err)
			}
		}
	}
}

func BenchmarkScan(b *testing.B) {
	r := new(Realm)
	for range 200 {
		key := make([]byte, 32)
		for i := range key {
			key[i] = byte(rand.Uint32())
		}
		r.secrets.add("a key", key)
	}
	line := []byte("time=2026-11-29T10:00:00.000Z level=DEBUG msg=call procedure=ACCEPT_SEC_CONTEXT uid=65534 pid=4711 id=0F3A\n")
	text := bytes.Repeat(line, 1<<20/len(line))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if err := r.Scan("a log", text); err != nil {
			b.Fatal(err)
		}
	}
}
