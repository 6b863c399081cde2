// Package migrate puts gssproxyd in the C daemon's place on a host in use, and the C daemon back in
// its place.
//
// Both ways are the same: each socket of the one daemon gets a second name, path.aside, and the other
// daemon gives the path to a socket of its own, by a rename. From then on new connections come to the
// other one, and those that are open go on with the first, which ends when none is left. As long as
// it has not ended, the way back is to exchange the two names. The C daemon, when it has to be
// started for that, removes a path and makes it again, so that a call can be refused in between.
//
// What is done next follows from who listens under which name. So every step can be repeated, and a
// migration that was interrupted goes on, or back, from where it was. Only what cannot be seen any
// more is written down, before the first step: how the C daemon was started, and which units were
// enabled.
package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

const (
	unitC    = "gssproxy.service"
	unitOurs = "gssproxyd.service"
)

// A program is one of the two daemons.
type program struct{ name, unit string }

var (
	cDaemon = program{"gssproxy", unitC}
	ours    = program{"gssproxyd", unitOurs}
)

// How long is waited for a daemon: to answer on all sockets, and to end.
const (
	startTimeout = 30 * time.Second
	endTimeout   = 20 * time.Second
)

// Host is what there is to migrate.
type Host struct {
	Sockets  []string // of the configuration, as far as it can be read
	StateDir string   // where is written down what Back needs
	Options  []string // of gssproxyd's command line that say where these are

	Systemd bool // runs here; Look finds out

	record  record
	written bool // the record is in its file
}

// record is what is written down before the first step.
type record struct {
	Sockets []string          `json:"sockets"`
	Units   map[string]string `json:"units,omitempty"` // what systemctl is-enabled said of them
	Dir     string            `json:"dir,omitempty"`   // the C daemon's working directory, if no unit starts it, and
	Args    []string          `json:"args,omitempty"`  // its command line
	Env     []string          `json:"env,omitempty"`   // and environment
}

// recordName is the record's file in the state directory.
const recordName = "migrate.json"

// A Step is something to do, in words, and the doing.
type Step struct {
	Text string
	Do   func() error
}

// Look finds out who serves the sockets, and whether a migration is under way.
func (h *Host) Look() (lines []Line, err error) {
	out, _ := exec.Command("systemctl", "is-system-running").Output()
	state := strings.TrimSpace(string(out))
	h.Systemd = state != "" && state != "offline" && state != "unknown"
	h.record.Sockets = slices.Clone(h.Sockets) // what is read from the record is put in its place, in its memory
	b, err := os.ReadFile(h.recordFile())
	if err == nil {
		h.written = true
		lines = append(lines, Line{Text: h.recordFile() + ": a migration was begun; --back undoes it"})
		err = json.Unmarshal(b, &h.record)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.recordFile(), err)
	}
	seen := make(map[int]bool)
	for _, path := range h.Sockets {
		for _, name := range []string{path, path + rpc.Aside} {
			pid, by, err := listener(name)
			switch {
			case err != nil:
				return nil, err
			case pid == 0 && name == path:
				lines = append(lines, Line{Text: name + ": nobody listens"})
			case pid != 0:
				lines = append(lines, Line{name + ": " + process(pid) + " listens", by != cDaemon.name && by != ours.name})
			}
			if pid == 0 || seen[pid] {
				continue
			}
			seen[pid] = true
			if by == cDaemon.name {
				all, err := connected(pid)
				if err != nil {
					return nil, err
				}
				lines = slices.Concat(lines, h.looksOf(pid), describe(all))
			}
		}
	}
	return lines, nil
}

// looksOf is how the C daemon was started, which is to be the same for ours.
func (h *Host) looksOf(pid int) (lines []Line) {
	args := list(pid, "cmdline")
	of := "of no unit"
	if inUnit(pid, unitC) {
		of = "of " + unitC
	}
	other := slices.ContainsFunc(args[1:], func(a string) bool { return a != "-D" && a != "-i" && a != "--daemon" && a != "--interactive" })
	lines = append(lines, Line{fmt.Sprintf("process %d is %q, %s", pid, args, of), other && len(h.Options) == 0})
	for _, v := range list(pid, "environ") {
		if strings.HasPrefix(v, "KRB5") {
			lines = append(lines, Line{Text: fmt.Sprintf("process %d has %s in its environment", pid, v)})
		}
	}
	return lines
}

// list reads a list of strings out of /proc/PID.
func list(pid int, name string) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// listener returns which process listens on a socket, 0 if none, and the name of its program. Only
// root can listen where the sockets are.
func listener(path string) (pid int, program string, err error) {
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return 0, "", nil
	case err != nil:
		return 0, "", err
	}
	defer c.Close()
	info, err := peer.Credentials(c.(*net.UnixConn))
	if err != nil {
		return 0, "", err
	}
	return int(info.PID), status(int(info.PID), "Name"), nil
}

// inUnit reports whether a process is of a unit of systemd's.
func inUnit(pid int, unit string) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return isIn(string(b), unit)
}

func isIn(cgroups, unit string) bool {
	for line := range strings.Lines(cgroups) {
		if strings.Contains(strings.TrimSpace(line)+"/", "/"+unit+"/") {
			return true
		}
	}
	return false
}

// Apply returns the steps that put gssproxyd in the C daemon's place.
func (h *Host) Apply(wait time.Duration, now bool) ([]Step, error) {
	steps, err := h.move(cDaemon, ours, wait, now)
	if err != nil {
		return nil, err
	}
	var all []Step
	if h.Systemd && enabled(unitOurs) != "enabled" {
		all = append(all, systemctl("enable", unitOurs))
	}
	// So that nothing starts it: it would take the sockets back, and systemd would end ours.
	if h.Systemd && enabled(unitC) != "masked" {
		all = append(all, systemctl("mask", unitC))
	}
	if all = append(all, steps...); len(all) > 0 && !h.written {
		all = slices.Insert(all, 0, Step{"write down in " + h.recordFile() + " what --back needs", h.writeRecord})
	}
	return all, nil
}

// Back returns the steps that undo what Apply has done.
func (h *Host) Back(wait time.Duration, now bool) ([]Step, error) {
	if !h.written {
		return nil, fmt.Errorf("there is nothing to undo: %s does not exist", h.recordFile())
	}
	// What the configuration has beside them was added since, and counts where somebody serves it.
	added := h.Sockets
	h.Sockets = h.record.Sockets
	for _, path := range added {
		if slices.Contains(h.Sockets, path) {
			continue
		}
		pid, _, err := listener(path)
		aside, _, err2 := listener(path + rpc.Aside)
		if err := errors.Join(err, err2); err != nil {
			return nil, err
		}
		if pid != 0 || aside != 0 {
			h.Sockets = append(h.Sockets, path)
		}
	}
	steps, err := h.move(ours, cDaemon, wait, now)
	if err != nil {
		return nil, err
	}
	var units []Step
	if before := h.record.Units; before != nil {
		if before[unitC] != "masked" && enabled(unitC) == "masked" {
			units = append(units, systemctl("unmask", unitC))
		}
		if before[unitOurs] != "enabled" && enabled(unitOurs) == "enabled" {
			units = append(units, systemctl("disable", unitOurs))
		}
	}
	forget := Step{"remove " + h.recordFile(), func() error { return os.Remove(h.recordFile()) }}
	return append(append(units, steps...), forget), nil
}

func (h *Host) recordFile() string { return filepath.Join(h.StateDir, recordName) }

func (h *Host) writeRecord() error {
	if h.Systemd {
		h.record.Units = map[string]string{unitC: enabled(unitC), unitOurs: enabled(unitOurs)}
	}
	b, err := json.Marshal(h.record)
	if err != nil {
		return err
	}
	dir, err := openat.OpenDir(h.StateDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Write(recordName, b, (*os.File).Sync, dir.Rename)
}

// move returns the steps that have the sockets served by to instead of from.
func (h *Host) move(from, to program, wait time.Duration, now bool) (steps []Step, err error) {
	var old, running int // processes of the two
	var aside, exchange, missing []string
	leftover := false
	for _, path := range h.Sockets {
		pid, by, err := listener(path)
		pid2, by2, err2 := listener(path + rpc.Aside)
		if err := errors.Join(err, err2); err != nil {
			return nil, err
		}
		if _, err := os.Lstat(path + rpc.Aside); err == nil {
			leftover = true
		}
		switch {
		case pid != 0 && by != from.name && by != to.name:
			return nil, fmt.Errorf("%s: %s listens, which is neither %s nor %s", path, process(pid), from.name, to.name)
		case pid2 != 0 && by2 == from.name:
			old = pid2
		case pid != 0 && by == from.name:
			old = pid
		}
		switch {
		case pid != 0 && by == to.name:
			running = pid
		case pid2 != 0 && by2 == to.name:
			running = pid2
			exchange = append(exchange, path)
		case pid != 0:
			aside = append(aside, path)
		default:
			missing = append(missing, path)
		}
	}
	start := append(aside, missing...)
	if running != 0 && len(start) > 0 {
		return nil, fmt.Errorf("%s, process %d, runs and does not serve %s: end it, or have it serve that first", to.name, running, start[0])
	}
	add := func(text string, do func() error) { steps = append(steps, Step{text, do}) }
	for _, path := range exchange {
		add(fmt.Sprintf("exchange %s with %[1]s%s: new connections go to process %d, which still runs", path, rpc.Aside, running),
			func() error { return swap(path) })
	}
	for _, path := range aside {
		add(fmt.Sprintf("give %s the name %[1]s%s as well, so that its place can be taken: process %d keeps its connections", path, rpc.Aside, old),
			func() error { return setAside(path) })
	}
	if len(start) > 0 {
		how := "start " + to.name
		if h.byUnit(to) {
			how = startUnit(to).Text
		}
		add(how+": it takes new connections from then on", func() error { return h.start(to, start) })
	}
	if old != 0 {
		all, err := connected(old)
		if err != nil {
			return nil, err
		}
		if from == cDaemon && !h.written && !inUnit(old, from.unit) {
			h.record.Dir, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", old))
			h.record.Args, h.record.Env = list(old, "cmdline"), list(old, "environ")
		}
		if now {
			add(fmt.Sprintf("end %s, process %d, with the connections it has, %d at present", from.name, old, total(all)),
				func() error { return h.end(from, old) })
		} else {
			add(fmt.Sprintf("end %s, process %d, when it has no connections; it has %d at present", from.name, old, total(all)),
				func() error { return h.endQuiet(from, old, wait) })
		}
	}
	if leftover || old != 0 {
		add("remove the names that end with "+rpc.Aside, func() error {
			for _, path := range h.Sockets {
				if err := os.Remove(path + rpc.Aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
			return nil
		})
	}
	return steps, nil
}

// setAside gives a socket its second name.
func setAside(path string) error {
	dir, name, err := openat.Parent(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(dir.FD(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if same, err := dir.Means(name+rpc.Aside, &st); same || err != nil {
		return err
	}
	if err := dir.Remove(name + rpc.Aside); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier migration
		return err
	}
	return dir.Link(name, name+rpc.Aside)
}

// swap exchanges a socket with the one that was set aside. A daemon that ends may take its path
// away, and then there is nothing to exchange: the other one has the path back.
func swap(path string) error {
	dir, name, err := openat.Parent(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = unix.Renameat2(dir.FD(), name, dir.FD(), name+rpc.Aside, unix.RENAME_EXCHANGE)
	if err == unix.ENOENT {
		err = unix.Renameat2(dir.FD(), name+rpc.Aside, dir.FD(), name, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return fmt.Errorf("exchange %s with %[1]s%s: %w", path, rpc.Aside, err)
	}
	return nil
}

// putBack gives a socket that was set aside its name back, whatever has it, or nothing.
func putBack(path string) error {
	dir, name, err := openat.Parent(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Rename(name+rpc.Aside, name); err != nil {
		return err
	}
	// If both names are the same socket's, the rename has done nothing.
	if err := dir.Remove(name + rpc.Aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// start starts a daemon and waits until it listens on the sockets. When it does not, those that were
// set aside are put back.
func (h *Host) start(to program, sockets []string) error {
	err := h.launch(to)
	for deadline := time.Now().Add(startTimeout); err == nil; time.Sleep(20 * time.Millisecond) {
		missing := ""
		for _, path := range sockets {
			if _, by, e := listener(path); e != nil || by != to.name {
				missing = path
			}
		}
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			err = fmt.Errorf("%s does not listen on %s; its log says why", to.name, missing)
		}
	}
	if h.Systemd {
		systemctl("stop", to.unit).Do() // or it is started again and again
	}
	for _, path := range sockets {
		if pid, _, e := listener(path + rpc.Aside); e == nil && pid != 0 {
			err = errors.Join(err, putBack(path))
		}
	}
	return err
}

// byUnit reports whether a daemon is started by its unit: not the C daemon if it was not.
func (h *Host) byUnit(to program) bool { return h.Systemd && (to == ours || len(h.record.Args) == 0) }

// startUnit starts a unit. The two conflict, so that otherwise the one would end with the start of
// the other.
func startUnit(to program) Step { return systemctl("start", "--job-mode=ignore-dependencies", to.unit) }

// launch starts a daemon, by its unit or by its command line.
func (h *Host) launch(to program) error {
	if h.byUnit(to) {
		return startUnit(to).Do()
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args, env, dir := append([]string{self, "-D"}, h.Options...), os.Environ(), "/"
	if to == cDaemon {
		args, env, dir = h.record.Args, h.record.Env, h.record.Dir
	} else {
		for _, v := range h.record.Env { // where its keytabs, and the replay cache, are
			if strings.HasPrefix(v, "KRB5") {
				env = append(env, v)
			}
		}
	}
	if len(args) == 0 {
		return fmt.Errorf("it is not known how %s was started: start it", to.name)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir = env, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if to == ours {
		out, err := cmd.CombinedOutput() // it returns when clients can connect
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	return cmd.Start() // may stay in the foreground
}

// unfinished is a daemon that still has connections.
type unfinished struct {
	pid   int
	lines []Line
}

func (u *unfinished) Error() string {
	text := fmt.Sprintf("process %d goes on until these programs are restarted; then give the same command again (--now ends it at once):", u.pid)
	for _, l := range u.lines {
		text += "\n  " + l.Text
	}
	return text
}

// endQuiet ends a daemon when it has no connections, if it comes to that in a while.
func (h *Host) endQuiet(p program, pid int, wait time.Duration) error {
	// Who found the socket before it lost its name is connected when it is looked at again.
	const between = 200 * time.Millisecond
	quiet := 0
	for deadline := time.Now().Add(wait); ; time.Sleep(between) {
		all, err := connected(pid)
		if err != nil {
			return err
		}
		if len(all) > 0 {
			quiet = 0
			if time.Now().After(deadline) {
				return &unfinished{pid, describe(all)}
			}
		} else if quiet++; quiet == 2 {
			return h.end(p, pid)
		}
	}
}

// end ends a daemon and waits until it has.
func (h *Host) end(p program, pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ended(err)
	}
	defer unix.Close(pidfd)
	if status(pid, "Name") != p.name { // it has ended, and the number is another's
		return nil
	}
	if h.Systemd && inUnit(pid, p.unit) {
		return systemctl("stop", p.unit).Do()
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil {
		return ended(err)
	}
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(endTimeout); ; {
		n, err := unix.Poll(poll, max(0, int(time.Until(deadline).Milliseconds()))) // a negative time is for ever
		if n > 0 {
			return nil
		}
		if err == nil {
			return fmt.Errorf("process %d does not end", pid)
		}
		if err != unix.EINTR {
			return err
		}
	}
}

func total(all []client) (n int) {
	for _, c := range all {
		n += c.connections
	}
	return n
}

// systemctl is a step that runs systemctl.
func systemctl(args ...string) Step {
	text := "systemctl " + strings.Join(args, " ")
	return Step{text, func() error {
		if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", text, err, out)
		}
		return nil
	}}
}

// enabled returns what systemctl is-enabled says of a unit.
func enabled(unit string) string {
	out, _ := exec.Command("systemctl", "is-enabled", unit).Output()
	return strings.TrimSpace(string(out))
}
