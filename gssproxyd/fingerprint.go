package main

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fingerprint tells whether files have changed since they were read.
type fingerprint struct {
	files []string
	state string
}

// takeFingerprint records the state of files that were read no earlier than since. A file that changed after that may have
// been read half old: such a fingerprint counts as changed, and the files are read once more. When a file changed is what
// the kernel says, for a modification time may be any; and even that is in the future when the clock was set back.
func takeFingerprint(files []string, since time.Time) fingerprint {
	state, newest := stat(files)
	if newest >= since.Add(-clockTick).UnixNano() && newest <= time.Now().UnixNano() {
		state = ""
	}
	return fingerprint{files, state}
}

// clockTick is how far the clock of file systems may be behind.
const clockTick = 10 * time.Millisecond

func (f fingerprint) changed() bool {
	state, _ := stat(f.files)
	return state != f.state
}

// stat describes the files' state in a string that differs when any of them differs, and returns when one was changed
// last, in nanoseconds.
func stat(files []string) (state string, newest int64) {
	var b strings.Builder
	for _, name := range files {
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil {
			b.WriteString("absent;")
			continue
		}
		fmt.Fprintf(&b, "%d.%d.%d.%d.%d;", st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano())
		newest = max(newest, st.Ctim.Nano())
	}
	return b.String(), newest
}
