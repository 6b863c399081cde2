package sealed

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// privateDir is a directory as a state directory is: no group may write in it.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, dir := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestMadeOnce: of those who make the identity at the same time all have the same one.
func TestMadeOnce(t *testing.T) {
	dir := privateDir(t)
	if _, err := HostIdentity("", dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "keytab recipient makes it") {
		t.Error(err)
	}
	var all sync.WaitGroup
	recipients := make([]string, 8)
	for n := range recipients {
		all.Go(func() {
			i, err := MakeHostIdentity("", dir)
			if err != nil {
				t.Error(err)
				return
			}
			recipients[n] = i.Recipient().String()
		})
	}
	all.Wait()
	for _, r := range recipients {
		if r != recipients[0] {
			t.Errorf("recipients %q", recipients)
		}
	}
	file := filepath.Join(dir, FileName)
	st, err := os.Stat(file)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	b, err := os.ReadFile(file)
	if err != nil || !regexp.MustCompile(`^# created: \S+Z\n# public key: `+recipients[0]+`\nAGE-SECRET-KEY-1[0-9A-Z]+\n$`).Match(b) {
		t.Errorf("%q, %v", b, err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

// TestIdentityRefused: who may have read the identity or put it there is asked for first.
func TestIdentityRefused(t *testing.T) {
	keygen := func(t *testing.T, dir string) string {
		t.Helper()
		if _, err := MakeHostIdentity("", dir); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, FileName)
	}
	write := func(content string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, FileName), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	secret := newIdentity(t).secret.String()
	for name, test := range map[string]struct {
		make func(t *testing.T, dir string)
		want string
		root bool
	}{
		"read by others":  {func(t *testing.T, dir string) { os.Chmod(keygen(t, dir), 0o640) }, "mode 0640, expected 0600", false},
		"another's":       {func(t *testing.T, dir string) { os.Chown(keygen(t, dir), 4711, 4711) }, "belongs to uid 4711", true},
		"open directory":  {func(t *testing.T, dir string) { keygen(t, dir); os.Chmod(dir, 0o770) }, "mode 0770, so others could put another file there", false},
		"a way through /": {func(t *testing.T, dir string) { keygen(t, dir); os.Chmod(filepath.Dir(dir), 0o777) }, "mode 0777, so others", false},
		"a FIFO":          {func(t *testing.T, dir string) { unix.Mkfifo(filepath.Join(dir, FileName), 0o600) }, "not a regular file", false},
		"a directory":     {func(t *testing.T, dir string) { os.Mkdir(filepath.Join(dir, FileName), 0o700) }, "not a regular file", false},
		"empty":           {write(""), "has no identity", false},
		"comments":        {write("# created: today\n\n"), "has no identity", false},
		"something else":  {write("\x05\x02 keys"), "line 1 is no identity", false},
		"damaged":         {write("# x\n" + secret[:40] + "\n"), "line 2 is a damaged identity", false},
		"two":             {write(secret + "\n" + secret + "\n"), "line 2 is a second identity", false},
		"large":           {write(strings.Repeat("#\n", maxFileSize)), "at most 65536", false},
		"somebody's link": {func(t *testing.T, dir string) {
			os.Symlink("/etc/passwd", filepath.Join(dir, FileName))
			unix.Lchown(filepath.Join(dir, FileName), 4711, 4711)
		}, "symbolic link of uid 4711 is not followed", true},
		"no such directory": {func(t *testing.T, dir string) { os.Remove(dir) }, "no such file or directory", false},
	} {
		t.Run(name, func(t *testing.T) {
			if test.root && os.Geteuid() != 0 {
				t.Skip("not run: needs root")
			}
			dir := privateDir(t)
			test.make(t, dir)
			for _, get := range []func(string, string) (*Identity, error){HostIdentity, MakeHostIdentity} {
				i, err := get("", dir)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, %v, want %s", i, err, test.want)
				} else if strings.Contains(err.Error(), secret[20:40]) {
					t.Error("the error has a part of the identity")
				}
			}
		})
	}
}

// TestCredential: what a service manager hands over goes first, and a bad one is not passed over.
func TestCredential(t *testing.T) {
	credentials, state := privateDir(t), privateDir(t)
	first, err := MakeHostIdentity(credentials, state)
	if err != nil {
		t.Fatal(err)
	}
	second, err := MakeHostIdentity("", credentials)
	if err != nil {
		t.Fatal(err)
	}
	got, err := MakeHostIdentity(credentials, state)
	if err != nil || got.Recipient().String() != second.Recipient().String() || got.File() != filepath.Join(credentials, FileName) {
		t.Errorf("%v, %v", got.Recipient(), err)
	}
	if got, err := HostIdentity("", state); err != nil || got.Recipient().String() != first.Recipient().String() {
		t.Errorf("%v", err)
	}
	file := filepath.Join(credentials, FileName)
	for mode, ok := range map[os.FileMode]bool{0o400: true, 0o440: true, 0o444: false, 0o460: false} {
		os.Chmod(file, mode)
		if _, err := HostIdentity(credentials, state); (err == nil) != ok {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}

// TestStateOfDaemon: root makes and reads the identity of a daemon that is another user, who can read
// it then; and no third one's.
func TestStateOfDaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root")
	}
	dir := privateDir(t)
	if err := os.Chown(dir, 4711, 4712); err != nil {
		t.Fatal(err)
	}
	made, err := MakeHostIdentity("", dir)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(made.File(), &st); err != nil || st.Uid != 4711 || st.Gid != 4712 || st.Mode&0o7777 != 0o600 {
		t.Errorf("uid %d, gid %d, mode %04o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	if again, err := HostIdentity("", dir); err != nil || again.Recipient().String() != made.Recipient().String() {
		t.Error(err)
	}
	if err := os.Chown(made.File(), 4713, 4713); err != nil {
		t.Fatal(err)
	}
	if _, err := HostIdentity("", dir); err == nil || !strings.Contains(err.Error(), "belongs to uid 4713") {
		t.Error(err)
	}
}
