package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// UnderUnit reports whether LAB_UNIT=1 says that our daemon is to be started by systemd, with all that
// the shipped unit takes away from it and as the unit's user. The tests must run where systemd is
// process 1 then: see the package booted.
func UnderUnit() bool { return os.Getenv("LAB_UNIT") == "1" }

// OursRunsAs is whom our daemon becomes: the unit's user, or root.
func OursRunsAs() (User, error) {
	if !UnderUnit() {
		return Root, nil
	}
	return unitUser()
}

// unitUser makes the user of the shipped unit, once, and returns who that is.
var unitUser = sync.OnceValues(func() (u User, err error) {
	root, err := moduleRoot()
	if err != nil {
		return u, err
	}
	if out, err := exec.Command("systemd-sysusers", filepath.Join(root, "dist/gssproxyd.sysusers")).CombinedOutput(); err != nil {
		return u, fmt.Errorf("systemd-sysusers: %w\n%s", err, out)
	}
	out, err := exec.Command("getent", "passwd", "gssproxyd").Output()
	if err != nil {
		return u, fmt.Errorf("getent passwd gssproxyd: %w", err)
	}
	_, err = fmt.Sscanf(strings.Join(strings.Split(string(out), ":")[2:4], " "), "%d %d", &u.UID, &u.GID)
	return u, err
})

// adapted are the settings of the shipped unit that a daemon of the lab has its own of: what is run,
// with which variables, when it is started again, and how its start and its life are reported, for
// which tests look themselves. All others are as shipped.
var adapted = []string{"ExecStart", "ExecStartPre", "ExecStopPost", "Environment", "Type", "Restart", "RestartPreventExitStatus", "WatchdogSec"}

// unitText is the shipped unit, with a drop-in if it has a name, for a program. The files log and ended
// have what it says and how it has ended.
func unitText(cmd *exec.Cmd, dropIn, log, ended string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	names := []string{"dist/gssproxyd.service"}
	if dropIn != "" {
		names = append(names, "dist/gssproxyd.service.d/"+dropIn)
	}
	text := "[Service]\nType=exec\n"
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "", err
		}
		_, service, found := strings.Cut(string(b), "[Service]\n")
		if !found {
			return "", fmt.Errorf("%s has no section [Service]", name)
		}
		service, _, _ = strings.Cut(service, "[Install]")
	lines:
		for line := range strings.Lines(service) {
			for _, key := range adapted {
				if strings.HasPrefix(line, key+"=") {
					continue lines
				}
			}
			text += line
		}
	}
	for _, v := range cmd.Env {
		text += "Environment=" + quoted(v) + "\n"
	}
	text += "WorkingDirectory=" + cmd.Dir + "\nStandardOutput=append:" + log + "\nStandardError=append:" + log + "\nExecStart="
	for _, arg := range append([]string{cmd.Path}, cmd.Args[1:]...) {
		text += " " + strings.ReplaceAll(quoted(arg), "$", "$$")
	}
	return text + "\nExecStopPost=+/bin/sh -c 'echo $$EXIT_CODE $$EXIT_STATUS >" + ended + ".new; mv " + ended + ".new " + ended + "'\n", nil
}

// quoted is a word of a unit file.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "%", "%%").Replace(s) + `"`
}

// unitNumber makes names of units.
var unitNumber atomic.Int64

// startUnit is Start by systemd, for a program that [Realm.Command] has made.
func (r *Realm) startUnit(cmd *exec.Cmd, dropIn, log string) (*Process, error) {
	if _, err := os.Stat("/run/booted"); err != nil { // the systemd there may be is the machine's
		return nil, fmt.Errorf("LAB_UNIT: the test is not run by the package booted: %w", err)
	}
	name := fmt.Sprintf("lab-%d.service", unitNumber.Add(1))
	ended := r.Path("ended")
	text, err := unitText(cmd, dropIn, log, ended)
	if err != nil {
		return nil, err
	}
	file := filepath.Join("/run/systemd/system", name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		return nil, err
	}
	if out, err := exec.Command("systemctl", "start", name).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("systemctl start %s: %w\n%s", name, err, out)
	}
	pid, err := unitPID(name)
	if err != nil {
		return nil, err
	}
	if pid == 0 { // the unit is forgotten already, as one is that has ended well
		b, _ := os.ReadFile(log)
		return nil, fmt.Errorf("%s ended at once; its output:\n%s", cmd.Path, b)
	}
	if cmd.Process, err = os.FindProcess(pid); err != nil {
		return nil, err
	}
	p := &Process{Cmd: cmd, Log: log, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		defer os.Remove(file)
		for {
			if b, err := os.ReadFile(ended); err == nil {
				if p.err = exitError(strings.Fields(string(b))); p.err != nil {
					exec.Command("systemctl", "reset-failed", name).Run() // systemd would remember it
				}
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	r.mu.Lock()
	r.procs = append(r.procs, p)
	r.mu.Unlock()
	return p, nil
}

// unitPID is the process of a unit, or which it was.
func unitPID(name string) (int, error) {
	out, err := exec.Command("systemctl", "show", "--value", "--property=ExecMainPID", name).Output()
	if err != nil {
		return 0, fmt.Errorf("systemctl show %s: %w", name, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// exitError is what systemd says of the end of a unit's process: nil if all went well.
func exitError(said []string) error {
	switch {
	case len(said) != 2:
		return fmt.Errorf("the unit has ended, and its process cannot be told about: %q", said)
	case said[0] == "exited" && said[1] == "0", said[0] == "killed" && said[1] == "TERM":
		return nil
	case said[0] == "exited":
		return fmt.Errorf("exit status %s", said[1])
	}
	return fmt.Errorf("signal: %s %s", said[0], said[1])
}
