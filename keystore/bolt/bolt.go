// Package bolt keeps a store's records in one file on this machine: nothing to install, and one
// process at a time.
package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	boltErrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"gssproxyd/keystore"
	"gssproxyd/openat"
)

// Backend is a bolt file that is open. In it is one bucket, whose sequence is the backend's version;
// a value there is the version of its record, 8 bytes with the highest first, and the record's value.
type Backend struct {
	db *bbolt.DB

	mu      sync.Mutex // held while something is committed, so that the log has its order
	log     []keystore.Committed
	base    uint64        // the version before the first one of the log
	changed chan struct{} // closed and made anew when the log gets longer
	locks   map[string]*lock
}

var bucket = []byte("records")

// maxLog is how many commits are remembered for those who watch.
const maxLog = 1024

// Open opens a bolt file, or makes one for this program's user alone. Others may neither read it nor
// be able to replace it. The caller closes it.
func Open(path string) (*Backend, error) {
	b, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("bolt file %s: %w", path, err)
	}
	return b, nil
}

func open(path string) (*Backend, error) {
	d, name, err := openat.Parent(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := d.CheckKeeps(); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{
		Timeout: time.Nanosecond, // none: try once
		OpenFile: func(name string, flags int, mode os.FileMode) (*os.File, error) {
			return openFile(d, name, flags, mode)
		},
	})
	if errors.Is(err, boltErrors.ErrTimeout) {
		return nil, fmt.Errorf("%s has it open: a bolt file is for one keystored at a time; ask that one, or stop it", holder(d, name))
	}
	if err != nil {
		return nil, err
	}
	b := &Backend{db: db, changed: make(chan struct{}), locks: map[string]*lock{}}
	err = db.Update(func(tx *bbolt.Tx) error {
		records, err := tx.CreateBucketIfNotExists(bucket)
		if err == nil {
			b.base = records.Sequence()
		}
		return err
	})
	if err == nil {
		err = syncDir(d) // it may be new
	}
	if err != nil {
		db.Close()
		return nil, err
	}
	return b, nil
}

func syncDir(d *openat.Dir) error {
	f, err := d.Self()
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// openFile opens the file beneath its directory and judges it.
func openFile(d *openat.Dir, name string, flags int, mode os.FileMode) (*os.File, error) {
	f, err := d.Open(name, flags|unix.O_NONBLOCK, uint32(mode.Perm()))
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1:
		err = errors.New("it is no regular file with one name")
	case st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0:
		err = fmt.Errorf("it belongs to uid %d with mode %04o; expected uid %d and 0600 (chown, chmod)", st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// holder says which process has the lock of the file, as far as the kernel tells.
func holder(d *openat.Dir, name string) string {
	const unknown = "another process"
	var st unix.Stat_t
	if unix.Fstatat(d.FD(), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return unknown
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unknown
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return strings.TrimSpace(fmt.Sprintf("process %d %s", pid, comm))
		}
	}
	return unknown
}

// Close closes the file.
func (b *Backend) Close() error { return b.db.Close() }

// record reads what the bucket has.
func record(name, stored []byte) (keystore.Record, error) {
	if stored == nil {
		return keystore.Record{Name: string(name)}, nil
	}
	if len(stored) < 8 {
		return keystore.Record{}, fmt.Errorf("record %q: %d bytes are no version and value; the file is damaged, restore a backup", name, len(stored))
	}
	return keystore.Record{Name: string(name), Version: binary.BigEndian.Uint64(stored), Value: bytes.Clone(stored[8:])}, nil
}

// Get implements [keystore.Backend].
func (b *Backend) Get(ctx context.Context, name string) (r keystore.Record, err error) {
	if err := ctx.Err(); err != nil {
		return r, err
	}
	err = b.db.View(func(tx *bbolt.Tx) (err error) {
		r, err = record([]byte(name), tx.Bucket(bucket).Get([]byte(name)))
		return err
	})
	return r, err
}

// List implements [keystore.Backend].
func (b *Backend) List(ctx context.Context, prefix string) (records []keystore.Record, at uint64, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		all := tx.Bucket(bucket)
		at = all.Sequence()
		c := all.Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			r, err := record(k, v)
			if err != nil {
				return err
			}
			records = append(records, r)
		}
		return nil
	})
	return records, at, err
}

// Commit implements [keystore.Backend].
func (b *Backend) Commit(ctx context.Context, held keystore.Lock, changes ...keystore.Record) (at uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if held != nil {
		if l, ok := held.(*lock); !ok || b.locks[l.name] != l {
			return 0, keystore.ErrLockLost
		}
	}
	var made keystore.Committed
	err = b.db.Update(func(tx *bbolt.Tx) error {
		all := tx.Bucket(bucket)
		for _, c := range changes {
			was, err := record([]byte(c.Name), all.Get([]byte(c.Name)))
			if err != nil {
				return err
			}
			if was.Version != c.Version {
				return keystore.ErrConflict
			}
		}
		var err error
		if at, err = all.NextSequence(); err != nil {
			return err
		}
		for _, c := range changes {
			switch {
			case c.Keep:
				continue
			case c.Value == nil:
				err = all.Delete([]byte(c.Name))
			default:
				err = all.Put([]byte(c.Name), append(binary.BigEndian.AppendUint64(nil, at), c.Value...))
			}
			if err != nil {
				return err
			}
			made.Records = append(made.Records, keystore.Record{Name: c.Name, Value: bytes.Clone(c.Value), Version: at})
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	made.At = at
	if b.log = append(b.log, made); len(b.log) > maxLog {
		b.base, b.log = b.log[0].At, b.log[1:]
	}
	close(b.changed)
	b.changed = make(chan struct{})
	return at, nil
}

// since returns what the log has after a version, and what is closed when there is more.
func (b *Backend) since(after uint64) ([]keystore.Committed, <-chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if after < b.base {
		return nil, nil, keystore.ErrCompacted
	}
	from := len(b.log)
	for from > 0 && b.log[from-1].At > after {
		from--
	}
	return b.log[from:len(b.log):len(b.log)], b.changed, nil
}

// Watch implements [keystore.Backend].
func (b *Backend) Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[keystore.Committed, error] {
	return func(yield func(keystore.Committed, error) bool) {
		for {
			log, more, err := b.since(after)
			if err != nil {
				yield(keystore.Committed{}, err)
				return
			}
			for _, c := range log {
				after = c.At
				of := keystore.Committed{At: c.At}
				for _, r := range c.Records {
					if strings.HasPrefix(r.Name, prefix) {
						of.Records = append(of.Records, r)
					}
				}
				if ctx.Err() != nil || len(of.Records) > 0 && !yield(of, nil) {
					return
				}
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}
}

// lock is one that this process has: no other has the file.
type lock struct {
	b    *Backend
	name string
	gone chan struct{}
}

// Lock implements [keystore.Backend].
func (b *Backend) Lock(ctx context.Context, name string) (keystore.Lock, error) {
	mine := &lock{b, name, make(chan struct{})}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b.mu.Lock()
		other := b.locks[name]
		if other == nil {
			b.locks[name] = mine
		}
		b.mu.Unlock()
		if other == nil {
			return mine, nil
		}
		select {
		case <-other.gone:
		case <-ctx.Done():
		}
	}
}

// Lost implements [keystore.Lock].
func (l *lock) Lost() <-chan struct{} { return l.gone }

// Unlock implements [keystore.Lock].
func (l *lock) Unlock(context.Context) error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if l.b.locks[l.name] == l {
		delete(l.b.locks, l.name)
		close(l.gone)
	}
	return nil
}

var _ keystore.Backend = (*Backend)(nil)
