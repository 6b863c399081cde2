package seal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// The key file, "handle.key" in the state directory; integers are big-endian:
//
//	"GSSPXKEY" | version, 4 bytes: 1 | number of keys, 4 bytes | keys, oldest first
//	key: id, 8 bytes | created, 8 bytes, Unix seconds | key, 32 bytes
//
// It is never written in place: a new file is made complete beside it and linked or renamed to its
// name.

const (
	fileName    = "handle.key"
	fileMagic   = "GSSPXKEY"
	fileVersion = 1
	headerSize  = len(fileMagic) + 8
	recordSize  = idSize + 8 + keySize
	maxFileSize = headerSize + maxKeys*recordSize
)

// Open returns a Box whose keys live in dir/handle.key, making the directory (0700) and the file
// (0600) if need be. Daemons that start at the same time agree on one key. A file that another user
// owns, or that others may read or write, is refused, and so is a directory in which others may
// write: the error says what to do.
func Open(dir string) (*Box, error) {
	if err := makeDir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("seal: make the state directory: %w", err)
	}
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	b := &Box{dir: dir}
	keys, err := readKeys(d, dir)
	if errors.Is(err, fs.ErrNotExist) {
		// link fails when another daemon was first; then its key is the one.
		err = writeKeys(d, []*key{newKey(time.Now())}, d.Link)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		keys, err = readKeys(d, dir)
	}
	if err != nil {
		return nil, err
	}
	b.keys.Store(&keys)
	return b, nil
}

// Rotate makes a new key that seals from now on. Keys superseded more than 30 days ago are
// forgotten; the rest go on opening what they sealed. Other daemons that use the same file read it
// when they meet what the new key has sealed.
func (b *Box) Rotate() error { return b.rotate(time.Now()) }

func (b *Box) rotate(now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := *b.keys.Load()
	if b.dir == "" {
		keys = append(current(keys, now), newKey(now))
		b.keys.Store(&keys)
		return nil
	}
	d, err := openDir(b.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	unlock, err := lockDir(d)
	if err != nil {
		return err
	}
	defer unlock()
	if keys, err = readKeys(d, b.dir); err != nil {
		return err
	}
	keys = append(current(keys, now), newKey(now))
	if err := writeKeys(d, keys, d.Rename); err != nil {
		return err
	}
	b.keys.Store(&keys)
	return nil
}

// current returns a copy of keys without those that were superseded too long ago, leaving room for
// one more.
func current(keys []*key, now time.Time) []*key {
	first := max(0, len(keys)-(maxKeys-1))
	for first < len(keys)-1 && keys[first+1].outlived(now) {
		first++
	}
	return append([]*key(nil), keys[first:]...)
}

// reread reads the key file again, which another daemon may have given a newer key; once a second
// at most, for anybody can bring what no key has sealed. On error the keys stay as they are.
func (b *Box) reread(now time.Time) {
	if b.dir == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.read) < time.Second {
		return
	}
	b.read = now
	d, err := openDir(b.dir)
	if err != nil {
		return
	}
	defer d.Close()
	if keys, err := readKeys(d, b.dir); err == nil {
		b.keys.Store(&keys)
	}
}

// Newest returns when the key that seals was made.
func (b *Box) Newest() time.Time {
	keys := *b.keys.Load()
	return time.Unix(keys[len(keys)-1].created, 0)
}

func makeDir(path string) error {
	parent, name, err := openat.Find(path)
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Mkdir(name)
}

// openDir opens the state directory if nobody else can put keys there.
func openDir(path string) (*openat.Dir, error) {
	d, err := openat.OpenDir(path)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("seal: %s is not a directory; the state directory is needed there", path)
	}
	if err != nil {
		return nil, fmt.Errorf("seal: state directory: %w", err)
	}
	euid, st := uint32(os.Geteuid()), d.Stat()
	switch {
	case st.Uid != euid && st.Uid != 0:
		err = fmt.Errorf("seal: state directory %s belongs to uid %d, expected %d; chown it", path, st.Uid, euid)
	case st.Mode&0o022 != 0:
		err = fmt.Errorf("seal: state directory %s has mode %04o, so others could replace the key; chmod 0700 %s", path, st.Mode&0o7777, path)
	default:
		if err = d.CheckKeeps(); err != nil {
			err = fmt.Errorf("seal: state directory %s: %w", path, err)
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// readKeys reads the key file in d, whose path is for errors.
func readKeys(d *openat.Dir, dir string) ([]*key, error) {
	path := filepath.Join(dir, fileName)
	f, err := d.Open(fileName, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("seal: key file %s is a symbolic link; put the file itself there", path)
	}
	if err != nil {
		return nil, fmt.Errorf("seal: key file: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("seal: key file: %w", &fs.PathError{Op: "fstat", Path: path, Err: err})
	}
	euid := uint32(os.Geteuid())
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("seal: key file %s is not a regular file; remove it", path)
	case st.Uid != euid:
		return nil, fmt.Errorf("seal: key file %s belongs to uid %d, expected %d; chown it, or remove it to have a new key made", path, st.Uid, euid)
	case st.Mode&0o077 != 0:
		return nil, fmt.Errorf("seal: key file %s has mode %04o, expected 0600: others may know the key; remove the file to have a new key made (handles that clients hold become void)", path, st.Mode&0o7777)
	case st.Size > int64(maxFileSize):
		return nil, fmt.Errorf("seal: key file %s has %d bytes, expected at most %d; %s", path, st.Size, maxFileSize, removeIt)
	}
	b := make([]byte, st.Size)
	defer clear(b)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("seal: key file %s: %w", path, err)
	}
	keys, err := parseKeys(b)
	if err != nil {
		return nil, fmt.Errorf("seal: key file %s: %w; %s", path, err, removeIt)
	}
	return keys, nil
}

const removeIt = "remove the file to have a new key made (handles that clients hold become void)"

func parseKeys(b []byte) ([]*key, error) {
	if len(b) < headerSize || string(b[:len(fileMagic)]) != fileMagic {
		return nil, fmt.Errorf("does not start with %q: not a key file", fileMagic)
	}
	b = b[len(fileMagic):]
	if v := binary.BigEndian.Uint32(b); v != fileVersion {
		return nil, fmt.Errorf("version %d, expected %d", v, fileVersion)
	}
	n := binary.BigEndian.Uint32(b[4:])
	b = b[8:]
	if n < 1 || n > maxKeys || len(b) != int(n)*recordSize {
		return nil, fmt.Errorf("%d bytes for %d keys, expected %d each and 1 to %d keys", len(b), n, recordSize, maxKeys)
	}
	keys := make([]*key, n)
	for i := range keys {
		k := &key{secret: make([]byte, keySize)}
		b = b[copy(k.id[:], b):]
		k.created = int64(binary.BigEndian.Uint64(b))
		b = b[8:]
		b = b[copy(k.secret, b):]
		k.init()
		keys[i] = k
	}
	return keys, nil
}

func appendKeys(b []byte, keys []*key) []byte {
	b = append(b, fileMagic...)
	b = binary.BigEndian.AppendUint32(b, fileVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(keys)))
	for _, k := range keys {
		b = append(b, k.id[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(k.created))
		b = append(b, k.secret...)
	}
	return b
}

// writeKeys makes a complete, synced file in d and gives it the key file's name with place:
// [openat.Dir.Link] leaves an existing file alone, [openat.Dir.Rename] replaces it.
func writeKeys(d *openat.Dir, keys []*key, place func(from, to string) error) error {
	content := appendKeys(make([]byte, 0, maxFileSize), keys)
	defer clear(content)
	err := d.Write(fileName, content, (*os.File).Sync, place)
	if err == nil {
		err = syncDir(d)
	}
	if err != nil {
		return fmt.Errorf("seal: make the key file: %w", err)
	}
	return nil
}

func syncDir(d *openat.Dir) error {
	f, err := d.Self()
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// lockDir keeps other processes from changing the key file. It gives up after five seconds.
func lockDir(d *openat.Dir) (unlock func(), err error) {
	f, err := d.Self()
	if err != nil {
		return nil, fmt.Errorf("seal: lock the state directory: %w", err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("seal: lock the state directory: %w; another daemon is changing the key", err)
		}
	}
}
