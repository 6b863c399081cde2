package main

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// fingerprint is the state of files when they were read.
type fingerprint struct {
	files []string
	state string
}

// takeFingerprint records the state of files that were read no earlier than since. A file that may
// have been read half old counts as changed, and the files are read once more.
func takeFingerprint(files []string, since time.Time) fingerprint {
	state, shows := stat(files, since)
	if !shows {
		state = ""
	}
	return fingerprint{files, state}
}

// changed reports whether a file has changed since it was read.
func (f fingerprint) changed() bool {
	state, _ := stat(f.files, time.Now())
	return state != f.state
}

// stat describes the files' state in a string, and reports whether it becomes another with every
// change after read.
func stat(files []string, read time.Time) (state string, shows bool) {
	var b strings.Builder
	shows = true
	for _, name := range files {
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil {
			b.WriteString("absent;")
			continue
		}
		fmt.Fprintf(&b, "%d.%d.%d.%d.%d;", st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
		shows = shows && openat.ChangesShow(st.Ctim, read)
	}
	return b.String(), shows
}
