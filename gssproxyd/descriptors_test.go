package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What whoever starts the daemon leaves open is not passed on: not to the helpers, and not to the
// daemon in the background.
func TestDescriptorsAreNotPassedOn(t *testing.T) {
	dir := t.TempDir()
	left, err := os.Create(filepath.Join(dir, "left open"))
	if err != nil {
		t.Fatal(err)
	}
	defer left.Close()
	config := filepath.Join(dir, "gssproxy.conf")
	socket := filepath.Join(dir, "socket")
	text := fmt.Sprintf("[gssproxy]\n[service/test]\nmechs = krb5\neuid = %d\nsocket = %s\ncred_store = keytab:%s\n", os.Geteuid(), socket, filepath.Join(dir, "keytab"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "gssproxyd") // which TestMain takes this binary for when it is called so
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(program, self, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, background := range []bool{false, true} {
		pidFile := filepath.Join(dir, fmt.Sprint("pid", background))
		cmd := &exec.Cmd{
			Path: program, Args: []string{program, "-c", config, "-s", socket, "--state-dir", dir},
			Env:        append(os.Environ(), "GSSPROXYD_PID_FILE="+pidFile, "KRB5_CONFIG=/dev/null", "KRB5RCACHENAME=none:"),
			ExtraFiles: []*os.File{left, left, left},
		}
		if !background {
			cmd.Args = append(cmd.Args, "-i")
		}
		var output bytes.Buffer
		cmd.Stderr = &output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if background {
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, &output)
			}
		}
		pid := 0
		for deadline := time.Now().Add(time.Minute); pid == 0; time.Sleep(time.Millisecond) {
			b, _ := os.ReadFile(pidFile)
			pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
			if time.Now().After(deadline) {
				t.Fatalf("the daemon does not start:\n%s", &output)
			}
		}
		t.Cleanup(func() {
			if exists(pidFile) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		})
		helpers := children(t, pid)
		if len(helpers) != 2 {
			t.Errorf("the daemon has %d helpers", len(helpers))
		}
		for _, p := range helpers {
			if has(t, p, left.Name()) {
				t.Errorf("in the background %t: a helper has what was left open", background)
			}
		}
		if background && has(t, pid, left.Name()) {
			t.Error("the daemon in the background has what was left open")
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if !background {
			cmd.Wait()
		}
		for deadline := time.Now().Add(time.Minute); exists(pidFile) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// children are the processes that a process has started.
func children(t *testing.T, pid int) (list []int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		t.Skip("not run: the kernel does not list the children of processes")
	}
	for _, path := range tasks {
		b, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// has reports whether a process has a file open.
func has(t *testing.T, pid int, path string) bool {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	open, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if target, _ := os.Readlink(dir + fd.Name()); target == path {
			return true
		}
	}
	return false
}
