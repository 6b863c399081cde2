package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"gssproxyd/conf"
)

// dropPrivileges continues as the user of run_as_user; an empty name changes nothing. CAP_SYS_PTRACE stays, so that
// /proc/PID/exe of other users' processes can be read; everything else goes, from every thread.
//
// What is opened later, by a reload or a keytab's rotation, must be accessible to that user.
func dropPrivileges(users conf.Users, name string) error {
	if name == "" {
		return nil
	}
	uid, err := users.UID(name)
	if err != nil {
		return fmt.Errorf("run_as_user = %s: %w", name, err)
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return fmt.Errorf("run_as_user = %s: %w", name, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("run_as_user = %s: %w", name, err)
	}
	groups := []int{}
	if ids, err := u.GroupIds(); err == nil {
		for _, id := range ids {
			if g, err := strconv.Atoi(id); err == nil {
				groups = append(groups, g)
			}
		}
	}
	if err := errors.Join(cap.SetGroups(gid, groups...), cap.SetUID(int(uid))); err != nil {
		return fmt.Errorf("cannot become user %s: %w", name, err)
	}
	keep := cap.NewSet()
	if err := errors.Join(
		keep.SetFlag(cap.Permitted, true, cap.SYS_PTRACE),
		keep.SetFlag(cap.Effective, true, cap.SYS_PTRACE),
		keep.SetProc(),
	); err != nil {
		return fmt.Errorf("cannot drop capabilities: %w", err)
	}
	if os.Geteuid() != int(uid) {
		return fmt.Errorf("cannot become user %s: still uid %d", name, os.Geteuid())
	}
	// A change of uid makes the process dumpable again.
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
