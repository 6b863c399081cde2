package openat

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const otherUID = 4711

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree makes a directory with what is described, one thing a word: "name/" a directory, "name" a
// file, "name->target" a link; ":mode" in octal and "@" for what belongs to another user follow the
// name.
func tree(t *testing.T, description string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755)) // whatever the umask
	for _, word := range strings.Fields(description) {
		name, target, link := strings.Cut(word, "->")
		name, theirs := strings.CutSuffix(name, "@")
		name, mode, hasMode := strings.Cut(name, ":")
		path := filepath.Join(dir, name)
		switch {
		case link:
			must(t, os.Symlink(strings.ReplaceAll(target, "ROOT", dir), path))
		case strings.HasSuffix(name, "/"):
			must(t, os.Mkdir(path, 0o755))
			must(t, unix.Chmod(path, 0o755))
		default:
			must(t, os.WriteFile(path, []byte(name), 0o600))
		}
		if hasMode {
			m := uint32(0)
			for _, c := range mode {
				m = m<<3 | uint32(c-'0')
			}
			must(t, unix.Chmod(path, m))
		}
		if theirs {
			if os.Geteuid() != 0 {
				t.Skip("not run: needs root to give files away")
			}
			must(t, os.Lchown(path, otherUID, otherUID))
		}
	}
	return dir
}

// content reads the file that Find finds.
func content(path string) (string, error) {
	d, name, err := Find(path)
	if err != nil {
		return "", err
	}
	defer d.Close()
	f, err := d.Open(name, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// Which links are followed, and which are an error though the kernel would follow them.
func TestFind(t *testing.T) {
	for _, test := range []struct {
		name, tree, path string
		want             string
		err              error
	}{
		{"plain", "a/ a/f", "a/f", "a/f", nil},
		{"odd slashes", "a/ a/f", "./a//.///f", "a/f", nil},
		{"dots", "a/ b/ a/f", "b/../a/f", "a/f", nil},
		{"absolute link", "a/ a/f l->ROOT/a", "l/f", "a/f", nil},
		{"relative link", "a/ a/b/ f l->a/b", "l/../../f", "f", nil},
		{"link to a file", "a/ a/f a/l->f", "a/l", "a/f", nil},
		{"link to a link", "a/ a/f l->m m->a", "l/f", "a/f", nil},
		{"nothing there", "a/", "a/f", "", fs.ErrNotExist},
		{"no directory", "a/", "b/f", "", fs.ErrNotExist},
		{"dangling link", "l->nowhere", "l", "", fs.ErrNotExist},
		{"file on the way", "f", "f/f", "", unix.ENOTDIR},
		{"loop", "l->m m->l", "l/f", "", unix.ELOOP},
		{"loop at the end", "l->l", "l", "", unix.ELOOP},
		{"ours where all may write", "a/ a/f p/:777 p/l->../a/f", "p/l", "", unix.ELOOP},
		{"ours where a group may write", "a/ a/f p/:775 p/l->../a/f", "p/l", "", unix.ELOOP},
		{"ours in a sticky directory", "a/ a/f p/:1777 p/l->../a/f", "p/l", "", unix.ELOOP},
		{"ours on the way", "a/ a/f p/:1777 p/l->../a", "p/l/f", "", unix.ELOOP},
		{"theirs", "a/ a/f l@->a/f", "l", "", unix.ELOOP},
		{"theirs on the way", "a/ a/f l@->a", "l/f", "", unix.ELOOP},
		{"ours in their directory", "a/ a/f p/@ p/l->../a/f", "p/l", "", unix.ELOOP},
		{"plain in their directory", "p/@ p/f", "p/f", "p/f", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := tree(t, test.tree)
			got, err := content(dir + "/" + test.path)
			if got != test.want || !errors.Is(err, test.err) || test.err == nil && err != nil {
				t.Errorf("%q, %v; expected %q, %v", got, err, test.want, test.err)
			}
			t.Chdir(dir)
			if relative, again := content(test.path); relative != got || (again == nil) != (err == nil) {
				t.Errorf("as a relative path: %q, %v", relative, again)
			}
		})
	}
}

// Parent leaves a link at the end alone.
func TestParent(t *testing.T) {
	dir := tree(t, "a/ f a/l->../f")
	d, name, err := Parent(dir + "/a/l")
	must(t, err)
	defer d.Close()
	if _, err := d.Open(name, os.O_RDONLY, 0); name != "l" || !errors.Is(err, unix.ELOOP) {
		t.Errorf("%s: %v", name, err)
	}
}

// Where a name of ours stays ours, and where it even says that nobody else has put it there.
func TestKeeps(t *testing.T) {
	for _, test := range []struct {
		tree, dir     string
		keeps, closed bool
	}{
		{"a/", "a", true, true},
		{"a/ a/b/", "a/b", true, true},
		{"a/ l->a", "l", true, true},
		{"a/:1777", "a", true, false},
		{"a/:1777 a/b/", "a/b", true, true},
		{"a/:775", "a", false, false},
		{"a/:777", "a", false, false},
		{"a/:777 a/b/", "a/b", false, false},
		{"a/:777 a/b/ a/b/c/", "a/b/c", false, false},
		{"a/:777 a/b/", "a/b/..", false, false},
		{"a/@", "a", false, false},
		{"a/:1777@", "a", false, false},
		{"a/@ a/b/", "a/b", false, false},
		{"a/@ a/b/ c/ a/b/l->ROOT/c", "a/b/l", false, false}, // as many such directories as there are links of ours
		{"a/:1777 a/b/@", "a/b", false, false},
	} {
		dir := tree(t, test.tree)
		d, err := OpenDir(dir + "/" + test.dir)
		must(t, err)
		if got := d.CheckKeeps(); (got == nil) != test.keeps || d.Closed() != test.closed {
			t.Errorf("%s in %q: keeps: %v, closed: %v", test.dir, test.tree, got, d.Closed())
		}
		d.Close()
	}
}

// What is done is done in the directory that was found, wherever its name leads by then.
func TestHeld(t *testing.T) {
	dir := tree(t, "a/ a/f b/ b/f")
	d, name, err := Find(dir + "/a/f")
	must(t, err)
	defer d.Close()
	must(t, os.Rename(dir+"/a", dir+"/c"))
	must(t, os.Rename(dir+"/b", dir+"/a"))

	f, err := d.Open(name, os.O_RDWR, 0)
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	f.Close()
	if same, err := d.Means(name, &st); err != nil || !same {
		t.Errorf("the file is another one: %v", err)
	}
	f, temp, err := d.Temp(".f.")
	must(t, err)
	f.Close()
	must(t, d.Rename(temp, name))
	if same, err := d.Means(name, &st); err != nil || same {
		t.Errorf("replaced, and still the same: %v", err)
	}
	must(t, d.Link(name, "g"))
	must(t, d.Remove(name))
	if same, err := d.Means(name, &st); err != nil || same {
		t.Errorf("removed, and still the same: %v", err)
	}
	must(t, d.Mkdir("sub"))
	self, err := d.Self()
	must(t, err)
	names, err := self.Readdirnames(-1)
	self.Close()
	if err != nil || len(names) != 2 {
		t.Errorf("left there: %v, %v", names, err)
	}
	if b, err := os.ReadFile(dir + "/a/f"); err != nil || string(b) != "b/f" {
		t.Errorf("in the other directory: %q, %v", b, err)
	}
}

func TestChmod(t *testing.T) {
	dir := tree(t, "f:600 l->f")
	d, err := OpenDir(dir)
	must(t, err)
	defer d.Close()
	f, err := d.Open("f", unix.O_PATH, 0)
	must(t, err)
	defer f.Close()
	must(t, Chmod(f, 0o640))
	if st, err := os.Stat(dir + "/f"); err != nil || st.Mode() != 0o640 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestChangesShow(t *testing.T) {
	read := time.Now().Add(-time.Minute)
	for _, test := range []struct {
		name   string
		ctime  time.Time
		expect bool
	}{
		{"long before", read.Add(-time.Second), true},
		{"at the same time", read, false},
		{"while it was read", read.Add(time.Millisecond), false},
		{"within a tick", read.Add(-time.Millisecond), false},
		{"in the future", time.Now().Add(time.Hour), false},
		{"long before, in whole seconds", read.Truncate(time.Second).Add(-3 * time.Second), true},
		{"within two seconds, in whole seconds", read.Truncate(time.Second).Add(-time.Second), false},
	} {
		ctime := unix.NsecToTimespec(test.ctime.UnixNano())
		if got := ChangesShow(ctime, read); got != test.expect {
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

// Where a file may be whose place says who wrote it.
func TestFindKept(t *testing.T) {
	for _, test := range []struct {
		tree, path string
		owners     []uint32
		want       string
	}{
		{"a/ a/f", "a/f", nil, ""},
		{"a/ a/f", "a/none", nil, ""},
		{"a/ a/f b/ b/l->../a/f", "b/l", nil, ""},
		{"a/:1777 a/b/ a/b/f", "a/b/f", nil, ""},
		{"a/:1777 a/f", "a/f", nil, "a has mode 1777"},
		{"a/:0775 a/b/ a/b/f", "a/b/f", nil, "a has mode 0775"},
		{"a/:0757 a/f", "a/f", nil, "a has mode 0757"},
		{"a/:0757 a/f b/ b/l->../a/f", "b/l", nil, "a has mode 0757"},
		{"a/ a/f b/:0757 b/l->../a/f", "b/l", nil, "is not followed"},
		{"a/ a/f b/ b/l@->../a/f", "b/l", nil, "is not followed"},
		{"a/@ a/f", "a/f", nil, "a belongs to uid 4711"},
		{"a/@ a/b/ a/b/f", "a/b/f", nil, "a belongs to uid 4711"},
		{"a/@ a/f", "a/f", []uint32{1, otherUID}, ""},
		{"a/@ a/f", "a/f", []uint32{1}, "a belongs to uid 4711"},
	} {
		dir := tree(t, test.tree)
		d, _, err := FindKept(filepath.Join(dir, test.path), test.owners...)
		if err == nil {
			d.Close()
		}
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s of %s: %v, want %q", test.path, test.tree, err, test.want)
		}
	}
}
