package booted

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// units are where the machine's units are. Ours has those of this package's choice there, and the
// tests'.
const units = "/usr/lib/systemd/system"

// masked are units that empty /tmp and /dev/shm at boot and later, and set what is the machine's. None
// of them is among those kept; that one comes back must not be what it takes to lose the machine's
// /tmp, which is ours too.
var masked = []string{"systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-clean.service",
	"systemd-tmpfiles-clean.timer", "tmp.mount", "systemd-sysctl.service", "systemd-modules-load.service"}

// kept are those of the machine's units that are there: targets, which start nothing without
// directories beside them, the journal, and the C daemon's.
var kept = []string{"*.target", "systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket", "gssproxy.service"}

// initProcess is process 1 before it becomes systemd.
func initProcess(dir string) error {
	runtime.LockOSThread() // namespaces are the thread's that executes the next program
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		return fmt.Errorf("%w: run tests/install-deps (Debian package systemd)", err)
	}
	kept, err := keep()
	if err != nil {
		return err
	}
	// What container engines mount is not below the overlay.
	mounted := make(map[string][]byte)
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf", "/etc/hostname"} {
		if b, err := os.ReadFile(name); err == nil {
			mounted[name] = b
		}
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if err := errors.Join(os.NewSyscallError("unshare(2): control groups", unix.Unshare(unix.CLONE_NEWCGROUP)), mounts(dir)); err != nil {
		return err
	}
	for name, b := range mounted {
		os.Remove(name) // it may be a link into /run
		if err := os.WriteFile(name, b, 0o644); err != nil {
			return err
		}
	}
	for name, text := range kept {
		if err := os.WriteFile(filepath.Join(units, name), text, 0o644); err != nil {
			return err
		}
	}
	for _, name := range masked {
		if err := os.Symlink(os.DevNull, filepath.Join("/etc/systemd/system", name)); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"/etc/machine-id":                         "67737370726f78796400000000000000\n",
		"/etc/systemd/journald.conf.d/tests.conf": "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\nRateLimitBurst=0\n",
		// A unit that is slow to start or to stop on a busy machine is none that fails.
		"/etc/systemd/system.conf.d/tests.conf": "[Manager]\nDefaultTimeoutStartSec=10min\nDefaultTimeoutStopSec=10min\nDefaultTasksMax=infinity\n",
		units + "/booted.service": "[Unit]\nWants=systemd-journald.service\nAfter=systemd-journald.service\n" +
			"[Service]\nType=exec\nExecStart=" + program + "\nEnvironment=" + stageVar + "=service " + dirVar + "=" + dir +
			"\nStandardOutput=null\nStandardError=journal\nKeyringMode=inherit\nLimitNOFILE=524288\nOOMPolicy=continue\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			return err
		}
	}
	// That it is in a container keeps it from what is the machine's: its clock, modules and console.
	env := []string{"container=tests", "PATH=" + os.Getenv("PATH"), "SYSTEMD_LOG_TARGET=journal-or-kmsg", "SYSTEMD_GENERATOR_PATH=/run/booted",
		"SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/booted"}
	err = syscall.Exec("/lib/systemd/systemd", []string{"systemd", "--system", "--unit=booted.service", "--show-status=no"}, env)
	return os.NewSyscallError("execve(2): systemd", err)
}

// keep reads the machine's units that are to stay.
func keep() (map[string][]byte, error) {
	texts := make(map[string][]byte)
	for _, pattern := range kept {
		names, err := filepath.Glob(filepath.Join(units, pattern))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if i, err := os.Lstat(name); err != nil || !i.Mode().IsRegular() {
				continue // an alias: default.target
			}
			if texts[filepath.Base(name)], err = os.ReadFile(name); err != nil {
				return nil, err
			}
		}
	}
	return texts, nil
}

// mounts makes private what is written to.
func mounts(dir string) error {
	var errs []error
	mount := func(source, target, kind string, flags uintptr, data string) {
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			errs = append(errs, fmt.Errorf("mount(2): %s on %s: %w", kind, target, err))
		}
	}
	make := func(name string, mode os.FileMode) {
		errs = append(errs, os.MkdirAll(name, mode))
	}
	mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err := unix.Unmount(filepath.Join(dir, "groups"), unix.MNT_DETACH); err != nil { // the keeper's
		errs = append(errs, os.NewSyscallError("umount2(2)", err))
	}
	mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	for _, name := range []string{"etc", "usr", "var"} {
		upper, work := "/run/booted/"+name+"/upper", "/run/booted/"+name+"/work"
		make(upper, 0o755)
		make(work, 0o755)
		mount("overlay", "/"+name, "overlay", 0, "lowerdir=/"+name+",upperdir="+upper+",workdir="+work)
	}
	make("/run/lock", 0o755)
	for _, name := range []string{units, "/etc/systemd/system"} {
		make(name, 0o755)
		mount("tmpfs", name, "tmpfs", 0, "mode=755")
	}
	mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	// systemd raises limits of the kernel's, which are the machine's.
	mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, "")
	mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	devices(dir, mount, make)
	// As on a machine: what a test mounts is seen by the services. Nobody else is a peer of these mounts.
	mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	return errors.Join(errs...)
}

// devices makes a /dev of our own, in which systemd makes links, with what programs use of the
// machine's.
func devices(dir string, mount func(source, target, kind string, flags uintptr, data string), make func(string, os.FileMode)) {
	const dev = "/run/booted/dev"
	make(dev, 0o755)
	mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID, "mode=755")
	bind := func(source, name string) {
		if f, err := os.Create(filepath.Join(dev, name)); err == nil {
			f.Close()
		}
		mount(source, filepath.Join(dev, name), "", unix.MS_BIND, "")
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		bind("/dev/"+name, name)
	}
	if _, err := os.Stat("/dev/fuse"); err == nil {
		bind("/dev/fuse", "fuse")
	}
	bind(filepath.Join(dir, "log"), "kmsg")
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		os.Symlink(target, filepath.Join(dev, name))
	}
	make(dev+"/pts", 0o755)
	make(dev+"/shm", 0o1777)
	mount("devpts", dev+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
	mount("tmpfs", dev+"/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	mount(dev, "/dev", "", unix.MS_MOVE, "")
}
