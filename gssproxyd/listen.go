package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/rpc"
)

// listen opens the sockets that the configuration names and closes those it no longer names.
// Sockets that stay are not touched. It returns the new ones, which are to be served: all are
// opened before one is, since who can connect to one may count on the others. What cannot be opened
// is an error beside those that could.
func (d *daemon) listen(c *conf.Config) (map[string]*net.UnixListener, error) {
	opened := make(map[string]*net.UnixListener)
	if d.o.userproxy {
		l, path, err := d.userSocket()
		if err == nil {
			opened[path], d.userAt = l, path
		}
		return opened, err
	}
	want := c.Sockets()
	for path, l := range d.listeners {
		if !slices.Contains(want, path) {
			l.Close() // connections on it stay, and match no service from now on
			delete(d.listeners, path)
			d.log.Info("closed socket", "path", path)
		}
	}
	var errs []error
	for _, path := range want {
		a := socketAccess(c.AccessOf(path))
		l, err := d.listeners[path], error(nil)
		switch {
		case l == nil:
			if l, err = d.open(path, a); err == nil {
				opened[path] = l
			}
		case d.access[path] != a:
			err = d.permit(path, a)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d.access[path] = a
	}
	return opened, errors.Join(errs...)
}

// open opens a socket. Root's are root's to open: the starter does when this daemon is another user.
func (d *daemon) open(path string, a rpc.Access) (*net.UnixListener, error) {
	if d.starter != nil {
		return d.starter.Listen(path)
	}
	return rpc.ListenFor(path, a)
}

// permit gives a socket that is open another access, likewise.
func (d *daemon) permit(path string, a rpc.Access) error {
	err := error(nil)
	if d.starter != nil {
		err = d.starter.Permit(path)
	} else {
		err = rpc.SetAccess(path, a)
	}
	if err == nil {
		d.log.Info("changed who may connect to a socket", "path", path)
	}
	return err
}

// socketAccess is who may connect to a socket, as package rpc takes it.
func socketAccess(c conf.SocketAccess) rpc.Access {
	a := rpc.Access{Mode: cmp.Or(c.Mode, rpc.ForEverybody), Owner: -1, Group: -1}
	if c.Owner.Set {
		a.Owner = int(c.Owner.ID)
	}
	if c.Group.Set {
		a.Group = int(c.Group.ID)
	}
	return a
}

// openPod opens the socket of a pod, and removePod removes it. They are root's, like the others.
func (d *daemon) openPod(path string) (*net.UnixListener, error) {
	if d.starter != nil {
		return d.starter.Listen(path)
	}
	return pods.Listen(path)
}

func (d *daemon) removePod(path string) error {
	if d.starter != nil {
		return d.starter.Remove(path)
	}
	return pods.Remove(path)
}

// serveOn serves listeners, by path, until they are closed. One that fails is lost.
func (d *daemon) serveOn(ctx context.Context, opened map[string]*net.UnixListener) {
	for path, l := range opened {
		d.listeners[path] = l
		d.serving.Go(func() { d.rpc.Serve(ctx, l, path) }) // lose has its error
	}
}

// lose says that a listener failed, and has the main loop know.
func (d *daemon) lose(l *net.UnixListener, path string, err error) {
	d.log.Error("socket is not served any more; a reload opens it again", "path", path, "error", err)
	select {
	case d.lost <- l:
	case <-d.stopping:
	}
}

// userSocket is the socket of userproxy mode: the one a service manager passed, or one under
// XDG_RUNTIME_DIR.
func (d *daemon) userSocket() (*net.UnixListener, string, error) {
	passed := activation.Files(true)
	defer func() {
		for _, f := range passed {
			f.Close() // the listener has a descriptor of its own
		}
	}()
	switch len(passed) {
	case 0:
		d.o.idleTimeout = 0 // nobody would start us again
		path := d.o.socket
		if path == "" {
			dir, err := userDir()
			if err != nil {
				return nil, "", err
			}
			path = filepath.Join(dir, "default.sock")
		}
		l, err := rpc.Listen(path, rpc.ForEverybody)
		return l, path, err
	case 1:
		l, err := passedListener(passed[0])
		if err != nil {
			return nil, "", fmt.Errorf("socket activation: a listening unix stream socket is expected (ListenStream= with a path): %w", err)
		}
		d.lent = true
		return l, l.Addr().String(), nil
	}
	return nil, "", fmt.Errorf("socket activation: one socket expected, %d passed", len(passed))
}

// passedListener takes a socket over from a service manager.
func passedListener(f *os.File) (*net.UnixListener, error) {
	for _, want := range []struct {
		option, value int
		otherwise     string
	}{
		{unix.SO_DOMAIN, unix.AF_UNIX, "it is not a unix socket"},
		{unix.SO_TYPE, unix.SOCK_STREAM, "it is no stream"},
		{unix.SO_ACCEPTCONN, 1, "it does not listen"},
	} {
		got, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, want.option)
		if err != nil {
			return nil, err
		}
		if got != want.value {
			return nil, errors.New(want.otherwise)
		}
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// userDir is the private directory of userproxy mode, made when it is not there.
func userDir() (string, error) {
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" {
		return "", errors.New("XDG_RUNTIME_DIR is not set: userproxy mode keeps its socket there, and the key for client-held handles; set it, or name the places with -s and --state-dir")
	}
	dir := filepath.Join(base, "gssproxy")
	return dir, os.MkdirAll(dir, 0o700)
}
