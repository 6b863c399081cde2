package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// etcdServer is Debian's; a test that starts it tells a store its endpoints.
var etcdServer = file{"/usr/bin/etcd", "etcd-server"}

// Etcd is one member of a cluster.
type Etcd struct {
	*Process
	Endpoint string // of its clients; the first one, if it has several
	Data     string // its directory

	cluster *EtcdCluster
	place   EtcdPlace
	args    []string
	realm   *Realm
}

// EtcdCluster says how the members of a cluster are started. What is not set is as etcd has it by
// default, on loopback ports and in the clear.
type EtcdCluster struct {
	Members int
	Args    []string // more arguments of each member

	// CA has members and clients authenticate each other by its certificates, and switches etcd's own
	// authentication on: root has the password Password, and so has the user keystored, which may read
	// and write what is under /keystored/.
	CA       *Authority
	Password string

	// Place says where a member is.
	Place func(i int) EtcdPlace

	asks bool // who somebody is, by now
}

// EtcdPlace is where a member is.
type EtcdPlace struct {
	Peers   string   // its address for the other members
	Clients []string // and for clients
	Within  []string // a command that runs another one there
	Data    string   // its directory
}

// NewEtcd starts a cluster of so many members for one test, and ends it with the test. Where there
// is no etcd the test lacks it.
func NewEtcd(t testing.TB, members int, args ...string) []*Etcd {
	t.Helper()
	return (&EtcdCluster{Members: members, Args: args}).Start(t)
}

// Start starts the cluster for one test, and ends it with the test. Where there is no etcd the test
// lacks it.
func (c *EtcdCluster) Start(t testing.TB) []*Etcd {
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
	var members []*Etcd
	var err error
	for range 5 { // somebody may take a port
		if members, err = c.start(t, r); err == nil {
			if err = c.authenticate(t.Context(), members[0]); err != nil {
				t.Fatal(err)
			}
			return members
		}
	}
	t.Fatal(err)
	return nil
}

func (c *EtcdCluster) start(t testing.TB, r *Realm) (members []*Etcd, err error) {
	defer func() {
		for _, e := range members {
			if err != nil && e.Process != nil {
				e.Kill()
			}
		}
	}()
	scheme := "http"
	if c.CA != nil {
		scheme = "https"
	}
	var peers []string
	for i := range c.Members {
		client, err1 := FreePort()
		peer, err2 := FreePort()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		place := EtcdPlace{Peers: "127.0.0.1", Clients: []string{"127.0.0.1"}}
		if c.Place != nil {
			place = c.Place(i)
		}
		if place.Data == "" {
			place.Data = r.Path("etcd")
		}
		var urls []string
		for _, a := range place.Clients {
			urls = append(urls, fmt.Sprintf("%s://%s:%d", scheme, a, client))
		}
		url := fmt.Sprintf("%s://%s:%d", scheme, place.Peers, peer)
		e := &Etcd{Endpoint: urls[0], Data: place.Data, cluster: c, place: place, realm: r, args: []string{
			"--name", fmt.Sprintf("m%d", i), "--data-dir", place.Data, "--logger", "zap",
			"--listen-client-urls", strings.Join(urls, ","), "--advertise-client-urls", strings.Join(urls, ","),
			"--listen-peer-urls", url, "--initial-advertise-peer-urls", url,
			"--heartbeat-interval", "100", "--election-timeout", "1000",
		}}
		if c.CA != nil {
			dir := r.Path("tls")
			if err := os.Mkdir(dir, 0o755); err != nil {
				return members, err
			}
			c.CA.Issue(t, dir, append(place.Clients, place.Peers)...)
			for _, of := range []string{"", "peer-"} {
				e.args = append(e.args, "--"+of+"cert-file", dir+"/cert.pem", "--"+of+"key-file", dir+"/key.pem", "--"+of+"trusted-ca-file", c.CA.Dir+"/ca.pem", "--"+of+"client-cert-auth")
			}
		}
		e.args = append(e.args, c.Args...)
		peers = append(peers, fmt.Sprintf("m%d=%s", i, url))
		members = append(members, e)
	}
	for _, e := range members {
		e.args = append(e.args, "--initial-cluster", strings.Join(peers, ","))
		if err := e.Start(); err != nil {
			return members, err
		}
	}
	for _, e := range members {
		if err := e.Await(); err != nil {
			return members, err
		}
	}
	return members, nil
}

// authenticate makes the users, and has etcd ask who somebody is.
func (c *EtcdCluster) authenticate(ctx context.Context, e *Etcd) error {
	if c.CA == nil {
		return nil
	}
	for _, args := range [][]string{
		{"user", "add", "root:" + c.Password}, {"user", "grant-role", "root", "root"},
		{"role", "add", "keystored"}, {"role", "grant-permission", "keystored", "readwrite", "--prefix=true", "/keystored/"},
		{"user", "add", "keystored:" + c.Password}, {"user", "grant-role", "keystored", "keystored"},
		{"auth", "enable"},
	} {
		if _, err := e.Ctl(ctx, args...); err != nil {
			return err
		}
	}
	c.asks = true
	return nil
}

// Start starts the member, again after it has ended: in the same place, with what it had.
func (e *Etcd) Start() (err error) {
	args := slices.Concat(e.place.Within, []string{etcdServer.path}, e.args)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "ETCD_UNSUPPORTED_ARCH=arm64"} // which others ignore
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	e.Process, err = e.realm.Start(cmd, filepath.Join(e.realm.Dir, "log-"+strings.ReplaceAll(strings.Trim(e.Data, "/"), "/", "-")))
	return err
}

// Await waits until the member serves, which takes a leader.
func (e *Etcd) Await() error {
	return e.wait(Patience, "serve", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := e.Ctl(ctx, "get", "/keystored/none")
		return err == nil
	})
}

// Leads reports whether the member leads its cluster, as it says itself.
func (e *Etcd) Leads(ctx context.Context) bool {
	out, err := e.Ctl(ctx, "endpoint", "status", "--write-out=json")
	var status []struct {
		Status struct {
			Header struct {
				MemberID uint64 `json:"member_id"`
			} `json:"header"`
			Leader uint64 `json:"leader"`
		}
	}
	return err == nil && json.Unmarshal([]byte(out), &status) == nil && len(status) == 1 && status[0].Status.Leader == status[0].Status.Header.MemberID
}

// Ctl runs etcdctl with the member.
func (e *Etcd) Ctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "/usr/bin/etcdctl", append([]string{"--endpoints", e.Endpoint}, args...)...)
	cmd.Env = []string{"ETCDCTL_API=3"}
	if ca := e.cluster.CA; ca != nil {
		dir := filepath.Dir(e.args[slices.Index(e.args, "--cert-file")+1])
		cmd.Env = append(cmd.Env, "ETCDCTL_CACERT="+ca.Dir+"/ca.pem", "ETCDCTL_CERT="+dir+"/cert.pem", "ETCDCTL_KEY="+dir+"/key.pem")
		if e.cluster.asks {
			cmd.Env = append(cmd.Env, "ETCDCTL_USER=root:"+e.cluster.Password)
		}
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%v: %w\n%s%s", args, err, out, &stderr)
	}
	return string(out), nil
}
