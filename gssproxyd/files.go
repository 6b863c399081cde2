package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"gssproxyd/audit"
	"gssproxyd/conf"
	"gssproxyd/fuse"
	"gssproxyd/gssproxyd/admin"
	"gssproxyd/interposer"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// What the file system has of the daemon. Who mounts it is mount.go.

// files are the mounts of the file system that the daemon serves: one, and others where root likes.
type files struct {
	mu     sync.Mutex
	served atomic.Pointer[[]*fuse.Server] // nil: none
}

// filesGC is how much garbage there may be once files are served, in percent of what is in use. Most
// requests of files leave a kilobyte of it, and all callers wait longer while it is collected: with the
// runtime's 100 percent, that was so for more than one call of a hundred. The memory limit holds as before.
const filesGC = 400

// maxMounts is how many mounts there may be.
const maxMounts = 8

// adminMount is procedure MOUNT.
func (d *daemon) adminMount(_ context.Context, by *peer.Info, _ *admin.None, device *os.File, _ *xdr.AdminResMount) error {
	if device == nil {
		return errors.New("the call has come without the descriptor of a mount")
	}
	defer device.Close()
	if d.o.userproxy {
		return errors.New("a daemon with -u has no file system")
	}
	if !by.SamePIDNamespace() {
		return errors.New("the daemon is in another pid namespace than who mounts, as one of them in a container, and would take one process for another: mount where the daemon runs")
	}
	f := &d.files
	f.mu.Lock()
	defer f.mu.Unlock()
	list := slices.DeleteFunc(f.list(), func(s *fuse.Server) bool { return s.Ended() })
	if len(list) >= maxMounts {
		return fmt.Errorf("the daemon serves %d mounts already: unmount one of them (gssproxyd umount DIRECTORY)", len(list))
	}
	s, err := fuse.Serve(device, fuse.Options{
		Caller:  func(p *peer.Info) (interposer.Caller, error) { return d.rpc.Local(p, d.procs.DefaultSocket()) },
		Explain: d.explainFiles, Keys: d.shownKeytabs, Control: d.control, Limits: d.limits, Log: d.log,
	})
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(filesGC)
	}
	list = append(list, s)
	f.served.Store(&list)
	d.log.Info("serving a mount of the file system")
	return nil
}

// list returns a copy of what is served.
func (f *files) list() []*fuse.Server {
	if served := f.served.Load(); served != nil {
		return slices.Clone(*served)
	}
	return nil
}

// record has the files log show an event; a call that was allowed only where somebody follows.
func (f *files) record(e *audit.Event) {
	served := f.served.Load()
	if served == nil {
		return
	}
	var line []byte
	for _, s := range *served {
		if e.Kind == audit.CallAllowed && !s.Followed() {
			continue
		}
		if line == nil {
			line = marshalDenial(e)
		}
		s.Record(line)
	}
}

// close ends calls through files.
func (f *files) close() {
	for _, s := range f.list() {
		s.Close()
	}
}

// marshalDenial is an event as a line of JSON, with the fields of gssproxyd denials --json.
func marshalDenial(e *audit.Event) []byte {
	shown := shownDenial(copyOf(e))
	b, err := json.Marshal(&shown)
	if err != nil {
		return []byte("{}")
	}
	return b
}

// explainFiles says what a caller may do through files: all that it could over the default socket.
func (d *daemon) explainFiles(ctx context.Context, p *peer.Info) (e fuse.Explanation) {
	asked := []conf.Operations{conf.OpAccept, conf.OpInitiate, conf.OpNames}
	decision, list := d.procs.Explain(ctx, p, "", asked, nil)
	var res xdr.AdminResExplain
	decided(&res, &decision)
	if p.UID != 0 { // what the configuration has for others is not everybody's to read
		res.Trace = nil
		if decision.Service != nil {
			res.Trace = []string{decision.Conclusion()}
		}
	}
	for _, one := range list {
		if one.Refused == nil {
			e.May = append(e.May, one.Operation.String())
		}
		res.Operations = append(res.Operations, act(&one))
	}
	var b strings.Builder
	printExplained(&b, &res)
	e.Text = b.String()
	return e
}

// shownKeytabs is what gssproxyd keytabs prints.
func (d *daemon) shownKeytabs(ctx context.Context) (string, error) {
	var res xdr.AdminResKeytabs
	if err := d.adminKeytabs(ctx, &xdr.AdminArgKeytabs{}, &res); err != nil {
		return "", err
	}
	var b strings.Builder
	err := printKeytabs(&b, &res)
	return b.String(), err
}

// control does what is written to the file ctl.
func (d *daemon) control(ctx context.Context, words []string) (string, error) {
	switch {
	case words[0] == "reload" && len(words) == 1:
		var res xdr.AdminResReload
		if err := d.adminReload(ctx, &xdr.AdminArgReload{}, &res); err != nil {
			return "", err
		}
		if !res.Loaded {
			return "", errors.New(strings.Join(res.Errors, "\n"))
		}
		return "reloaded", nil
	case words[0] == "debug" && len(words) == 3:
		set, err := debugArgs(words[1], words[2], usualDebug)
		if err != nil {
			return "", err
		}
		if err := d.adminDebug(ctx, &set, &xdr.AdminResDebug{}); err != nil {
			return "", err
		}
		if set.Level == 0 {
			return "off", nil
		}
		return fmt.Sprintf("set for %v", usualDebug), nil
	}
	return "", fmt.Errorf("%q: reload, debug SERVICE LEVEL or drop ID is expected", strings.Join(words, " "))
}
