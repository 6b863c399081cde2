package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"gssproxyd/gssproxyd/nss"
)

// dropPrivileges continues as the user of run_as_user, with every group of its. CAP_SYS_PTRACE stays,
// so that /proc/PID/exe of other users' processes can be read, and what a service manager has made
// ambient (systemd's AmbientCapabilities=): it says so which files of others that user may have. What
// is inheritable only is not meant so: some container runtimes leave much of root's power there.
// Everything else goes, from every thread, and from what a program that is started could get.
//
// What is opened from then on, krb5.conf, keytabs and the state directory among it, must be
// accessible to that user.
func dropPrivileges(a nss.Account) error {
	uid, groups := int(a.UID), make([]int, len(a.Groups))
	for i, gid := range a.Groups {
		groups[i] = int(gid)
	}
	keep := cap.NewSet()
	var bound []cap.Value
	for v := range cap.MaxBits() {
		if ambient, _ := cap.GetAmbient(v); v != cap.SYS_PTRACE && !ambient { // an old kernel has none
			bound = append(bound, v)
			continue
		}
		if err := errors.Join(keep.SetFlag(cap.Permitted, true, v), keep.SetFlag(cap.Effective, true, v)); err != nil {
			return err
		}
	}
	// A service manager that withholds CAP_SETPCAP has set a bound itself.
	if err := cap.DropBound(bound...); err != nil && !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("cannot drop capabilities for good: %w", err)
	}
	if err := errors.Join(cap.SetGroups(int(a.GID), groups...), cap.SetUID(uid)); err != nil {
		return fmt.Errorf("cannot become user %s: %w", a.Name, err)
	}
	if err := keep.SetProc(); err != nil {
		return fmt.Errorf("cannot drop capabilities: %w", err)
	}
	if os.Geteuid() != uid {
		return fmt.Errorf("cannot become user %s: still uid %d", a.Name, os.Geteuid())
	}
	// A change of uid makes the process dumpable again.
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
