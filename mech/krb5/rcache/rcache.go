// Package rcache is the replay cache: which authenticators were seen within the
// permitted clock skew. It keeps the file format and the locks of MIT krb5 1.18
// and later ("file2"), so that acceptors of both kinds on one host see each
// other's entries. The file survives the process; it is not synced to disk, as a
// host that crashes takes longer to come back than most skews.
//
// The file is a random 16-byte seed and hash tables of 16-byte slots, a 12-byte
// tag and a big-endian time stamp in seconds, 0 for an empty slot. Table 1 has
// 1023 slots, table 2 has 2048, every further one twice its predecessor's. A tag
// may be at the slot its SipHash names, or at the next; if neither is empty it may
// be in the next table, whose hash has the first seed byte counted up.
package rcache

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	seedLen   = 16
	tagLen    = 12
	recordLen = 16
	maxSize   = 1<<31 - 1 // of the file, as MIT's library has it

	// lockWait is how long Store waits for another process's lock.
	lockWait = 5 * time.Second
	// idleReset is how long nothing must have been stored, beyond twice the skew,
	// before the tables of a busier time are dropped.
	idleReset = time.Hour
)

var (
	// ErrReplay says that the tag is in the cache.
	ErrReplay = errors.New("request is a replay")
	// ErrFull says that every table up to the largest possible file is in use.
	ErrFull = errors.New("replay cache is full: 2 GiB of unexpired entries")
	// ErrBusy says that another process held the file's lock for too long.
	ErrBusy = errors.New("replay cache is locked by another process")
	// ErrClosed says that Store was called after Close.
	ErrClosed = errors.New("replay cache is closed")
)

// DefaultName returns the name of the cache to use, as MIT's library chooses:
// KRB5RCACHENAME, else KRB5RCACHETYPE as a type without a residual, else
// configured (default_rcache_name of [libdefaults]), else "dfl:". A variable that
// is set but empty counts as not set.
func DefaultName(getenv func(string) string, configured string) string {
	if v := getenv("KRB5RCACHENAME"); v != "" {
		return v
	}
	if v := getenv("KRB5RCACHETYPE"); v != "" {
		return v + ":"
	}
	if configured != "" {
		return configured
	}
	return "dfl:"
}

// Cache is one replay cache, safe for concurrent use. Two Caches of one file
// exclude each other too, but more slowly.
type Cache struct {
	name string
	path string // empty: nothing is kept
	dfl  bool   // guard against files others put into a shared directory

	mu     sync.Mutex
	fd     int // -1: not open
	dev    uint64
	ino    uint64
	closed bool
}

// Open resolves the name of a cache: "dfl:" is krb5_EUID.rcache2 in the directory
// KRB5RCACHEDIR or TMPDIR names, else /var/tmp; "file2:PATH" is that file;
// "none:" keeps nothing. An empty name is DefaultName(getenv, ""). The file is
// opened, and made if need be, by the first Store, whose error says what is wrong.
func Open(name string, getenv func(string) string) (*Cache, error) {
	if name == "" {
		name = DefaultName(getenv, "")
	}
	c := &Cache{name: name, fd: -1}
	kind, residual, ok := strings.Cut(name, ":")
	switch {
	case ok && kind == "none":
	case ok && kind == "dfl":
		dir := getenv("KRB5RCACHEDIR")
		if dir == "" {
			dir = getenv("TMPDIR")
		}
		if dir == "" {
			dir = "/var/tmp"
		}
		c.path, c.dfl = dir+"/krb5_"+strconv.Itoa(os.Geteuid())+".rcache2", true
	case ok && kind == "file2" && residual != "":
		c.path = residual
	default:
		return nil, fmt.Errorf("replay cache name %q: expected dfl:, file2:PATH or none:", name)
	}
	return c, nil
}

// Name returns the name as given to Open, and Path the file, empty for "none:".
func (c *Cache) Name() string { return c.name }

// Path returns the file's name, empty when nothing is kept.
func (c *Cache) Path() string { return c.path }

// Close closes the file. A Store after it fails.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.drop()
}

// Store records an authenticator, or returns ErrReplay if it is there already;
// any other error means that it could not be decided, and the request must be
// refused. The tag is the checksum at the end of the authenticator's ciphertext;
// its first 12 octets count, a shorter one is padded with zeros. Entries older
// than now - skew are forgotten. Exactly one of any number of concurrent Stores
// of a tag succeeds, in whatever processes they run.
func (c *Cache) Store(tag []byte, now time.Time, skew time.Duration) error {
	if c.path == "" {
		return nil
	}
	var rec [recordLen]byte
	copy(rec[:tagLen], tag)
	binary.BigEndian.PutUint32(rec[tagLen:], uint32(now.Unix()))
	deadline := time.Now().Add(lockWait)

	c.mu.Lock()
	defer c.mu.Unlock()
	st, err := c.lock(deadline)
	if err == nil {
		err = c.store(&rec, &st, uint32(skew/time.Second))
		if e := setLock(c.fd, unix.F_UNLCK); e != nil && err == nil {
			err = e
		}
	}
	if err != nil && err != ErrReplay {
		c.drop() // a lock that may still be held ends with the file
		return fmt.Errorf("replay cache %s: %w", c.path, err)
	}
	return err
}

// lock returns with the file open and locked, and its state. MIT's library opens
// the file by name for every entry, so the name must still mean the open file.
func (c *Cache) lock(deadline time.Time) (st unix.Stat_t, err error) {
	if c.closed {
		return st, ErrClosed
	}
	for {
		if c.fd < 0 {
			if err := c.open(); err != nil {
				return st, err
			}
		}
		if err := waitLock(c.fd, deadline); err != nil {
			return st, err
		}
		stat := unix.Stat
		if c.dfl {
			stat = unix.Lstat
		}
		switch err := stat(c.path, &st); {
		case err == nil && st.Dev == c.dev && st.Ino == c.ino:
			return st, nil
		case err != nil && err != unix.ENOENT:
			return st, err
		case time.Now().After(deadline):
			return st, errors.New("the file is being replaced over and over")
		}
		c.drop()
	}
}

// waitLock takes the exclusive lock. It asks again and again instead of sleeping
// in the kernel, for that wait could not be given up.
func waitLock(fd int, deadline time.Time) error {
	pause := 20 * time.Microsecond
	for try := 0; ; try++ {
		err := setLock(fd, unix.F_WRLCK)
		if err != unix.EAGAIN && err != unix.EACCES {
			return err
		}
		if try < 10 {
			runtime.Gosched()
			continue
		}
		if time.Now().After(deadline) {
			return ErrBusy
		}
		time.Sleep(pause)
		pause = min(2*pause, time.Millisecond)
	}
}

// setLock locks or unlocks the whole file for this open file description. Such a
// lock excludes MIT's, whether they are of this kind or of a process.
func setLock(fd int, how int16) error {
	for {
		err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: how})
		if err != unix.EINTR {
			return err
		}
	}
}

func (c *Cache) open() error {
	flags := unix.O_CREAT | unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOCTTY
	if c.dfl {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Open(c.path, flags, 0o600)
	for err == unix.EINTR {
		fd, err = unix.Open(c.path, flags, 0o600)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("not a regular file")
	case c.dfl && st.Uid != uint32(os.Geteuid()):
		err = fmt.Errorf("the file is owned by uid %d; expected uid %d", st.Uid, os.Geteuid())
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	c.fd, c.dev, c.ino = fd, st.Dev, st.Ino
	return nil
}

func (c *Cache) drop() error {
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// store looks for rec in the locked file and writes it. Nothing is remembered
// from one call to the next: another process may have written, or the file may
// have been emptied.
func (c *Cache) store(rec *[recordLen]byte, st *unix.Stat_t, skew uint32) error {
	now := binary.BigEndian.Uint32(rec[tagLen:])
	if idle := int64(now) - st.Mtim.Sec; st.Size > seedLen && idle > 2*int64(skew)+int64(idleReset/time.Second) {
		// Every entry has expired, yet each of the tables of a busy time would
		// cost a read for ever, for an expired slot does not end the search.
		if err := unix.Ftruncate(c.fd, seedLen); err != nil {
			return err
		}
	}
	seed, err := c.seed()
	if err != nil {
		return err
	}
	avail := int64(-1)
	var buf [2 * recordLen]byte
	for offset, slots := int64(seedLen), int64(1023); ; {
		if offset > maxSize-slots*recordLen {
			return ErrFull
		}
		at := offset + int64(siphash(&seed, rec[:tagLen])%uint64(slots))*recordLen
		n, err := pread(c.fd, buf[:], at)
		if err != nil {
			return err
		}
		empty := n < len(buf) // a slot behind the end of the file is empty
		for i := 0; i < 2; i++ {
			slot, stamp := at+int64(i)*recordLen, uint32(0)
			if end := (i + 1) * recordLen; n >= end {
				stamp = binary.BigEndian.Uint32(buf[end-4:])
				if stamp != 0 && bytes.Equal(buf[end-recordLen:end-4], rec[:tagLen]) {
					return ErrReplay
				}
			}
			if stamp == 0 {
				empty = true
			}
			if avail < 0 && (stamp == 0 || now > stamp+skew) {
				avail = slot
			}
		}
		if empty {
			return pwrite(c.fd, rec[:], avail)
		}
		offset += slots * recordLen
		if slots *= 2; offset == seedLen+1023*recordLen {
			slots = 2048
		}
		seed[0]++
	}
}

// seed reads the seed, made now if the file is too short to have one.
func (c *Cache) seed() (seed [seedLen]byte, err error) {
	n, err := pread(c.fd, seed[:], 0)
	if err != nil || n == seedLen {
		return seed, err
	}
	rand.Read(seed[:]) // never fails
	return seed, pwrite(c.fd, seed[:], 0)
}

// pread reads up to len(b) octets; fewer at the end of the file.
func pread(fd int, b []byte, at int64) (int, error) {
	for {
		n, err := unix.Pread(fd, b, at)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// pwrite writes b whole; a disk that is full is an error.
func pwrite(fd int, b []byte, at int64) error {
	for {
		n, err := unix.Pwrite(fd, b, at)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n != len(b):
			return fmt.Errorf("only %d of %d octets written", n, len(b))
		default:
			return nil
		}
	}
}
