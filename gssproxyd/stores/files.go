package stores

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"gssproxyd/keystore/delivery"
	"gssproxyd/openat"
)

// What is kept of a store is in STATE/stores/NAME: the last delivery of each entry as it came, in a
// file that is called by a hash of its principal, and the marks of the highest ones, so that none is
// forgotten when such a file is lost or is another one. The file of marks has an object of JSON in
// each line, with marks by principal: all of them in the first, and in each later one what has come
// since. A last line without its end was being written when the machine stopped.

// kept is the directory of a store.
type kept struct {
	path  string
	marks map[string]mark // by principal
	room  int             // for bytes in the file of marks before it is written anew
}

const (
	marksFile = "marks"
	maxMarks  = 16 << 20 // bytes
	someMarks = 64 << 10 // that are added before it is written anew, and as many as there were
)

// openKept makes the directory of a store, if it is not there, and reads the marks.
func openKept(state, name string) (*kept, error) {
	path := filepath.Join(state, "stores", name)
	for _, dir := range []string{filepath.Dir(path), path} {
		if err := mkdir(dir); err != nil {
			return nil, err
		}
	}
	k := &kept{path: path, marks: make(map[string]mark)}
	dir, err := k.open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	b, err := readKept(dir, marksFile, maxMarks)
	for first := true; err == nil && len(b) > 0; first = false {
		line, after, whole := bytes.Cut(b, []byte("\n"))
		if !whole && !first {
			break
		}
		err, b = json.Unmarshal(line, &k.marks), after
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; it has the highest marks that were seen: if it was damaged, and nobody has put older deliveries there, remove it", filepath.Join(path, marksFile), err)
	}
	return k, nil
}

func mkdir(path string) error {
	dir, name, err := openat.Parent(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Mkdir(name); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// open opens the directory, in which nobody else may write.
func (k *kept) open() (*openat.Dir, error) {
	dir, err := openat.OpenDir(k.path)
	if err != nil {
		return nil, err
	}
	if !dir.Closed() {
		dir.Close()
		return nil, fmt.Errorf("%s: others may write there, or in a directory on the way; it has to belong to root or the daemon's user, and to be writable by no one else (chmod go-w)", k.path)
	}
	return dir, nil
}

// readKept returns the content of a file that is kept, nil if there is none.
func readKept(dir *openat.Dir, name string, most int64) ([]byte, error) {
	b, err := dir.ReadFile(name, most)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// fileOf is the name of an entry's file: no principal makes a path.
func fileOf(principal string) string {
	sum := sha256.Sum256([]byte(principal))
	return hex.EncodeToString(sum[:])
}

// mark returns the highest mark that was seen of an entry.
func (k *kept) mark(principal string) mark { return k.marks[principal] }

// read returns the delivery that is kept of an entry, nil if none is.
func (k *kept) read(principal string) ([]byte, error) {
	dir, err := k.open()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return readKept(dir, fileOf(principal), delivery.MaxLen)
}

// write keeps a delivery of an entry, and its mark. The mark holds from now on, whether that succeeds
// or not. On disk it comes last: a delivery that is newer than the mark is good.
func (k *kept) write(principal string, raw []byte, m mark) error {
	k.marks[principal] = m
	room := k.room
	k.room = 0 // what is amiss after an error is mended by writing all
	dir, err := k.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Write(fileOf(principal), raw, (*os.File).Sync, dir.Rename); err != nil {
		return err
	}
	line, err := json.Marshal(map[string]mark{principal: m})
	if err != nil {
		return err
	}
	if room -= len(line) + 1; room >= 0 {
		err = add(dir, line)
	} else {
		room, err = k.writeMarks(dir)
	}
	if err != nil {
		return err
	}
	self, err := dir.Self()
	if err != nil {
		return err
	}
	defer self.Close()
	if err := self.Sync(); err != nil {
		return err
	}
	k.room = room
	return nil
}

// add adds a line to the file of marks.
func add(dir *openat.Dir, line []byte) error {
	f, err := dir.Open(marksFile, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return f.Sync()
}

// writeMarks writes the file of marks anew, and returns how much may be added to it: so much that
// what is written is in proportion to what has come.
func (k *kept) writeMarks(dir *openat.Dir) (room int, err error) {
	all, err := json.Marshal(k.marks)
	if err != nil {
		return 0, err
	}
	return len(all) + someMarks, dir.Write(marksFile, append(all, '\n'), (*os.File).Sync, dir.Rename)
}
