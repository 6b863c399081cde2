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
// forgotten when such a file is lost or is another one.

// kept is the directory of a store.
type kept struct {
	path  string
	marks map[string]mark // by principal
}

const marksFile = "marks"

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
	b, err := readKept(dir, marksFile)
	if err == nil && b != nil {
		err = json.Unmarshal(b, &k.marks)
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
func readKept(dir *openat.Dir, name string) ([]byte, error) {
	b, err := dir.ReadFile(name, delivery.MaxLen)
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
	return readKept(dir, fileOf(principal))
}

// write keeps a delivery of an entry, and its mark. The mark holds from now on, whether that succeeds
// or not. On disk it comes last: a delivery that is newer than the mark is good.
func (k *kept) write(principal string, raw []byte, m mark) error {
	k.marks[principal] = m
	dir, err := k.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	marks, err := json.Marshal(k.marks)
	if err != nil {
		return err
	}
	sync := func(f *os.File) error { return f.Sync() }
	err = dir.Write(fileOf(principal), raw, sync, dir.Rename)
	if err == nil {
		err = dir.Write(marksFile, append(bytes.TrimSpace(marks), '\n'), sync, dir.Rename)
	}
	if err != nil {
		return err
	}
	self, err := dir.Self()
	if err != nil {
		return err
	}
	defer self.Close()
	return self.Sync()
}
