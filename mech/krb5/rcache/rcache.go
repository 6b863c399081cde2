// Package rcache is the replay cache: which authenticators were seen within the permitted clock
// skew. It keeps the file format and the locks of MIT krb5 1.18 and later ("file2"), so that
// acceptors of both kinds on one host see each other's entries. The file survives the process; it
// is not synced to disk, as a host that crashes takes longer to come back than most skews.
//
// The file is a random 16-byte seed and hash tables of 16-byte slots, a 12-byte tag and a
// big-endian time stamp in seconds, 0 for an empty slot. Table 1 has 1023 slots, table 2 has 2048,
// every further one twice its predecessor's. A tag may be at the slot its SipHash names, or at the
// next; if neither is empty it may be in the next table, whose hash has the first seed byte counted
// up.
package rcache

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	// nameCheck is how often Store asks whether the name still means the open file. That the file
	// was unlinked or replaced it sees every time; this is for a file that was moved aside.
	nameCheck = 100 * time.Millisecond
	// idleReset is how long nothing must have been stored, beyond twice the skew, before the tables
	// of a busier time are dropped.
	idleReset = time.Hour
)

var (
	// ErrReplay says that the tag is in the cache.
	ErrReplay = errors.New("request is a replay")
	// errFull says that every table up to the largest possible file is in use.
	errFull = errors.New("replay cache is full: 2 GiB of unexpired entries")
	// errBusy says that another process held the file's lock for too long.
	errBusy = errors.New("replay cache is locked by another process")
	// errClosed says that Store was called after Close.
	errClosed = errors.New("replay cache is closed")
)

// DefaultName returns the name of the cache to use, as MIT's library chooses: KRB5RCACHENAME, else
// KRB5RCACHETYPE as a type without a residual, else configured (default_rcache_name of
// [libdefaults]), else "dfl:". A variable that is set but empty counts as not set.
func DefaultName(getenv func(string) string, configured string) string {
	if v := getenv("KRB5RCACHENAME"); v != "" {
		return v
	}
	if v := getenv("KRB5RCACHETYPE"); v != "" {
		return v + ":"
	}
	return cmp.Or(configured, "dfl:")
}

// Cache is one replay cache, safe for concurrent use. Two Caches of one file exclude each other
// too, but more slowly.
type Cache struct {
	path string // empty: nothing is kept
	dfl  bool   // guard against files others put into a shared directory

	size atomic.Int64 // of the file, as the last Store left it

	mu      sync.Mutex
	closed  bool
	fd      int         // -1: not open
	mem     []byte      // fd, mapped; longer than the file at times
	st      unix.Stat_t // of fd, under the lock
	checked time.Time   // when path was last seen to be fd
}

// Open resolves the name of a cache: "dfl:" is krb5_EUID.rcache2 in the directory KRB5RCACHEDIR or
// TMPDIR names, else /var/tmp; "file2:PATH" is that file; "none:" keeps nothing. The file is
// opened, and made if need be, by the first Store, whose error says what is wrong.
func Open(name string, getenv func(string) string) (*Cache, error) {
	c := &Cache{fd: -1}
	kind, residual, ok := strings.Cut(name, ":")
	switch {
	case ok && kind == "none":
	case ok && kind == "dfl":
		dir := cmp.Or(getenv("KRB5RCACHEDIR"), getenv("TMPDIR"), "/var/tmp")
		c.path, c.dfl = dir+"/krb5_"+strconv.Itoa(os.Geteuid())+".rcache2", true
	case ok && kind == "file2" && residual != "":
		c.path = residual
	default:
		return nil, fmt.Errorf("replay cache name %q: expected none:, dfl: or file2:PATH", name)
	}
	return c, nil
}

// Path returns the file's name, empty when nothing is kept.
func (c *Cache) Path() string { return c.path }

// Size returns how long the file was after the last Store, 0 before the first.
func (c *Cache) Size() int64 { return c.size.Load() }

// Close closes the file. A Store after it fails.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.drop()
}

// Store records an authenticator, or returns ErrReplay if it is there already; any other error
// means that it could not be decided, and the request must be refused. The tag is the checksum at
// the end of the authenticator's ciphertext; its first 12 octets count, a shorter one is padded
// with zeros. Entries are kept for twice the skew: an authenticator from a clock that is ahead by
// the skew stays valid that long. Exactly one of any number of concurrent Stores of a tag succeeds,
// in whatever processes they run.
func (c *Cache) Store(tag []byte, now time.Time, skew time.Duration) error {
	if c.path == "" {
		return nil
	}
	var rec [recordLen]byte
	copy(rec[:tagLen], tag)
	// Every acceptor, MIT's too, forgets an entry one skew after its stamp.
	binary.BigEndian.PutUint32(rec[tagLen:], uint32(now.Add(skew).Unix()))
	start := time.Now()

	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.lock(start)
	if err == nil {
		err = c.store(&rec, uint32(now.Unix()), uint32(skew/time.Second))
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

// lock returns with the file open, locked, and still the one its name means: MIT's library opens it
// by name for every entry.
func (c *Cache) lock(start time.Time) error {
	if c.closed {
		return errClosed
	}
	deadline := start.Add(lockWait)
	for {
		if c.fd < 0 {
			if err := c.open(); err != nil {
				return err
			}
		}
		if err := waitLock(c.fd, deadline); err != nil {
			return err
		}
		if err := unix.Fstat(c.fd, &c.st); err != nil {
			return err
		}
		same := c.st.Nlink != 0
		if same && start.Sub(c.checked) >= nameCheck {
			var err error
			if same, err = c.named(); err != nil {
				return err
			}
			c.checked = start
		}
		if same {
			return nil
		}
		c.drop()
		if time.Now().After(deadline) {
			return errors.New("the file is being replaced over and over")
		}
	}
}

// named reports whether path means the open file.
func (c *Cache) named() (bool, error) {
	var st unix.Stat_t
	stat := unix.Stat
	if c.dfl {
		stat = unix.Lstat
	}
	err := stat(c.path, &st)
	if err == unix.ENOENT {
		return false, nil
	}
	return st.Dev == c.st.Dev && st.Ino == c.st.Ino, err
}

// waitLock takes the exclusive lock. It asks again and again instead of sleeping in the kernel, for
// that wait could not be given up.
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
			return errBusy
		}
		time.Sleep(pause)
		pause = min(2*pause, time.Millisecond)
	}
}

// setLock locks or unlocks the whole file for this open file description. Such a lock excludes
// MIT's, whether they are of this kind or of a process.
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
	err = unix.Fstat(fd, &c.st)
	switch {
	case err != nil:
	case c.st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = errors.New("not a regular file")
	case c.dfl && c.st.Uid != uint32(os.Geteuid()):
		err = fmt.Errorf("the file is owned by uid %d; expected uid %d", c.st.Uid, os.Geteuid())
	case c.dfl && c.st.Nlink > 1:
		err = errors.New("the file has another name too: it may be one of ours that somebody else has put there; remove it")
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	c.fd, c.checked = fd, time.Time{}
	return nil
}

func (c *Cache) drop() error {
	if c.fd < 0 {
		return nil
	}
	if c.mem != nil {
		unix.Munmap(c.mem) // of a mapping that is there
		c.mem = nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// reach maps the file at least as far as it goes. A search may look at many tables, and a mapping
// spares a system call for each; it shows what is written, as it is the page cache that read and
// write work on. It is for reading only: not every file system dates a file that is written through
// a mapping, and by its date an idle cache is known.
func (c *Cache) reach() error {
	if c.st.Size <= int64(len(c.mem)) {
		return nil
	}
	if c.st.Size > maxSize {
		return fmt.Errorf("the file has %d octets; expected at most %d", c.st.Size, maxSize)
	}
	if c.mem != nil {
		if err := unix.Munmap(c.mem); err != nil {
			return err
		}
		c.mem = nil
	}
	length := 1 << 16
	for int64(length) < c.st.Size {
		length *= 2
	}
	mem, err := unix.Mmap(c.fd, 0, length, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	c.mem = mem
	return nil
}

// store looks for rec in the locked file and writes it. Nothing is remembered from one call to the
// next: another process may have written, or the file may have been emptied.
func (c *Cache) store(rec *[recordLen]byte, now, skew uint32) (err error) {
	// A file that shrinks without the lock, or a hole that a full tmpfs has no page for, is a
	// memory fault.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if _, fault := r.(interface{ Addr() uintptr }); fault {
			err = errors.New("the file was cut short, or the disk is full")
		} else if r != nil {
			panic(r)
		}
	}()

	if idle := int64(now) - c.st.Mtim.Sec; c.st.Size > seedLen && idle > 2*int64(skew)+int64(idleReset/time.Second) {
		// Every entry has expired, yet each of the tables of a busy time would be searched for
		// ever, for an expired slot does not end the search.
		if err := unix.Ftruncate(c.fd, seedLen); err != nil {
			return err
		}
		c.st.Size = seedLen
	}
	if err := c.reach(); err != nil {
		return err
	}
	seed, err := c.seed()
	if err != nil {
		return err
	}
	avail := int64(-1)
	for offset, slots := int64(seedLen), int64(1023); ; {
		if offset > maxSize-slots*recordLen {
			return errFull
		}
		slot := offset + int64(siphash(&seed, rec[:tagLen])%uint64(slots))*recordLen
		empty := false
		for end := slot + 2*recordLen; slot < end; slot += recordLen {
			stamp := uint32(0) // as behind the end of the file
			if slot+recordLen <= c.st.Size {
				old := c.mem[slot : slot+recordLen]
				stamp = binary.BigEndian.Uint32(old[tagLen:])
				if stamp != 0 && bytes.Equal(old[:tagLen], rec[:tagLen]) {
					return ErrReplay
				}
			}
			empty = empty || stamp == 0
			if avail < 0 && (stamp == 0 || now > stamp+skew) {
				avail = slot
			}
		}
		if empty {
			return c.write(rec[:], avail)
		}
		offset += slots * recordLen
		if slots *= 2; slots == 2*1023 {
			slots = 2048
		}
		seed[0]++
	}
}

// seed reads the seed, made now if the file is too short to have one.
func (c *Cache) seed() (seed [seedLen]byte, err error) {
	if c.st.Size >= seedLen {
		copy(seed[:], c.mem)
		return seed, nil
	}
	rand.Read(seed[:]) // never fails
	return seed, c.write(seed[:], 0)
}

// write puts b into the file at that place, beyond its end if need be.
func (c *Cache) write(b []byte, at int64) error {
	for {
		n, err := unix.Pwrite(c.fd, b, at)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n != len(b):
			return fmt.Errorf("only %d of %d octets written", n, len(b))
		default:
			c.size.Store(max(c.st.Size, at+int64(n)))
			return nil
		}
	}
}
