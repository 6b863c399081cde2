package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// NoCore runs a program that has keys as a user of its own, without any limit to the size of core files,
// ends it by each of some signals that have the kernel write one, and fails the test if one is written, or if
// another process of that user can open its memory. ready reports whether it has started. dir is where it
// runs, of t.TempDir; the user can write there.
func NoCore(t testing.TB, dir string, u User, signals []syscall.Signal, ready func() bool, program string, args ...string) {
	t.Helper()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // of t.TempDir
		t.Fatal(err)
	}
	as := func(argv ...string) *exec.Cmd {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID}, Pdeathsig: syscall.SIGKILL}
		return cmd
	}
	opens := func(pid int) bool {
		return as("/bin/sh", "-c", fmt.Sprintf("exec 3</proc/%d/mem", pid)).Run() == nil
	}
	// end runs a program until a signal ends it, and returns whether the kernel has written a core file.
	end := func(s syscall.Signal, readable bool, ready func(pid int) bool, argv ...string) bool {
		t.Helper()
		cmd := as(append([]string{"/bin/sh", "-c", `ulimit -c unlimited; exec "$@"`, "sh"}, argv...)...)
		out := new(strings.Builder)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		Await(t, argv[0]+" starts", func() bool { return ready(cmd.Process.Pid) })
		if got := opens(cmd.Process.Pid); got != readable {
			t.Errorf("%s: another process of its user can open its memory: %v", argv[0], got)
		}
		cmd.Process.Signal(s)
		err := <-ended
		status, is := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || !is || !status.Signaled() {
			t.Fatalf("%s was to end by %v: %v, %v\n%s", argv[0], s, err, exit, out)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "core*"))
		for _, name := range files {
			os.Remove(name)
		}
		return status.CoreDump() || len(files) > 0
	}
	runs := func(pid int) bool {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err == nil && strings.HasSuffix(exe, "/sleep")
	}
	possible := end(syscall.SIGABRT, true, runs, "/usr/bin/sleep", "1000")
	for _, s := range signals {
		if end(s, false, func(int) bool { return ready() }, append([]string{program}, args...)...) {
			t.Errorf("a core file is written when %s is ended by %v", program, s)
		}
	}
	if !possible {
		Lacking(t, "core file", errors.New("the kernel writes none of any program here: /proc/sys/kernel/core_pattern or the limit of this process decides; that its memory cannot be opened was seen"))
	}
}

// Executable copies the running test's program into a directory, for a user who cannot enter that of the
// go command. It can be read: the memory of a program that cannot be is nobody's to open anyway.
func Executable(t testing.TB, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	path := filepath.Join(dir, name)
	if err == nil {
		err = os.WriteFile(path, b, 0o755)
	}
	if err == nil {
		err = os.Chmod(path, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}
