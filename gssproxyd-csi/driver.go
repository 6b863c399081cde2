package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gssproxyd/audit"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
)

// The driver, as the CSIDriver object and pods name it.
const (
	driverName    = "csi.gssproxyd"
	driverVersion = "1"
)

// driver answers the kubelet.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	options
	log    *slog.Logger
	daemon *pods.Client
	audit  *audit.Log // nil: there is none

	// turn has an element while somebody changes what is mounted or registered. Whoever looks for
	// registrations without a mount must not see one that is just being made.
	turn chan struct{}
}

// Time limits: of a call to the daemon, and between two looks for what is left over.
const (
	daemonTimeout = 15 * time.Second
	orphansEvery  = time.Minute
)

// serve answers until ctx ends, and collects what is left over meanwhile.
func (d *driver) serve(ctx context.Context) error {
	l, err := rpc.Listen(d.endpoint, 0o600)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.UnaryInterceptor(d.intercept))
	csi.RegisterIdentityServer(s, d)
	csi.RegisterNodeServer(s, d)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.collectAll(ctx)
	}()
	defer func() { <-done }()
	defer context.AfterFunc(ctx, s.GracefulStop)()
	d.log.Info("serving", "endpoint", d.endpoint, "driver", driverName)
	return s.Serve(&rootOnly{l, d})
}

// rootOnly is a listener to which only root connects.
type rootOnly struct {
	*net.UnixListener
	d *driver
}

// Accept returns the next connection of root's.
func (l *rootOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		who, err := peer.Credentials(c)
		if err == nil && who.UID == 0 {
			return c, nil
		}
		const text = "connection refused: only the kubelet, which is root, is answered"
		l.d.record(slog.LevelWarn, text, audit.Event{
			Kind: audit.RegistrationDenied, Caller: &audit.Caller{UID: who.UID, PID: who.PID}, Reason: string(reason.RegistrationDenied), Text: text,
		}, "uid", who.UID, "pid", who.PID, "error", err)
		c.Close()
	}
}

// record says what has become of a volume, or of who asked for one: in the log, and in the audit log if
// there is one.
func (d *driver) record(level slog.Level, msg string, e audit.Event, attrs ...any) {
	about := []any{"event", string(e.Kind)}
	if e.Reason != "" {
		about = append(about, "reason", e.Reason)
		attrs = append(attrs, "hint", reason.ID(e.Reason).Doc().Hint)
	}
	d.log.Log(context.Background(), level, msg, append(about, attrs...)...)
	if d.audit != nil {
		d.audit.Record(context.Background(), &e) // whatever becomes of that, it is done or refused
	}
}

// about is the event of a volume: whose it is, which one, and where.
func about(kind audit.Kind, pod, uid, target string) audit.Event {
	return audit.Event{Kind: kind, Caller: &audit.Caller{Pod: uid}, Principal: pod, Source: target}
}

// refusal is a request of the kubelet's that is not met, since what is asked for is not what it asks
// for.
type refusal struct {
	code codes.Code
	text string
}

func (r *refusal) Error() string { return r.text }

func refuse(code codes.Code, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// intercept makes an answer of an error, in one way for all calls, and says it.
func (d *driver) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	answer, err := handle(ctx, request)
	if err == nil {
		return answer, nil
	}
	if _, ok := status.FromError(err); ok {
		return nil, err // such as a call that is not implemented
	}
	var volume, target string
	if r, ok := request.(interface {
		GetVolumeId() string
		GetTargetPath() string
	}); ok {
		volume, target = r.GetVolumeId(), r.GetTargetPath()
	}
	attrs := []any{"call", info.FullMethod, "volume", volume, "target", target, "error", err}
	if r, ok := errors.AsType[*refusal](err); ok {
		id := reason.RegistrationDenied
		d.record(slog.LevelWarn, "pod not registered", audit.Event{Kind: audit.RegistrationDenied, Source: target, Reason: string(id), Text: err.Error()}, attrs...)
		return nil, status.Errorf(r.code, "[%s] %v", id, err)
	}
	d.log.Error("call failed", attrs...)
	return nil, status.Error(codes.Internal, err.Error())
}

// GetPluginInfo says which driver this is.
func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: driverVersion}, nil
}

// GetPluginCapabilities says that there is nothing but the calls of the node.
func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

// Probe says whether the daemon answers.
func (d *driver) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	_, err := d.daemon.List(ctx)
	if err != nil {
		d.log.Warn("the daemon does not answer", "error", err)
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(err == nil)}, nil
}

// NodeGetCapabilities says that volumes need nothing but to be published.
func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

// NodeGetInfo says which node this is.
func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}
