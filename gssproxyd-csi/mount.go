package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// openVolume opens the directory that a volume is in, beneath the kubelet's directory.
func openVolume(kubelet string, at place) (*os.File, error) {
	base, err := openat.OpenDir(kubelet)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	if !base.Closed() {
		return nil, fmt.Errorf("%s: others than root may change what is there", kubelet)
	}
	return openBeneath(base.FD(), kubelet, at.dir)
}

// openBelow opens a directory that is in another.
func openBelow(dir *os.File, name string) (*os.File, error) {
	return openBeneath(int(dir.Fd()), dir.Name(), name)
}

// openBeneath opens a directory beneath another, to refer to it. It follows no link on the way, and
// mounts it does: pods' directories may be one, and the target is.
func openBeneath(base int, name, path string) (*os.File, error) {
	whole := filepath.Join(name, path)
	for {
		fd, err := unix.Openat2(base, path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), whole), nil
		case err != unix.EINTR && err != unix.EAGAIN: // the latter: something was renamed meanwhile
			return nil, &fs.PathError{Op: "open", Path: whole, Err: err}
		}
	}
}

// openSource opens the directory of a pod's socket, which is root's, and so is the way to it: nobody
// but root says what a pod gets to see.
func openSource(path string) (*os.File, error) {
	parent, name, err := openat.Parent(path)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	f, err := parent.Open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	if err == nil && (!parent.Closed() || st.Uid != 0 || st.Mode&0o022 != 0) {
		err = fmt.Errorf("%s: it is not root's alone to change", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// stat returns which directory an open one is, and whether it is the root of a mount.
func stat(f *os.File) (st unix.Statx_t, mount bool, err error) {
	err = unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO, &st)
	if err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		err = errors.New("the kernel does not say what is mounted; Linux 5.12 is expected")
	}
	return st, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, err
}

// isMountOf reports whether target is where source is mounted.
func isMountOf(source, target *os.File) (bool, error) {
	a, _, err := stat(source)
	if err != nil {
		return false, err
	}
	b, mount, err := stat(target)
	return mount && a.Ino == b.Ino && a.Dev_major == b.Dev_major && a.Dev_minor == b.Dev_minor, err
}

// makeTarget opens a directory in dir, which it makes if it is not there.
func makeTarget(dir *os.File, name string) (*os.File, error) {
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o750); err != nil && err != unix.EEXIST {
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return openBelow(dir, name)
}

// mountOn mounts source on target, to be read only. It reports false if it was there already.
func mountOn(source, target *os.File) (done bool, err error) {
	if there, err := isMountOf(source, target); err != nil || there {
		return false, err
	}
	if _, mount, err := stat(target); err != nil || mount {
		return false, errors.Join(err, fmt.Errorf("%s: something else is mounted there", target.Name()))
	}
	tree, err := unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return false, os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return false, os.NewSyscallError("mount_setattr", err)
	}
	err = unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	return err == nil, os.NewSyscallError("move_mount", err)
}

// unmountAt unmounts what is mounted in dir with that name, and removes the directory it was on.
// What is not there is no error.
func unmountAt(dir *os.File, name string) error {
	const most = 16 // mounts upon each other
	for range most {
		target, err := openBelow(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		_, mount, err := stat(target)
		if err == nil && mount {
			// Lazily: target refers to it.
			err = os.NewSyscallError("umount2", unix.Unmount("/proc/self/fd/"+strconv.Itoa(int(target.Fd())), unix.MNT_DETACH))
		}
		target.Close()
		if err != nil {
			return err
		}
		if mount {
			continue
		}
		err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
		if err != nil && err != unix.ENOENT {
			return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
		}
		return nil
	}
	return fmt.Errorf("%s: there are more mounts upon each other than %d", filepath.Join(dir.Name(), name), most)
}
