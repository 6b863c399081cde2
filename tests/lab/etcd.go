package lab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// etcdServer is Debian's; a test that starts it tells a store its endpoints.
var etcdServer = file{"/usr/bin/etcd", "etcd-server"}

// Etcd is one member of a cluster, which serves HTTP on a loopback port.
type Etcd struct {
	*Process
	Endpoint string
	Data     string // its directory

	args  []string
	realm *Realm
}

// NewEtcd starts a cluster of so many members for one test, and ends it with the test. Where there
// is no etcd the test lacks it.
func NewEtcd(t testing.TB, members int) []*Etcd {
	t.Helper()
	if _, err := os.Stat(etcdServer.path); err != nil {
		Lacking(t, etcdServer.pkg, err)
	}
	r := &Realm{Dir: t.TempDir()}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	var cluster []*Etcd
	var err error
	for range 5 { // somebody may take a port
		if cluster, err = r.startEtcd(members); err == nil {
			return cluster
		}
	}
	t.Fatal(err)
	return nil
}

func (r *Realm) startEtcd(members int) (cluster []*Etcd, err error) {
	defer func() {
		for _, e := range cluster {
			if err != nil && e.Process != nil {
				e.Kill()
			}
		}
	}()
	var peers []string
	for i := range members {
		client, err1 := FreePort()
		peer, err2 := FreePort()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		e := &Etcd{Endpoint: fmt.Sprintf("http://127.0.0.1:%d", client), Data: r.Path("etcd"), realm: r}
		url := fmt.Sprintf("http://127.0.0.1:%d", peer)
		e.args = []string{
			"--name", fmt.Sprintf("m%d", i), "--data-dir", e.Data, "--logger", "zap",
			"--listen-client-urls", e.Endpoint, "--advertise-client-urls", e.Endpoint,
			"--listen-peer-urls", url, "--initial-advertise-peer-urls", url,
			"--heartbeat-interval", "100", "--election-timeout", "1000",
		}
		peers = append(peers, fmt.Sprintf("m%d=%s", i, url))
		cluster = append(cluster, e)
	}
	for _, e := range cluster {
		e.args = append(e.args, "--initial-cluster", strings.Join(peers, ","))
		if err := e.start(); err != nil {
			return cluster, err
		}
	}
	for _, e := range cluster {
		if err := e.Await(); err != nil {
			return cluster, err
		}
	}
	return cluster, nil
}

func (e *Etcd) start() (err error) {
	cmd := exec.Command(etcdServer.path, e.args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "ETCD_UNSUPPORTED_ARCH=arm64"} // which others ignore
	e.Process, err = e.realm.Start(cmd, filepath.Join(e.realm.Dir, filepath.Base(e.Data)+".log"))
	return err
}

// Await waits until the member serves, which takes a leader.
func (e *Etcd) Await() error {
	client := http.Client{Timeout: time.Second}
	defer client.CloseIdleConnections()
	return e.wait(Patience, "serve", func() bool {
		r, err := client.Get(e.Endpoint + "/health")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

// Ctl runs etcdctl with the member.
func (e *Etcd) Ctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "/usr/bin/etcdctl", append([]string{"--endpoints", e.Endpoint}, args...)...)
	cmd.Env = []string{"ETCDCTL_API=3"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return string(out), nil
}
