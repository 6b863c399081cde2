package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/gssproxyd/admin"
	"gssproxyd/gssproxyd/knfsd"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// statusTimeout is how long a daemon may take to answer gssproxyd status.
const statusTimeout = 3 * time.Second

// wellness is what gssproxyd status finds: what anybody can see, and what the daemon says of itself
// to root.
type wellness struct {
	Well    bool                `json:"well"`
	Sockets []socketAnswer      `json:"sockets"`
	Kernel  string              `json:"kernel_nfsd,omitempty"`
	Daemon  *xdr.AdminResStatus `json:"daemon,omitempty"`
	Unasked string              `json:"daemon_error,omitempty"` // why there is no Daemon
	Hint    string              `json:"hint,omitempty"`

	admin string // the path of its socket
}

// socketAnswer is who answers on a socket, or why nobody does.
type socketAnswer struct {
	Path  string `json:"path"`
	By    string `json:"answered_by,omitempty"`
	Error string `json:"error,omitempty"`
}

// statusCommand is gssproxyd status: whether each socket of the configuration is answered, and by
// whom, what the kernel's NFS server does if a service is for it, and what the daemon says of itself.
func statusCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "status",
		Short:             "Say who answers on the sockets of the configuration, what the kernel's NFS server does, and how the daemon is",
		Args:              configured,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return command.Answers(cmd, o.wellness, func(out io.Writer, w *wellness) error {
		w.print(out)
		return nil
	}, func(w *wellness) command.Status {
		if !w.Well {
			return command.Unwell
		}
		return 0
	})
}

// wellness looks, and asks.
func (o *options) wellness(ctx context.Context, w *wellness) error {
	cfg, err := o.load(nil)
	if err != nil {
		return err
	}
	c := cfg.conf
	absent := true
	*w = wellness{Well: true, admin: c.Admin()}
	for _, path := range c.Sockets() {
		a := socketAnswer{Path: path}
		who, err := askSocket(ctx, path)
		if err != nil {
			absent = absent && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED))
			a.Error, w.Well = cause(err).Error(), false
		} else {
			a.By, absent = who, false
		}
		w.Sockets = append(w.Sockets, a)
	}
	if kernelNFSD(c) {
		text, good := knfsd.Describe()
		w.Kernel, w.Well = text, w.Well && good
	}
	if absent {
		w.Hint = startIt
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var res xdr.AdminResStatus
	if err = admin.Ask(ctx, w.admin, xdr.AdminProcStatus, new(admin.None), &res); err == nil && res.Error != "" {
		err = errors.New(res.Error)
	}
	switch {
	case err == nil:
		w.Daemon = &res
	case errors.Is(err, fs.ErrPermission):
		w.Unasked = "what else the daemon says of itself is for root"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		w.Unasked = "no daemon answers there: the C daemon has no such socket; see admin_socket in gssproxyd.conf(5)"
	default:
		w.Unasked = err.Error()
	}
	return nil
}

// print prints it for who reads.
func (w *wellness) print(out io.Writer) {
	for _, a := range w.Sockets {
		if a.Error != "" {
			fmt.Fprintf(out, "%s: NOT ANSWERED: %s\n", a.Path, a.Error)
		} else {
			fmt.Fprintf(out, "%s: answered by %s\n", a.Path, a.By)
		}
	}
	if w.Kernel != "" {
		fmt.Fprintf(out, "kernel NFS server: %s\n", w.Kernel)
	}
	if w.Hint != "" {
		fmt.Fprintf(out, "hint: %s\n", w.Hint)
		return
	}
	d := w.Daemon
	if d == nil {
		fmt.Fprintf(out, "%s: %s\n", w.admin, w.Unasked)
		return
	}
	fmt.Fprintf(out, "daemon: version %s, process %d, uid %d, since %s\n", d.Version, d.PID, d.UID, d.Started)
	if len(d.Files) > 0 {
		fmt.Fprintf(out, "configuration: read %s from %s\n", d.Read, strings.Join(d.Files, ", "))
	}
	fmt.Fprintf(out, "sockets: %s\n", strings.Join(d.Sockets, ", "))
	fmt.Fprintf(out, "services: %s\n", strings.Join(d.Services, ", "))
	if d.KernelNFSD != "" {
		fmt.Fprintf(out, "registration with the kernel: %s\n", d.KernelNFSD)
	}
	fmt.Fprintf(out, "debug level: %d\n", d.DebugLevel)
	for _, l := range d.Limits {
		fmt.Fprintf(out, "%s: %d of %d\n", l.What, l.Used, l.Limit)
	}
	printStores(out, d.Stores, time.Now())
}

// adminStatus is procedure STATUS.
func (d *daemon) adminStatus(ctx context.Context, _ *admin.None, res *xdr.AdminResStatus) error {
	err := d.inLoop(ctx, func() {
		c := d.conf
		*res = xdr.AdminResStatus{
			Version: version, PID: int32(os.Getpid()), UID: uint32(os.Geteuid()),
			Started: d.started.UTC().Format(time.RFC3339), Read: d.readAt.UTC().Format(time.RFC3339), Files: c.Files,
			KernelNFSD: d.nfsd.Status(), DebugLevel: int32(max(d.o.debugLevelInForce(), c.Debug)), Services: serviceNames(c),
		}
		for path := range d.listeners {
			res.Sockets = append(res.Sockets, path)
		}
		slices.Sort(res.Sockets)
	})
	res.Stores = d.shownStores()
	for _, b := range d.limits.Budgets() {
		what, used, limit := b.Use()
		res.Limits = append(res.Limits, xdr.AdminLimit{What: what, Used: uint32(used), Limit: uint32(limit)})
	}
	return err
}

// askSocket returns who listens on a socket, if that process answers, be it that it does not know
// the question.
func askSocket(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	p, err := peer.FromConn(nc.(*net.UnixConn))
	if err != nil {
		return "", err
	}
	p.ReadNow(peer.EvidenceProgram)
	who := fmt.Sprintf("process %d", p.PID)
	if program, ok := p.Program.Get(); ok {
		who += " (" + command.Shown(program) + ")"
	}
	who += fmt.Sprintf(", socket opened by uid %d", p.UID) // with run_as_user it is another user by now
	c, err := rpc.Dial(ctx, path, p.UID)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_, err = c.Call(ctx, uint32(xdr.ProcNull), nil)
	if _, ok := errors.AsType[*rpc.Error](err); ok {
		return who, nil // the C daemon's: it has no NULL procedure
	}
	switch {
	case errors.Is(err, rpc.ErrNoAnswer):
		return who + fmt.Sprintf(", which has no service for uid %d here and closes the connection", os.Geteuid()), nil
	case err != nil:
		return "", fmt.Errorf("%s listens: %w", who, err)
	}
	return who, nil
}
