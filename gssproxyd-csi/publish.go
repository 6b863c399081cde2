package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"gssproxyd/audit"
	"gssproxyd/gssproxyd/pods"
	"gssproxyd/rpc/peer"
)

// What the kubelet says of a volume with podInfoOnMount.
const (
	ephemeralKey = "csi.storage.k8s.io/ephemeral"
	uidKey       = "csi.storage.k8s.io/pod.uid"
	nameKey      = "csi.storage.k8s.io/pod.name"
	namespaceKey = "csi.storage.k8s.io/pod.namespace"
	accountKey   = "csi.storage.k8s.io/serviceAccount.name"
)

// NodePublishVolume registers the pod whose volume it is, and mounts the directory of its socket.
func (d *driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	reg, at, err := d.asked(r)
	if err != nil {
		return nil, err
	}
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	defer d.end()
	dir, err := openVolume(d.kubelet, at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(codes.NotFound, "there is no directory for the volume at %s", reg.Target)
	}
	if err != nil {
		return nil, refuse(codes.PermissionDenied, "the way to %s is none of the kubelet's: %v", reg.Target, err)
	}
	defer dir.Close()
	target, err := makeTarget(dir, at.mount)
	if err != nil {
		return nil, refuse(codes.PermissionDenied, "%s is none of the kubelet's: %v", reg.Target, err)
	}
	defer target.Close()

	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	if err := d.daemon.Register(ctx, reg); err != nil {
		return nil, err
	}
	source, err := openSource(filepath.Join(pods.Dir(d.registration), pods.DirName(reg.UID, reg.Handle)))
	if err != nil {
		return nil, err
	}
	defer source.Close()
	done, err := mountOn(source, target)
	if err != nil {
		return nil, err
	}
	if done {
		d.record(slog.LevelInfo, "pod registered", about(audit.PodRegistered, reg.Pod.String(), reg.UID, reg.Target), "pod", reg.Pod.String(), "pod_uid", reg.UID, "volume", reg.Handle, "target", reg.Target)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// asked returns which pod a volume is for, and where it is to be.
func (d *driver) asked(r *csi.NodePublishVolumeRequest) (*pods.Registration, place, error) {
	said := r.GetVolumeContext()
	reg := &pods.Registration{
		Pod:    peer.Pod{UID: said[uidKey], Namespace: said[namespaceKey], ServiceAccount: said[accountKey], Name: said[nameKey]},
		Handle: r.GetVolumeId(), Target: r.GetTargetPath(),
	}
	switch {
	case r.GetVolumeId() == "":
		return nil, place{}, refuse(codes.InvalidArgument, "the request has no volume id")
	case r.GetTargetPath() == "":
		return nil, place{}, refuse(codes.InvalidArgument, "the request has no target path")
	case r.GetVolumeCapability() == nil:
		return nil, place{}, refuse(codes.InvalidArgument, "the request has no volume capability")
	case r.GetVolumeCapability().GetMount() == nil:
		return nil, place{}, refuse(codes.InvalidArgument, "a volume of this driver is a directory, and no block device")
	case said[ephemeralKey] != "true":
		return nil, place{}, refuse(codes.InvalidArgument, "%s is %q, and has to be true: the volume has to be an ephemeral one in the pod's own specification (csi:), and the CSIDriver object needs podInfoOnMount: true", ephemeralKey, said[ephemeralKey])
	}
	for _, key := range []string{uidKey, nameKey, namespaceKey, accountKey} {
		if said[key] == "" {
			return nil, place{}, refuse(codes.InvalidArgument, "the kubelet has not said %s: the CSIDriver object needs podInfoOnMount: true", key)
		}
	}
	at, err := d.place(r.GetTargetPath())
	if err != nil {
		return nil, place{}, err
	}
	if at.pod != reg.UID {
		return nil, place{}, refuse(codes.PermissionDenied, "the volume is at the path of pod %s, and is said to be for pod %.40q", at.pod, reg.UID)
	}
	if err := reg.Check(); err != nil {
		return nil, place{}, refuse(codes.InvalidArgument, "%v", err)
	}
	return reg, at, nil
}

// place is where a volume is, below the kubelet's directory: in dir, with the name mount.
type place struct{ pod, dir, mount string }

// place takes the path of a volume apart. Its form is the kubelet's:
// KUBELET/pods/UID/volumes/kubernetes.io~csi/NAME/mount.
func (d *driver) place(target string) (place, error) {
	rest, below := strings.CutPrefix(target, d.kubelet+"/")
	parts := strings.Split(rest, "/")
	if !below || len(parts) != 6 || parts[0] != "pods" || !peer.IsPodUID(parts[1]) ||
		parts[2] != "volumes" || parts[3] != "kubernetes.io~csi" || parts[4] == "" || strings.Trim(parts[4], ".") == "" || parts[5] != "mount" {
		return place{}, refuse(codes.InvalidArgument, "%q is not the path of a volume: %s/pods/UID/volumes/kubernetes.io~csi/NAME/mount is expected", target, d.kubelet)
	}
	return place{parts[1], strings.Join(parts[:5], "/"), parts[5]}, nil
}

// NodeUnpublishVolume unmounts a volume, and has the daemon know nothing of it any more.
func (d *driver) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	switch {
	case r.GetVolumeId() == "":
		return nil, refuse(codes.InvalidArgument, "the request has no volume id")
	case r.GetTargetPath() == "":
		return nil, refuse(codes.InvalidArgument, "the request has no target path")
	}
	at, err := d.place(r.GetTargetPath())
	if err != nil {
		return nil, err
	}
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	defer d.end()
	dir, err := openVolume(d.kubelet, at)
	switch {
	case errors.Is(err, fs.ErrNotExist): // nothing is mounted there
	case err != nil:
		return nil, refuse(codes.PermissionDenied, "the way to %s is none of the kubelet's: %v", r.GetTargetPath(), err)
	default:
		defer dir.Close()
		if err := unmountAt(dir, at.mount); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	err = d.daemon.Unregister(ctx, at.pod, r.GetVolumeId())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		// Where no daemon is, no pod is anybody. The pod's end must not wait for one, which may never come.
		d.log.Warn("the volume is taken away, and no daemon is there to know: one that starts is told by the next look for what is left over", "error", err)
		return &csi.NodeUnpublishVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	d.record(slog.LevelInfo, "pod not registered any more", about(audit.PodUnregistered, "", at.pod, r.GetTargetPath()), "pod_uid", at.pod, "volume", r.GetVolumeId(), "target", r.GetTargetPath())
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// begin waits until nobody else changes anything.
func (d *driver) begin(ctx context.Context) error {
	select {
	case d.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *driver) end() { <-d.turn }

// collectAll looks for what is left over, now and then, until ctx ends.
func (d *driver) collectAll(ctx context.Context) {
	every := time.NewTicker(orphansEvery)
	defer every.Stop()
	for {
		if err := d.collect(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("registrations that are left over could not be looked for", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// collect unregisters pods whose volume is not mounted any more: the kubelet, or this driver, did
// not come to it.
func (d *driver) collect(ctx context.Context) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.end()
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	all, err := d.daemon.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, reg := range all {
		mounted, err := d.mounted(&reg)
		if err != nil || mounted {
			errs = append(errs, err)
			continue
		}
		if err := d.daemon.Unregister(ctx, reg.UID, reg.Handle); err != nil {
			errs = append(errs, err)
			continue
		}
		d.record(slog.LevelInfo, "pod not registered any more: its volume is gone", about(audit.PodUnregistered, reg.Pod.String(), reg.UID, reg.Target), "pod", reg.Pod.String(), "pod_uid", reg.UID, "volume", reg.Handle, "target", reg.Target)
	}
	return errors.Join(errs...)
}

// mounted reports whether the directory of a registration's socket is where the pod gets to see it.
func (d *driver) mounted(reg *pods.Registration) (bool, error) {
	at, err := d.place(reg.Target)
	if err != nil {
		return false, nil // of a kubelet with another directory
	}
	source, err := openSource(filepath.Join(pods.Dir(d.registration), pods.DirName(reg.UID, reg.Handle)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer source.Close()
	dir, err := openVolume(d.kubelet, at)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	target, err := openBelow(dir, at.mount)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer target.Close()
	return isMountOf(source, target)
}
