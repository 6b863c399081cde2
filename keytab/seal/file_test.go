package seal

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mustOpen(t *testing.T, dir string) *Box {
	t.Helper()
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// opens says whether b opens what was sealed for httpd.
func opens(b *Box, sealed []byte) bool {
	got, err := b.Unseal(nil, sealed, "httpd", KindCred)
	return err == nil && string(got) == "a credential"
}

func sealOne(b *Box) []byte { return b.Seal(nil, []byte("a credential"), "httpd", KindCred) }

func TestMain(m *testing.M) {
	unix.Umask(0o022) // directories that a group can write are others' too
	m.Run()
}

func TestKeySurvives(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first := mustOpen(t, dir)
	sealed := sealOne(first)
	second := mustOpen(t, dir)
	if !opens(second, sealed) || !opens(first, sealOne(second)) {
		t.Error("the key did not survive a restart")
	}
	for name, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, filepath.Join(dir, fileName): 0o600} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, st.Mode(), want)
		}
	}
	onlyKeyFile(t, dir)
}

func onlyKeyFile(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != fileName {
		t.Errorf("the state directory has %v, want %s only", entries, fileName)
	}
}

// Many daemons start on an empty directory at once; all end up with one key.
func TestOpenRace(t *testing.T) {
	for range 20 {
		dir := filepath.Join(t.TempDir(), "state")
		boxes := make([]*Box, 8)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range boxes {
			wg.Go(func() {
				<-start
				b, err := Open(dir)
				if err != nil {
					t.Error(err)
					return
				}
				boxes[i] = b
			})
		}
		close(start)
		wg.Wait()
		if t.Failed() {
			return
		}
		sealed := sealOne(boxes[0])
		for i, b := range boxes {
			if !opens(b, sealed) {
				t.Fatalf("box %d has another key", i)
			}
		}
		onlyKeyFile(t, dir)
	}
}

// The same with processes.
func TestOpenRaceProcesses(t *testing.T) {
	if dir := os.Getenv("SEAL_TEST_DIR"); dir != "" {
		b, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("sealed:%x:\n", sealOne(b))
		return
	}
	dir := filepath.Join(t.TempDir(), "state")
	outs := make([]string, 6)
	var wg sync.WaitGroup
	for i := range outs {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestOpenRaceProcesses$", "-test.v")
			cmd.Env = append(os.Environ(), "SEAL_TEST_DIR="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			outs[i] = string(out)
		})
	}
	wg.Wait()
	b := mustOpen(t, dir)
	for _, out := range outs {
		var sealed []byte
		if _, rest, ok := strings.Cut(out, "sealed:"); ok {
			hex, _, _ := strings.Cut(rest, ":")
			fmt.Sscanf(hex, "%x", &sealed)
		}
		if !opens(b, sealed) {
			t.Errorf("a process had another key:\n%s", out)
		}
	}
}

func TestRotate(t *testing.T) {
	for _, where := range []string{"memory", "file"} {
		t.Run(where, func(t *testing.T) {
			b, other := New(), (*Box)(nil)
			if where == "file" {
				dir := filepath.Join(t.TempDir(), "state")
				b, other = mustOpen(t, dir), mustOpen(t, dir)
			}
			before := b.Newest()
			now := before.Add(24 * time.Hour)
			old := sealOne(b)
			if err := b.rotate(now); err != nil {
				t.Fatal(err)
			}
			fresh := sealOne(b)
			if string(fresh[idAt:nonceAt]) == string(old[idAt:nonceAt]) || !b.Newest().Equal(now) {
				t.Error("the new key does not seal")
			}
			if !opens(b, old) || !opens(b, fresh) {
				t.Error("a key of before or after the rotation does not open")
			}
			if other != nil {
				other.read = time.Now().Add(time.Minute) // however slow the machine is
				if opens(other, fresh) {
					t.Error("another daemon has read the file twice within a second")
				}
				other.read = time.Now().Add(-time.Second)
				if !opens(other, fresh) || !opens(other, old) {
					t.Error("another daemon does not notice the new key")
				}
			}
			// The first key was superseded at now; it goes 30 days after that.
			if err := b.rotate(now.Add(keepFor)); err != nil {
				t.Fatal(err)
			}
			if !opens(b, old) || !opens(b, fresh) {
				t.Error("a key was forgotten too early")
			}
			if err := b.rotate(now.Add(keepFor + time.Second)); err != nil {
				t.Fatal(err)
			}
			if opens(b, old) || !opens(b, fresh) {
				t.Error("after 30 days the first key must be gone, and the second not")
			}
			for range 2 * maxKeys {
				if err := b.rotate(now.Add(keepFor + time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(*b.keys.Load()); n != maxKeys {
				t.Errorf("%d keys, want at most %d", n, maxKeys)
			}
			if other != nil {
				other.reread(time.Now().Add(time.Second))
				if n := len(*other.keys.Load()); n != maxKeys {
					t.Errorf("%d keys of a full file", n)
				}
			}
		})
	}
}

// A key that was superseded too long ago opens nothing, though no rotation has dropped it.
func TestSuperseded(t *testing.T) {
	for ago, want := range map[time.Duration]bool{keepFor - time.Minute: true, keepFor + time.Minute: false} {
		b := New()
		old := sealOne(b)
		if err := b.rotate(time.Now().Add(-ago)); err != nil {
			t.Fatal(err)
		}
		if got := opens(b, old); got != want || !opens(b, sealOne(b)) {
			t.Errorf("a key superseded %v ago opens: %v", ago, got)
		}
	}
}

// Two daemons rotate at once: no key is lost.
func TestRotateRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	a, b := mustOpen(t, dir), mustOpen(t, dir)
	var sealed [2][][]byte
	var wg sync.WaitGroup
	for i, box := range []*Box{a, b} {
		wg.Go(func() {
			for range 5 {
				if err := box.Rotate(); err != nil {
					t.Error(err)
				}
				sealed[i] = append(sealed[i], sealOne(box))
			}
		})
	}
	wg.Wait()
	c := mustOpen(t, dir)
	for _, s := range append(sealed[0], sealed[1]...) {
		if !opens(c, s) {
			t.Error("a rotation lost a key of the other daemon")
		}
	}
	onlyKeyFile(t, dir)
}

func TestOpenRefuses(t *testing.T) {
	good := appendKeys(nil, []*key{newKey(time.Now())})
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for _, test := range []struct {
		name string
		make func(dir, file string) error
		text []string // every part of the error
	}{
		{"readable by others", func(dir, file string) error {
			os.WriteFile(file, good, 0o600)
			return os.Chmod(file, 0o640)
		}, []string{fileName, "mode 0640, expected 0600", "remove the file"}},
		{"link", func(dir, file string) error {
			os.WriteFile(file+".x", good, 0o600)
			return os.Symlink(file+".x", file)
		}, []string{fileName, "symbolic link"}},
		{"directory", func(dir, file string) error { return os.Mkdir(file, 0o700) }, []string{fileName, "not a regular file"}},
		{"state directory open", func(dir, file string) error { return os.Chmod(dir, 0o777) }, []string{"mode 0777", "chmod 0700"}},
		{"directory on the way open", func(dir, file string) error { return os.Chmod(filepath.Dir(dir), 0o777) }, []string{"state", "on the way"}},
		{"empty", func(dir, file string) error { return os.WriteFile(file, nil, 0o600) }, []string{fileName, "not a key file", "remove the file"}},
		{"other file", func(dir, file string) error { return os.WriteFile(file, bytes.Repeat([]byte("x"), 64), 0o600) }, []string{"not a key file"}},
		{"cut short", func(dir, file string) error { return os.WriteFile(file, good[:len(good)-1], 0o600) }, []string{"47 bytes for 1 keys, expected 48"}},
		{"too long", func(dir, file string) error { return os.WriteFile(file, append(good[:len(good):len(good)], 0), 0o600) }, []string{"49 bytes for 1 keys"}},
		{"no keys", func(dir, file string) error { return os.WriteFile(file, change(15, 0)[:headerSize], 0o600) }, []string{"0 bytes for 0 keys"}},
		{"many keys", func(dir, file string) error { return os.WriteFile(file, change(12, 0xff), 0o600) }, []string{"1 to 32 keys"}},
		{"later version", func(dir, file string) error { return os.WriteFile(file, change(11, 9), 0o600) }, []string{"version 9, expected 1"}},
		{"huge", func(dir, file string) error {
			os.WriteFile(file, good, 0o600)
			return os.Truncate(file, 1<<40)
		}, []string{"expected at most"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := test.make(dir, filepath.Join(dir, fileName)); err != nil {
				t.Fatal(err)
			}
			b, err := Open(dir)
			if err == nil {
				t.Fatalf("no error, %d keys", len(*b.keys.Load()))
			}
			for _, text := range test.text {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q lacks %q", err, text)
				}
			}
		})
	}
	t.Run("of another user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("not run: needs root, to give a file away")
		}
		dir := filepath.Join(t.TempDir(), "state")
		mustOpen(t, dir)
		if err := os.Chown(filepath.Join(dir, fileName), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "belongs to uid 65534, expected 0") {
			t.Errorf("key file: %v", err)
		}
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "belongs to uid 65534") {
			t.Errorf("directory: %v", err)
		}
	})
	if _, err := Open(filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Error("made a directory in one that does not exist")
	}
}

// A bad file leaves the Box as it is.
func TestBadFileKeeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := mustOpen(t, dir)
	sealed := sealOne(b)
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.reread(time.Now())
	if err := b.Rotate(); err == nil {
		t.Error("rotation over garbage: no error")
	}
	if !opens(b, sealed) || !opens(b, sealOne(b)) {
		t.Error("the keys are gone")
	}
}

func TestBoxPrintsNoKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := mustOpen(t, dir)
	k := (*b.keys.Load())[0]
	for _, verb := range []string{"%v", "%+v", "%#v", "%x"} {
		out := fmt.Sprintf(verb, b) + fmt.Sprintf(verb, k) + fmt.Sprintf(verb, *k)
		for _, form := range []string{fmt.Sprintf("%x", []byte(k.secret)), strings.Trim(fmt.Sprint([]byte(k.secret)), "[]"), fmt.Sprintf("%#v", []byte(k.secret))[7:40]} {
			if strings.Contains(out, form) {
				t.Errorf("%s shows the key: %s", verb, out)
			}
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(appendKeys(nil, []*key{newKey(time.Unix(1, 0))}))
	f.Add(appendKeys(nil, []*key{newKey(time.Unix(1, 0)), newKey(time.Unix(2, 0))}))
	f.Fuzz(func(t *testing.T, in []byte) {
		keys, err := parseKeys(in)
		if err == nil && !bytes.Equal(appendKeys(nil, keys), in) {
			t.Error("a key file that parses is written differently")
		}
	})
}
