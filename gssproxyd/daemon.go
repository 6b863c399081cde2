package main

import (
	"io"
	"log/slog"
	"log/syslog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/knfsd"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/gssproxyd/starter"
	"gssproxyd/gssproxyd/stores"
	"gssproxyd/keytab/seal"
	"gssproxyd/keytab/sealed"
	"gssproxyd/limits"
	"gssproxyd/rpc"
)

// daemon is the running program: what is in force now, and what a reload replaces.
type daemon struct {
	o           *options
	log         *slog.Logger
	level       *slog.LevelVar
	output      output
	users       conf.Users
	box         *seal.Box
	identity    *sealed.Identity // that a service manager has handed over; nil if there is none
	limits      *limits.Limits
	procs       *proc.Procedures
	rpc         *rpc.Server
	nss         *nss.Client     // for the kernel and the daemon itself; nil in userproxy mode
	lookUp      *nss.Client     // for callers, likewise
	starter     *starter.Client // nil but with run_as_user
	nfsd        *knfsd.Registration
	pods        *pods.Registry // nil in userproxy mode
	stores      *stores.Stores // likewise
	shown       serviceManager
	denials     denials
	files       files                    // the file system
	audit       atomic.Pointer[auditLog] // nil if there is none
	exported    exporter
	lastReading lastReading

	conf      *conf.Config
	krb5Files fingerprint
	listeners map[string]*net.UnixListener
	access    map[string]rpc.Access  // of each socket that was opened
	userAt    string                 // the path of the user's own, with -u
	lent      bool                   // by a service manager, which goes on with them
	lost      chan *net.UnixListener // those that failed

	admin                      *rpc.Server       // nil if there is no admin socket
	adminAt                    string            // its path
	adminListener, adminServed *net.UnixListener // that is open, and that is served

	asked     chan func() // by an administrator, for the main loop
	started   time.Time
	readAt    time.Time     // the configuration in force
	stopping  chan struct{} // closed when the daemon stops
	serving   sync.WaitGroup
	reading   sync.WaitGroup // of the configuration
	sealTried time.Time      // when the key for handles could not be replaced
	reloads   reloads
	debugging debugging
	serves    bool        // it has said that it has started
	idle      *time.Timer // until nobody has called for long enough; nil if that is no reason to end
}

// output is where the log goes; it can be changed while others write.
type output struct{ atomic.Pointer[io.Writer] }

func (o *output) Write(b []byte) (int, error) { return (*o.Load()).Write(b) }

// syslogLines writes lines of a text or JSON handler, each with the priority of its level.
type syslogLines struct{ *syslog.Writer }

func (w syslogLines) Write(b []byte) (int, error) {
	line := string(b)
	write := w.Info
	_, level, _ := strings.Cut(line, "level") // behind the time, before any text of others
	level = strings.TrimLeft(level, `=":`)    // in text and in JSON
	switch {
	case strings.HasPrefix(level, "ERROR"):
		write = w.Err
	case strings.HasPrefix(level, "WARN"):
		write = w.Warning
	case strings.HasPrefix(level, "DEBUG"):
		write = w.Debug
	}
	return len(b), write(line)
}
