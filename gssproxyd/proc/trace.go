package proc

import (
	"fmt"
	"os"
	"time"
)

// trace appends a line to the file that KRB5_TRACE names, in libkrb5's form; without one it does nothing. The file is
// opened for each line, so that it can be moved away and no descriptor is kept; tracing is for looking into a problem.
// Lines name principals and reasons, never keys or tokens.
func (p *Procedures) trace(format string, args ...any) {
	if p.traceFile == "" {
		return
	}
	f, err := os.OpenFile(p.traceFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	now := p.now()
	fmt.Fprintf(f, "[%d] %d.%06d: %s\n", os.Getpid(), now.Unix(), now.Nanosecond()/int(time.Microsecond), fmt.Sprintf(format, args...))
}
