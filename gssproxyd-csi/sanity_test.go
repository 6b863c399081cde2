package main

import (
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestSanity runs the suite that all CSI drivers are held to, but for what it asks of a controller,
// which this driver has none of: volumes are in pods' specifications. For a volume to publish it asks
// one all the same, whose part is played here; so is the kubelet's, to name the target as it does.
func TestSanity(t *testing.T) {
	n := newNode(t)
	path := filepath.Join(n.dir, "controller.sock")
	l, err := net.Listen("unix", path)
	check(t, err)
	s := grpc.NewServer()
	csi.RegisterControllerServer(s, &apiServer{n: n})
	csi.RegisterIdentityServer(s, n.driver)
	go s.Serve(l)
	t.Cleanup(s.Stop)

	config := sanity.NewTestConfig()
	config.Address, config.ControllerAddress = "unix://"+n.endpoint, "unix://"+path
	config.StagingPath = filepath.Join(n.dir, "staging")
	config.CreateTargetDir = func(string) (string, error) {
		return filepath.Join(n.volumes(web), "gss"), os.MkdirAll(filepath.Join(n.volumes(web), "gss"), 0o750)
	}
	config.RemoveTargetPath = func(string) error { return os.RemoveAll(n.kubelet + "/pods") }
	config.DialOptions = []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, r, answer any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			switch r := r.(type) {
			case *csi.NodePublishVolumeRequest:
				r.TargetPath = named(r.TargetPath)
			case *csi.NodeUnpublishVolumeRequest:
				r.TargetPath = named(r.TargetPath)
			}
			return invoke(ctx, method, r, answer, cc, o...)
		}),
	}
	config.CheckPath = func(path string) (sanity.PathKind, error) {
		st, err := os.Lstat(named(path))
		switch {
		case errors.Is(err, os.ErrNotExist):
			return sanity.PathIsNotFound, nil
		case err != nil:
			return "", err
		case st.IsDir():
			return sanity.PathIsDir, nil
		}
		return sanity.PathIsOther, nil
	}
	for name, value := range map[string]string{"ginkgo.skip": `\[Controller Server\]`, "ginkgo.no-color": "true"} {
		check(t, flag.Set(name, value))
	}
	sanity.Test(t, config)
}

// named is a target as the kubelet names it.
func named(target string) string {
	if dir, ok := strings.CutSuffix(target, "/target"); ok {
		return dir + "/mount"
	}
	return target
}

// apiServer knows what pods have in their specifications.
type apiServer struct {
	csi.UnimplementedControllerServer
	n *node
}

func (a *apiServer) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{}, nil
}

func (a *apiServer) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "csi-" + r.GetName(), VolumeContext: a.n.request(web, "").GetVolumeContext()}}, nil
}

func (a *apiServer) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}
