package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/fuse"
	"gssproxyd/gssproxyd/admin"
	"gssproxyd/openat"
	"gssproxyd/xdr"
)

// Mounting the file system, which takes root, and serving it, which does not: the command mounts, and
// hands the descriptor of /dev/fuse to the daemon.

// fsKind is what /proc/self/mountinfo has as the type of the file system.
const fsKind = "fuse.gssproxyd"

// mountCommand is gssproxyd mount.
func mountCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "mount [DIRECTORY]",
		Short: "Mount the file system through which programs and shells ask the running daemon (" + conf.FilesPath + ")",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), adminTimeout)
			defer cancel()
			return o.mount(ctx, directoryOf(args))
		},
	}
}

// umountCommand is gssproxyd umount.
func umountCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "umount [DIRECTORY]",
		Short: "Unmount the file system; files that are open can only be closed",
		Args:  cobra.MaximumNArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return unmount(directoryOf(args)) },
	}
}

func directoryOf(args []string) string {
	if len(args) == 0 {
		return conf.FilesPath
	}
	return args[0]
}

// mount mounts the file system and has the daemon serve it. What a daemon that has ended has left is
// replaced; a mount that is served is an error.
func (o *options) mount(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	socket, err := o.adminPath()
	if err != nil {
		return err
	}
	if path == conf.FilesPath {
		os.Mkdir(filepath.Dir(path), 0o755) // /run is root's
		os.Mkdir(path, 0o755)
	}
	at, err := mountPoint(path)
	if err != nil {
		return err
	}
	kind, over := mountedAt(at), false
	if kind == fsKind {
		if over, err = ended(ctx, at); err != nil {
			return fmt.Errorf("%s is mounted, and the daemon there does not answer: %w", path, err)
		}
	}
	switch {
	case over:
		at.Close()
		if err := unmount(path); err != nil {
			return err
		}
		if at, err = mountPoint(path); err != nil {
			return err
		}
	case kind == fsKind:
		at.Close()
		return fmt.Errorf("%s is mounted, and a daemon answers there", path)
	case kind != "":
		at.Close()
		return fmt.Errorf("%s is the mount of another file system (%s): name another directory", path, kind)
	}
	defer at.Close()
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("there is no /dev/fuse: modprobe fuse")
	} else if err != nil {
		return err
	}
	defer device.Close()
	how := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,%s", device.Fd(), fuse.Mounted)
	if err := unix.Mount("gssproxyd", inProc(at), fsKind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, how); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("mount %s: root may, outside of containers: %w", path, err)
		}
		return fmt.Errorf("mount %s: %w", path, err)
	}
	var res xdr.AdminResMount
	err = admin.AskWith(ctx, socket, xdr.AdminProcMount, &admin.None{}, device, &res)
	if err == nil && res.Error != "" {
		err = errors.New(res.Error)
	}
	if err != nil {
		device.Close() // nobody serves it: looking at the mount would wait for ever
		return errors.Join(err, unmount(path))
	}
	return nil
}

// mountPoint opens a directory to mount on, or to unmount from; those above it are root's alone. What
// is mounted there is not asked: its server may have ended, or not answer.
func mountPoint(path string) (*os.File, error) {
	dir, _, err := openat.FindKept(filepath.Dir(path) + "/.")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Open(filepath.Base(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// inProc is a path that leads to what is open and to nothing else.
func inProc(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// ended reports whether the server of the file system has ended that is mounted on a directory. It is
// asked, and need not answer.
func ended(ctx context.Context, at *os.File) (bool, error) {
	asked := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		asked <- unix.Fstatfs(int(at.Fd()), &st)
	}()
	select {
	case err := <-asked:
		return errors.Is(err, unix.ENOTCONN), nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// mountedAt returns the type of the file system that is mounted on a directory, empty if none is.
func mountedAt(at *os.File) (kind string) {
	path, err := os.Readlink(inProc(at)) // as mountinfo has it, whatever links have led there
	if err != nil {
		return ""
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); { // the last one is on top
		before, after, _ := strings.Cut(lines.Text(), " - ")
		if fields := strings.Fields(before); len(fields) > 4 && unescaped(fields[4]) == path {
			kind, _, _ = strings.Cut(after, " ")
		}
	}
	return kind
}

// unescaped is a path as mountinfo has it, where blanks and others are octal.
func unescaped(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// unmount unmounts the file system from a directory, whether a daemon answers there or not, and ends it: a user
// who has files open keeps nothing of it.
func unmount(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	at, err := mountPoint(path)
	if err != nil {
		return err
	}
	defer at.Close()
	if mountedAt(at) != fsKind {
		return fmt.Errorf("%s is not a mount of gssproxyd's", path)
	}
	if err := unix.Unmount(inProc(at), unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("umount %s: %w", path, err)
	}
	return nil
}
