package keystore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// marks are the highest that an instance has seen, of the keyring and of each kept record, in the
// file "marks" of its state directory. They are what a record that was put back is known by. What an
// instance has never seen it cannot miss: to a fresh one every old state of the backend, if it is
// whole and of the store's present epoch, is as good as the newest.
//
// The file has a line with the store's id, and then one for each mark: the record's name, epoch,
// revision and a CRC-32 of these, separated by blanks. Later lines count; a last one without its end
// was being written when the machine stopped. A mark is on disk before a change is answered; of what
// was only read it may be some seconds later.
type marks struct {
	dir  *openat.Dir
	lock *os.File // the directory, which one process may have
	file *os.File

	mu      sync.Mutex
	store   string
	seen    map[string]Mark
	pending []byte // lines that are not in the file yet
	lines   int    // in the file, with those

	writing sync.Mutex // held while the file is written; before mu
}

const (
	marksFile  = "marks"
	marksMagic = "gssproxyd key store marks 1 "
)

// openMarks opens the marks in a state directory, which others may not write in.
func openMarks(path string) (_ *marks, err error) {
	m := &marks{seen: map[string]Mark{}}
	defer func() {
		if err != nil {
			m.close()
			err = fmt.Errorf("marks in %s: %w", path, err)
		}
	}()
	if m.dir, err = openat.OpenDir(path); err != nil {
		return nil, err
	}
	if !m.dir.Closed() {
		return nil, errors.New("others can write in the directory or replace it; it and those on the way have to belong to root or the user who runs this program (chmod go-w)")
	}
	if m.lock, err = m.dir.Self(); err != nil {
		return nil, err
	}
	if unix.Flock(int(m.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil, errors.New("another process has the state directory: each instance needs its own")
	}
	if m.file, err = m.dir.Open(marksFile, os.O_RDWR|os.O_APPEND, 0); errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", m.file.Fd()))
	if err != nil {
		return nil, err
	}
	good, err := m.parse(b)
	if err != nil {
		return nil, err
	}
	if good == 0 { // it is empty: it is to be made anew, with its first line
		m.file.Close()
		m.file = nil
		return m, nil
	}
	return m, m.file.Truncate(int64(good))
}

// parse reads the file, and returns how much of it is good.
func (m *marks) parse(b []byte) (good int, err error) {
	number := 0
	for line := range bytes.Lines(b) {
		number++
		whole := bytes.HasSuffix(line, []byte("\n"))
		text := strings.TrimSuffix(string(line), "\n")
		var name string
		var mark Mark
		var sum uint32
		switch {
		case number == 1 && whole && strings.HasPrefix(text, marksMagic):
			m.store = strings.TrimPrefix(text, marksMagic)
		case number == 1:
			return 0, fmt.Errorf("%s:1: it begins otherwise than marks do; if the store is to be trusted as it is, remove the file", marksFile)
		default:
			n, _ := fmt.Sscanf(text, "%s %d %d %x", &name, &mark.Epoch, &mark.Revision, &sum)
			if n != 4 || !whole || text != markLine(name, mark) {
				if good+len(line) == len(b) {
					return good, nil
				}
				return 0, fmt.Errorf("%s:%d: the line is damaged; if the store is to be trusted as it is, remove the file", marksFile, number)
			}
			m.seen[name] = mark
			m.lines++
		}
		good += len(line)
	}
	return good, nil
}

func markLine(name string, m Mark) string {
	text := fmt.Sprintf("%s %d %d", name, m.Epoch, m.Revision)
	return fmt.Sprintf("%s %08x", text, crc32.ChecksumIEEE([]byte(text)))
}

// of says of which store the marks are, or an error if they are of another one.
func (m *marks) of(store []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	id := hex.EncodeToString(store)
	if m.store != "" && m.store != id {
		return errors.New("the marks in the state directory are of another store; give each instance its own directory, and remove the file marks if that store is no more")
	}
	m.store = id
	return nil
}

// get returns the highest mark of a record, zero if none was seen.
func (m *marks) get(name string) Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[name]
}

// names returns the names of the records of an epoch that were seen.
func (m *marks) names(epoch uint64) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []string
	for name, mark := range m.seen {
		if mark.Epoch == epoch && name != keyringName {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// saw notes that a record was seen.
func (m *marks) saw(name string, mark Mark) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mark.Compare(m.seen[name]) > 0 {
		m.seen[name] = mark
		m.pending = append(append(m.pending, markLine(name, mark)...), '\n')
		m.lines++
	}
}

// flush returns when all that was seen before is on disk.
func (m *marks) flush() error {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	pending, lines := m.pending, m.lines
	m.pending = nil
	short := m.file == nil || lines > 2*len(m.seen)+1024
	m.mu.Unlock()
	if len(pending) == 0 && m.file != nil {
		return nil
	}
	var err error
	if short {
		err = m.rewrite()
	} else {
		if _, err = m.file.Write(pending); err == nil {
			err = unix.Fdatasync(int(m.file.Fd()))
		}
		if err != nil { // it may have half a line now
			if again := m.rewrite(); again == nil {
				err = nil
			} else {
				err = errors.Join(err, again)
			}
		}
	}
	if err == nil {
		return nil
	}
	m.mu.Lock()
	m.pending = append(pending, m.pending...)
	m.mu.Unlock()
	return fmt.Errorf("the marks of what was seen could not be written: %w", err)
}

// rewrite makes the file anew, with one line for each mark.
func (m *marks) rewrite() error {
	m.mu.Lock()
	seen, store := maps.Clone(m.seen), m.store
	m.mu.Unlock()
	b := []byte(marksMagic + store + "\n")
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		b = append(append(b, markLine(name, seen[name])...), '\n')
	}
	if err := m.dir.Write(marksFile, b, (*os.File).Sync, m.dir.Rename); err != nil {
		return err
	}
	if err := m.lock.Sync(); err != nil {
		return err
	}
	f, err := m.dir.Open(marksFile, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if m.file != nil {
		m.file.Close()
	}
	m.file = f
	m.mu.Lock()
	m.lines = len(seen)
	m.mu.Unlock()
	return nil
}

func (m *marks) close() {
	for _, f := range []*os.File{m.file, m.lock} {
		if f != nil {
			f.Close()
		}
	}
	if m.dir != nil {
		m.dir.Close()
	}
}
