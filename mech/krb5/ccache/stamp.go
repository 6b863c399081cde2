package ccache

import (
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// Stamp stands for one content of a cache: while [StampOf] returns the same one, the content is the
// same. Stamps of different caches are not comparable.
type Stamp struct {
	dev, ino            uint64
	size, mtime, change int64

	memory  *Memory // whose versions these are
	version uint64
}

// StampOf returns the stamp of what c holds now, without reading it. It does not count (false) for
// kinds that do not tell cheaply, for a cache that does not exist, and for a moment after a file
// has changed.
func StampOf(c Cache) (Stamp, bool) {
	var f *file
	switch c := c.(type) {
	case *file:
		f = c
	case *dirCache:
		f = c.file
	case *memoryCache:
		defer c.m.mu.Unlock()
		all, err := c.lock()
		if err != nil {
			return Stamp{}, false
		}
		return Stamp{memory: c.m, version: all.version}, true
	default:
		return Stamp{}, false
	}
	// Nothing is decided here about the file: it is the one that was looked at when it was read, or
	// another one.
	var st unix.Stat_t
	if err := unix.Stat(f.path, &st); err != nil {
		return Stamp{}, false
	}
	f.met(st.Uid) // what the stamp stands for need not be read again
	return stampOfFile(&st)
}

// stampOfFile returns the stamp of a file, and false for a moment after it has changed.
func stampOfFile(st *unix.Stat_t) (Stamp, bool) {
	s := Stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), change: st.Ctim.Nano()}
	return s, openat.ChangesShow(st.Ctim, time.Now())
}
