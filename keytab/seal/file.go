package seal

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The key file, "handle.key" in the state directory; integers are big-endian:
//
//	"GSSPXKEY" | version, 4 bytes: 1 | number of keys, 4 bytes | keys, oldest first
//	key: id, 8 bytes | created, 8 bytes, Unix seconds | key, 32 bytes
//
// It is never written in place: a new file is made complete beside it and linked or renamed to its name.

const (
	fileName    = "handle.key"
	fileMagic   = "GSSPXKEY"
	fileVersion = 1
	headerSize  = len(fileMagic) + 8
	recordSize  = idSize + 8 + keySize
	maxFileSize = headerSize + maxKeys*recordSize
)

// Open returns a Box whose keys live in dir/handle.key, making the directory (0700) and the file (0600) if need be.
// Daemons that start at the same time agree on one key. A file that another user owns, or that others may read or
// write, is refused, and so is a directory in which others may write: the error says what to do.
func Open(dir string) (*Box, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("seal: make the state directory: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	b := &Box{file: filepath.Join(dir, fileName)}
	keys, err := readKeys(b.file)
	if errors.Is(err, fs.ErrNotExist) {
		// link fails when another daemon was first; then its key is the one.
		err = writeKeys(b.file, []*key{newKey(time.Now())}, os.Link)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		keys, err = readKeys(b.file)
	}
	if err != nil {
		return nil, err
	}
	b.keys.Store(&keys)
	return b, nil
}

// Rotate makes a new key that seals from now on. Keys superseded more than 30 days ago are forgotten; the rest go on
// opening what they sealed. Other daemons that use the same file read it when they meet what the new key has sealed.
func (b *Box) Rotate() error { return b.rotate(time.Now()) }

func (b *Box) rotate(now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := *b.keys.Load()
	if b.file != "" {
		unlock, err := lockDir(filepath.Dir(b.file))
		if err != nil {
			return err
		}
		defer unlock()
		if keys, err = readKeys(b.file); err != nil {
			return err
		}
	}
	keys = append(current(keys, now), newKey(now))
	if b.file != "" {
		if err := writeKeys(b.file, keys, os.Rename); err != nil {
			return err
		}
	}
	b.keys.Store(&keys)
	return nil
}

// current returns a copy of keys without those that were superseded too long ago, leaving room for one more.
func current(keys []*key, now time.Time) []*key {
	first := max(0, len(keys)-(maxKeys-1))
	for first < len(keys)-1 && keys[first+1].outlived(now) {
		first++
	}
	return append([]*key(nil), keys[first:]...)
}

// reread reads the key file again, which another daemon may have given a newer key; once a second at most, for anybody
// can bring what no key has sealed. On error the keys stay as they are.
func (b *Box) reread(now time.Time) {
	if b.file == "" {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.read) < time.Second {
		return
	}
	b.read = now
	if keys, err := readKeys(b.file); err == nil {
		b.keys.Store(&keys)
	}
}

// Newest returns when the key that seals was made.
func (b *Box) Newest() time.Time {
	keys := *b.keys.Load()
	return time.Unix(keys[len(keys)-1].created, 0)
}

func checkDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("seal: state directory: %w", &fs.PathError{Op: "stat", Path: dir, Err: err})
	}
	euid := uint32(os.Geteuid())
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("seal: %s is not a directory; the state directory is needed there", dir)
	case st.Uid != euid && st.Uid != 0:
		return fmt.Errorf("seal: state directory %s belongs to uid %d, expected %d; chown it", dir, st.Uid, euid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("seal: state directory %s has mode %04o, so others could replace the key; chmod 0700 %s", dir, st.Mode&0o7777, dir)
	}
	return nil
}

func readKeys(path string) ([]*key, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
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

// writeKeys makes a complete, synced file beside path and gives it that name with place: os.Link leaves an existing
// file alone, os.Rename replaces it.
func writeKeys(path string, keys []*key, place func(from, to string) error) error {
	content := appendKeys(make([]byte, 0, maxFileSize), keys)
	defer clear(content)
	var random [8]byte
	rand.Read(random[:])
	temp := path + "." + hex.EncodeToString(random[:])
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("seal: make the key file: %w", err)
	}
	defer os.Remove(temp) // gone already after a rename
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = place(temp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("seal: make the key file: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// lockDir keeps other processes from changing the key file. It gives up after five seconds.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("seal: lock the state directory: %w", err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			d.Close()
			return nil, fmt.Errorf("seal: lock the state directory %s: %w; another daemon is changing the key", dir, err)
		}
	}
}
