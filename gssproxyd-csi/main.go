// Command gssproxyd-csi is a CSI driver for the node: it shows a pod of Kubernetes the socket at which
// gssproxyd knows it.
//
// The kubelet asks it for each volume that a pod has of this driver, and says whose volume it is
// (podInfoOnMount of the CSIDriver object). The driver registers the pod with the daemon, by package
// [gssproxyd/gssproxyd/pods], and mounts the directory of the socket that the daemon makes, to be
// read only, where the kubelet wants the volume.
//
// It believes the kubelet, and nobody else: who connects has to be root, and which pod it is has to
// be the same in the path of the volume as in what is said of it. Below the kubelet's directory no
// link is followed, and what was looked at is what is mounted: both are descriptors.
//
// It is a program of its own since gRPC, and root's right to mount, are nothing that the holder of
// keys should have.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"gssproxyd/audit"
	"gssproxyd/gssproxyd/pods"
)

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gssproxyd-csi:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	d := &driver{
		options: o, log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		daemon: &pods.Client{Socket: o.registration}, turn: make(chan struct{}, 1),
	}
	if o.audit != "" {
		d.audit, err = audit.Open(o.audit, audit.Options{Log: d.log})
	}
	if err == nil {
		err = d.serve(ctx)
	}
	if d.audit != nil {
		err = errors.Join(err, d.audit.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gssproxyd-csi:", err)
		os.Exit(1)
	}
}

// options are those of the command line.
type options struct {
	endpoint     string // path of the socket for the kubelet
	node         string
	kubelet      string // its directory
	registration string // the daemon's socket of registration
	audit        string // file of the audit log, empty for none
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("gssproxyd-csi", flag.ContinueOnError)
	f.StringVar(&o.endpoint, "endpoint", "/var/lib/kubelet/plugins/"+driverName+"/csi.sock", "`path` of the socket for the kubelet, with or without unix://")
	f.StringVar(&o.node, "node", os.Getenv("NODE_NAME"), "`name` of the node; the default is $NODE_NAME")
	f.StringVar(&o.kubelet, "kubelet", "/var/lib/kubelet", "`directory` of the kubelet")
	f.StringVar(&o.registration, "register", "/run/gssproxyd/csi/register.sock", "`path` of the daemon's socket of registration, pod_socket of its configuration")
	f.StringVar(&o.audit, "audit", "", "`file` of an audit log of what is registered and what is refused; none without")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.endpoint = strings.TrimPrefix(o.endpoint, "unix://")
	o.kubelet = strings.TrimRight(o.kubelet, "/")
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("there is no argument %q", f.Arg(0))
	case o.node == "":
		return o, errors.New("the name of the node is expected: --node NAME, or NODE_NAME in the environment")
	}
	return o, nil
}
